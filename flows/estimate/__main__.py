"""Prints what the stages of a profile need: python -m flows.estimate lora_1x80"""

import argparse
from pathlib import Path

from flows.estimate.profiles import PROFILES, estimate_profile, format_profile, load_profile


def main() -> None:
    """Prints the tables of one profile; exit code 1 if a stage does not fit its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", choices=PROFILES)
    name = parser.parse_args().profile
    print(format_profile(Path.cwd(), name))
    for fault in (faults := estimate_profile(load_profile(Path.cwd(), name), name).list_faults()):
        print(f"error: {fault}")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
