"""Addresses of endpoints: of this machine or another, and which key of the environment goes there."""

import ipaddress
import os
from urllib.parse import urlsplit

from lossmith.errors import ConfigurationError

KEY_VARIABLES = ("LOSSMITH_JUDGE_API_KEY", "OPENAI_API_KEY")
"""Where the key is looked for, in order; it is read from nowhere else."""


def is_local(base_url: str) -> bool:
    """Whether an address is of this machine.

    Raises:
        ConfigurationError: If it is no address of the web, or holds a user, a password or a query.

    Example:
        >>> is_local("http://127.0.0.1:8000/v1"), is_local("https://api.openai.com/v1")
        (True, False)
    """
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(
            f"`base_url` must be an address such as http://127.0.0.1:8000/v1, got '{base_url[:80]}'."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"`base_url` must hold no user, password or query, which messages would show: give the address alone and "
            f"the key in {KEY_VARIABLES[0]}."
        )
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_of_environment(base_url: str, variables: tuple[str, ...] = KEY_VARIABLES, *, local: bool) -> str:
    """The key for an address, from the environment; empty where there is none and none is needed.

    Raises:
        ConfigurationError: If there is no key for an address over https that is not local, or one that plain http
            would show to everyone on the way.
    """
    in_the_open = not local and urlsplit(base_url).scheme == "http"
    for name in variables:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable():
                raise ConfigurationError(f"{name} must hold a key of printable ASCII characters: set it again.")
            if in_the_open:
                raise ConfigurationError(
                    f"`base_url` must be https where a key is sent to another machine, got {base_url}: use https, a "
                    f"tunnel to a local port, or unset {name}."
                )
            return key
    if local or in_the_open:
        return ""
    raise ConfigurationError(
        f"No key for {urlsplit(base_url).hostname}: set {' or '.join(variables)} in the environment, "
        f"to any word if that server wants none. Local addresses such as http://127.0.0.1:8000/v1 need no key."
    )
