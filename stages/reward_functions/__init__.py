"""Rewards by function: the ready ones, the user's own, and the processes that run them."""
