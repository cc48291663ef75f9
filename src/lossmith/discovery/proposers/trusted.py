"""What of a candidate may enter a prompt: its code with each word of its own replaced, reasons without quotations.

A model that is shown what an earlier reply said obeys it sooner or later. So comments, strings, docstrings and names
that a candidate chose never come back: known words stay, all others become v1, v2, ... where they stand.
"""

import io
import keyword
import re
import tokenize

from lossmith.discovery.program import INPUTS
from lossmith.objectives import list_losses

MOST_LINES = 80
MOST_CHARACTERS = 6_000
_CALLED = (
    "exp expm1 log log1p softplus logsigmoid sigmoid tanh relu abs square sqrt pow erf atan arctan clamp clip min max "
    "minimum maximum where float detach mean var std sum mean_batch var_batch std_batch mean_masked logical_and "
    "logical_or logical_not unbiased"
)
_NAMED = (
    "torch F nn functional math self beta item Tensor FloatTensor loss losses logits rho ratio margin x "
    "policy_chosen_logps policy_rejected_logps reference_chosen_logps reference_rejected_logps"
)
_WORDS = frozenset(
    [*keyword.kwlist, *f"{_CALLED} {_NAMED}".split(), *(name for names in INPUTS.values() for name in names)]
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r"`([^`]*)`|'([^']*)'|\"([^\"]*)\"")
_CATEGORY = re.compile(r"[a-z]+(-[a-z]+){0,3}")
_SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER, tokenize.ERRORTOKEN)


def bare_source(source: str) -> str:
    r"""The code of a candidate without any word of its own; lines keep their places.

    Example:
        >>> print(bare_source("def evil(chosen_logps):  # obey me\n    obey = 'obey'\n    return chosen_logps + obey"))
        def v1(chosen_logps):
            v2 = ''
            return chosen_logps + v2
    """
    text = source[:MOST_CHARACTERS].encode("ascii", "replace").decode("ascii")
    names: dict[str, str] = {}
    lines: dict[int, str] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in _SKIPPED or token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                continue
            row, column = token.start
            if row > MOST_LINES:
                break
            line = lines.get(row)
            lines[row] = _placed(line, column, token, _bare(token, names))
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        # What was read until then is enough to show where it breaks.
        pass
    return "\n".join(lines.get(row, "") for row in range(1, max(lines, default=0) + 1))


def _placed(line: str | None, column: int, token: tokenize.TokenInfo, word: str) -> str:
    if line is None:
        return " " * min(column, 40) + word
    before = token.line[column - 1 : column]
    return line + (" " if before in (" ", "\t") else "") + word


def _bare(token: tokenize.TokenInfo, names: dict[str, str]) -> str:
    if token.type == tokenize.NAME:
        return token.string if token.string in _WORDS else names.setdefault(token.string, f"v{len(names) + 1}")
    if token.type == tokenize.NUMBER:
        return token.string if len(token.string) <= 24 else "0"
    if token.type == tokenize.OP:
        return token.string
    return "''"


def plain_reason(reason: str, source: str = "") -> str:
    """A reason without what it quotes of the candidate: known words stay, all others become `...`.

    Args:
        reason: Of a verdict.
        source: The candidate, where it is at hand: words of its own are left out wherever they stand.

    Example:
        >>> plain_reason("`obey_me` is not in the vocabulary. Known: `chosen_logps`.")
        '`...` is not in the vocabulary. Known: `chosen_logps`.'
        >>> plain_reason("No name obey here.", "def f(obey): return obey")
        'No name ... here.'
    """
    losses, own = _losses(), set(_WORD.findall(source)) - _WORDS

    def unquoted(match: re.Match[str]) -> str:
        word = next(group for group in match.groups() if group is not None)
        harmless = all(part in _WORDS or part in losses for part in _WORD.findall(word)) and len(word) < 60
        return match.group(0) if harmless else "`...`"

    def unnamed(match: re.Match[str]) -> str:
        word = match.group(0)
        strange = word in own or ("_" in word and word not in _WORDS and word not in losses)
        return "..." if strange else word

    text = reason[:600].encode("ascii", "replace").decode("ascii").replace("\n", " ")
    return _WORD.sub(unnamed, _QUOTED.sub(unquoted, text))


def plain_category(category: str) -> str:
    """A category of the checks; of duplicates only the name of a published loss is told.

    A run remembers programs under the names that their proposers gave them, and those are text from outside.

    Example:
        >>> plain_category("wrong-sign"), plain_category("duplicate-of-dpo"), plain_category("duplicate-of-obey me")
        ('wrong-sign', 'duplicate-of-dpo', 'duplicate')
    """
    if category.startswith("duplicate"):
        return category if category.removeprefix("duplicate-of-") in _losses() else "duplicate"
    return category if len(category) <= 30 and _CATEGORY.fullmatch(category) else "refused"


def loss_name(name: str | None) -> str | None:
    """The name where it is one of a published loss."""
    return name if name in _losses() else None


def _losses() -> frozenset[str]:
    return frozenset(str(record) for record in list_losses())
