"""Foreign text as a person may read it: on one line, folded, without characters that steer a display."""

import textwrap
import unicodedata

MISSING = "–"
"""Stands where there is nothing to show."""
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that steer a display instead of showing something: controls, direction marks, line separators."""


def one_line(text: object) -> str:
    r"""Foreign text on one line: what would steer a terminal, a font or a file becomes a blank.

    Example:
        >>> one_line("a\x1b[31m\u2028b")
        'a [31m b'
    """
    return "".join(
        " " if unicodedata.category(character) in HIDDEN_CATEGORIES else character for character in str(text)
    )


def wrapped(text: object, *, width: int, lines: int) -> str:
    r"""A name folded at blanks into a few short lines; what does not fit ends in an ellipsis.

    Example:
        >>> wrapped("0.4*cross_entropy + 0.6*supcon", width=20, lines=2)
        '0.4*cross_entropy +\n0.6*supcon'
        >>> wrapped("0.4*cross_entropy + 0.6*supcon", width=20, lines=1)
        '0.4*cross_entropy +…'
    """
    flat = " ".join(one_line(text).split()) or MISSING
    if lines == 1:
        return _clipped(flat, width)
    folded = textwrap.wrap(flat, width, break_long_words=False, break_on_hyphens=False)
    kept = [_clipped(line, width) for line in folded[:lines]]
    if len(folded) > lines and not kept[-1].endswith("…"):
        kept[-1] = _clipped(kept[-1], width - 2) + " …"
    return "\n".join(kept)


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
