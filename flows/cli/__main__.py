"""Lets `python -m flows.cli` be the `ril` command."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
