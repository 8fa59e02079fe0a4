"use strict";
for (const group of document.querySelectorAll("[data-filters]")) {
  const cards = [...document.querySelectorAll(`#${group.dataset.filters} > [data-outcome]`)];
  const buttons = [...group.querySelectorAll("button")];
  const status = group.querySelector("[role=status]");
  const has = (card, outcome) => outcome === "all" || card.dataset.outcome.split(" ").includes(outcome);
  const show = (outcome) => {
    for (const card of cards) card.hidden = !has(card, outcome);
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === outcome));
    status.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} shown`;
  };
  for (const button of buttons) {
    button.disabled = !cards.some((card) => has(card, button.dataset.show));
    button.addEventListener("click", () => show(button.dataset.show));
  }
  group.hidden = false;
}
