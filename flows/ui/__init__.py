"""The Prefect UI: forms, the server behind them, and what a form starts."""
