"""Markdown that GitHub and GitLab show as meant: prose of docstrings, formulas, links to losses, tables."""

import re
from collections.abc import Mapping, Sequence

KEPT = re.compile(r"(\$[^$]+\$|`[^`]+`|(?<![\w*])\*\w[^*\n]*\*(?![\w*]))")
"""What escaping must not touch: inline mathematics, code, emphasis."""


def prose(text: str, links: Mapping[str, str] | None = None) -> str:
    r"""Prose of a docstring: paragraphs on one line each, formulas and code kept, other marks as plain text.

    Display formulas become `math` fences and inline ones get backticks within their dollars: Markdown reads the LaTeX
    of neither, while it turns the `\\` and `\{` of plain dollars into `\` and `{`.

    Args:
        text: Words, *emphasis*, `code`, `$inline$` and `$$display$$` mathematics.
        links: Name of a loss -> address; `code` that is such a name becomes a link.

    Example:
        >>> prose("Where $a_0 < 1$, `dpo` costs <2.", {"dpo": "preference.md#dpo"})
        'Where $`a_0 < 1`$, [`dpo`](preference.md#dpo) costs \\<2.'
    """
    blocks: list[str] = []
    for place, part in enumerate(text.split("$$")):
        if place % 2:
            # A blank line would end the formula; the others are its own line ends.
            blocks.append("\n".join(["```math", *filter(None, map(str.strip, part.splitlines())), "```"]))
        else:
            blocks += [_paragraph(words, links or {}) for words in re.split(r"\n\s*\n", part) if words.strip()]
    return "\n\n".join(blocks)


def code(words: Sequence[str]) -> str:
    """Words as code, with commas.

    Example:
        >>> code(["gamma=2.0", "normalize=True"])
        '`gamma=2.0`, `normalize=True`'
    """
    return ", ".join(f"`{word}`" for word in words)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table; a bar within a cell is escaped, within code and formulas too, as GitHub wants it.

    Example:
        >>> print(table(["loss", "size"], [["`a|b`", "1"]]))
        | loss | size |
        | :--- | :--- |
        | `a\|b` | 1 |
    """
    lines = [_row(header), f"|{' :--- |' * len(header)}"]
    return "\n".join([*lines, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _paragraph(words: str, links: Mapping[str, str]) -> str:
    return "".join(_piece(piece, links) for piece in KEPT.split(" ".join(words.split())))


def _piece(piece: str, links: Mapping[str, str]) -> str:
    if KEPT.fullmatch(piece) is None:
        # Underscores and stars within words, and brackets that no address follows, are plain text already.
        return re.sub(r"([\\`*<~]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))", r"\\\1", piece)
    inner = piece[1:-1]
    if piece[0] == "$":
        return f"$`{inner}`$"
    return f"[{piece}]({links[inner]})" if piece[0] == "`" and inner in links else piece
