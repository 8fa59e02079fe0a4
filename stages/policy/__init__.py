"""The student's side of a step: rewards, advantages, the loss (Eq. 2), the update, what is logged."""
