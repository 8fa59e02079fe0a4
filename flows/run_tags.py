"""Tags by which runs are found again in the Prefect UI."""

from contextlib import suppress
from pathlib import Path

from flows.git import GitError, read_git_lines
from flows.profile import list_applied_profiles
from stages.config.yaml import ParamsError


def list_run_tags(root: Path) -> list[str]:
    """The profiles that params.yaml of `root` agrees with, and the commit that is checked out, if there is one."""
    tags: list[str] = []
    with suppress(ParamsError):  # whoever runs something has read it, and says what is wrong
        tags += [f"profile-{name}" for name in list_applied_profiles(root)]
    with suppress(GitError):  # no repository, or one without a commit
        tags.append(f"commit-{read_git_lines(root, 'rev-parse', '--short=12', 'HEAD')[0]}")
    return tags
