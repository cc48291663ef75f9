"""The letter that a generated answer to a multiple-choice question names."""

import re

from lossmith.tasks.completion import Problem, letters

_OPTION_LINE = re.compile(r"^\s*([A-Z])[.):]\s+(.+?)\s*$", re.MULTILINE)
_OPENING = r"[\s\"'“‘*_(\[]*"
# A letter ends where no word goes on; `A dog` begins a sentence, `A.`, `A)` and a lone `A` name an option.
_CLOSED = r"(?=[\s\"'”’*_]*(?:[)\].:,;!]|$|\n))(?!['’.]\w)"
_LEADING = re.compile(rf"{_OPENING}([A-Za-z]){_CLOSED}")
_LEADING_CAPITAL = re.compile(rf"{_OPENING}([B-HJ-Z])(?=\s)")
_CLAIM = r"\b(?:answer|option|choice)\b[*_]*(?:\s+is|\s+would\s+be)?\s*[:=]?\s*(?:(?:option|choice)\s+)?"
_CLAIMED = re.compile(rf"{_CLAIM}{_OPENING}([A-Za-z]){_CLOSED}", re.IGNORECASE)
_CLAIMED_CAPITAL = re.compile(rf"(?i:{_CLAIM}){_OPENING}([B-HJ-Z])(?=\s)")


def chosen_letter(text: str, problem: Problem) -> str | None:
    r"""The letter that `text` names, or None.

    In this order: the first line is the text of one option (read from the lines `A. ...` of the prompt; white space,
    case and a final full stop do not matter); the text begins with a letter, such as `B`, `(b)`, `B. red`, `**B**`;
    or says "Answer: B", "the answer is (B)", "option B" somewhere, the first place counts. A letter inside a word, an
    article ("A dog") and a letter beyond the options name nothing.

    Example:
        >>> row = Problem(id="1", prompt="Q: Sky?\nA. red\nB. blue\nAnswer: ", question="", target="B", answer="B",
        ...               options=("A", "B"), label=1)
        >>> [chosen_letter(text, row) for text in ("B", "(b) blue", "The answer is B.", "Blue.", "Apples", "C")]
        ['B', 'B', 'B', 'B', None, None]
    """
    known = letters(len(problem.options))
    text = text.strip()[:2000]
    said = _plain(text.split("\n", 1)[0])
    named = [letter for letter, option in _option_texts(problem).items() if letter in known and _plain(option) == said]
    if said and len(named) == 1:
        return named[0]
    for pattern in (_LEADING, _LEADING_CAPITAL):
        found = pattern.match(text)
        if found and found[1].upper() in known:
            return found[1].upper()
    claims = sorted(
        (found.start(), found[1].upper())
        for pattern in (_CLAIMED, _CLAIMED_CAPITAL)
        for found in pattern.finditer(text)
        if found[1].upper() in known
    )
    return claims[0][1] if claims else None


def _option_texts(problem: Problem) -> dict[str, str]:
    return dict(_OPTION_LINE.findall(problem.prompt))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(". ")
