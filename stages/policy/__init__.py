"""The student's part of a step: rewards, advantages, the loss (Eq. 2), the update, metrics."""
