"""Names of users and groups for messages; a container's user may have no entry, so then it is the number."""

import grp
import pwd


def name_user(number: int) -> str:
    """Returns the name of the user with this number."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def name_group(number: int) -> str:
    """Returns the name of the group with this number."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return f"group {number}"
