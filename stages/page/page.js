"use strict";
const group = document.querySelector(".filter");
const cards = [...document.querySelectorAll("[data-outcome]")];
const buttons = [...group.querySelectorAll("button")];
const status = document.getElementById("shown");
function show(outcome) {
  for (const card of cards) card.hidden = outcome !== "all" && card.dataset.outcome !== outcome;
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === outcome));
  status.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} shown`;
}
for (const button of buttons) button.addEventListener("click", () => show(button.dataset.show));
group.hidden = false;
show("all");
