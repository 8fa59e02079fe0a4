"""Writes the tables of docs/profiles.md that are calculated from the profiles: python docs/estimated.py"""

import re
from pathlib import Path

from flows.estimate.profiles import PROFILES, format_profile
from stages.job.files import write_text


def main() -> None:
    """Rewrites what stands between the marks of each profile."""
    root = Path(__file__).resolve().parents[1]
    page = root / "docs" / "profiles.md"
    text = page.read_text(encoding="utf-8")
    for name in PROFILES:
        block = f"<!-- estimate {name} -->\n{format_profile(root, name)}\n<!-- /estimate {name} -->"
        pattern = rf"<!-- estimate {name} -->\n.*?<!-- /estimate {name} -->"
        before = re.search(pattern, text, flags=re.DOTALL)
        assert before is not None, f"docs/profiles.md has no place for {name}"
        text = text.replace(before.group(), block)
    write_text(page, text)


if __name__ == "__main__":
    main()
