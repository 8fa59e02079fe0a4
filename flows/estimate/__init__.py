"""What the stages of a profile need on each GPU, by calculation from measured coefficients; nothing is loaded."""
