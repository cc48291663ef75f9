"""The texts that models are given. Placeholders are filled with trusted facts only, see `trusted` and `facts`."""

from importlib.resources import files
from string import Template

VERSION = "2"
"""Part of every call's identity: a changed text is another question."""


def fill(name: str, /, **facts: object) -> str:
    """A text with its placeholders filled.

    Raises:
        KeyError: If a placeholder is not given.
    """
    text = files("lossmith.discovery.proposers.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute({key: str(value) for key, value in facts.items()}).strip()
