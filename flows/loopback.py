"""Connections to this machine itself never go through a proxy."""

import importlib.util
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

NAMES = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine's loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def bypass_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables `no_proxy` and `NO_PROXY` that except loopback too; none when `environ` names no proxy.

    Libraries read one or the other. Both keep what was in the one that counts, the lower-case one if it is set.
    """
    if not any(environ.get(name) or environ.get(name.upper()) for name in _PROXIES):
        return {}
    given = environ.get("no_proxy", environ.get("NO_PROXY", ""))
    listed = [part.strip() for part in given.split(",") if part.strip()]
    if "*" in listed:
        return {}
    value = ",".join([*listed, *(name for name in NAMES if name not in listed)])
    return {name: value for name in ("no_proxy", "NO_PROXY") if environ.get(name) != value}


def list_unusable_proxies(environ: Mapping[str, str]) -> list[str]:
    """Variables with a SOCKS proxy that httpx can't use: without `socksio` it raises ImportError for every client,
    also one for an address that needs no proxy.
    """
    if importlib.util.find_spec("socksio") is not None:
        return []
    names = [spelling for name in _PROXIES for spelling in (name, name.upper())]
    return [name for name in names if environ.get(name, "").lower().startswith("socks")]
