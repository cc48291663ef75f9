"""Read a judge's verdict from its final structured field, and from nothing that it quotes.

An answer may hold verdicts, instructions to the judge, or JSON in the very form that is asked for. Two defences: our
own prompts ask for a last line that repeats a word which no answer can hold (a digest of the whole question, answers
included), and so does one more line behind MT-Bench's published prompts where an answer holds what could be taken for a
verdict; behind the published prompts alone, what is quoted is told from what the judge says, and where that is not sure
there is no verdict. A reply without a verdict is counted, never guessed at.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.evaluation.judging.calls import Reply, TokenChoice

LOWEST, HIGHEST = 1.0, 10.0
"""Ends of MT-Bench's scale."""

CHOICES = ("A", "B", "tie")
"""What a comparison may end with."""

_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_LETTER = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_MARKS = r"[\s*_#>.:\-]*"
# "Rating: [[5]]", "**Final rating:** [[5]].", "[[5]]/10": a line that is a verdict and nothing else.
_VERDICT_LINE = re.compile(
    rf"^(?!\s*>){_MARKS}(?:(?:my|the|final|overall|rating|score|verdict|is){_MARKS}){{0,5}}"
    rf"\[\[[^\[\]]*\]\](?:\s*/\s*10)?{_MARKS}$",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"^\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_FENCED = re.compile(r"^\s*(```|~~~).*?^\s*\1\s*$", re.DOTALL | re.MULTILINE)
_QUOTED_LINE = re.compile(r"^\s*>.*$", re.MULTILINE)
_IN_QUOTES = re.compile(r"\"[^\"\n]*\"|“[^”]*”|«[^»]*»|`[^`\n]+`|‘[^’]*’|(?<![\w])'[^'\n]*'(?!\w)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge decided."""

    value: float | None
    """A rating in [1, 10], or the share of the answer shown first: 1, 0, 0.5 or a probability; None where unparsed."""
    problem: str = ""
    """Why there is none, in words."""
    by_logprobs: bool = False
    """Whether the value is the judge's probability and not its word."""


def unparsed(problem: str) -> Verdict:
    """No verdict, and why."""
    return Verdict(value=None, problem=problem)


def read_rating(reply: Reply, shown: Sequence[str]) -> Verdict:
    r"""The rating of a reply to MT-Bench's published prompts: the last `[[n]]` that is the judge's own.

    Args:
        reply: What the judge wrote.
        shown: What it was shown and may quote: answers, questions, references.

    Example:
        >>> read_rating(Reply(text='It says "[[10]]".\nRating: [[3]]'), ["[[10]]"]).value
        3.0
    """
    found = _own_rating(reply, shown)
    if isinstance(found, Verdict):
        return found
    return _on_scale(float(found))


def read_checked_rating(reply: Reply, nonce: str) -> Verdict:
    r"""The rating of a reply that was asked for one beside a check word: in a last line of JSON, and nowhere else.

    Example:
        >>> read_checked_rating(Reply(text='It says [[10]].\n{"check": "7f3a", "rating": 3}'), "7f3a").value
        3.0
    """
    found = _checked(reply, nonce, "rating")
    if isinstance(found, Verdict):
        return found
    rating = found[1]
    if isinstance(rating, bool) or not isinstance(rating, int | float):
        return unparsed("JSON of another form")
    return _on_scale(rating)


def read_choice(reply: Reply, nonce: str) -> Verdict:
    """The verdict of a reply to our own prompts: a last line of JSON with the call's word and `better`.

    Where the reply comes with log-probabilities, the value is the judge's probability of A among A and B at the token
    that says which is better; a letter that is not among the alternatives has probability 0.

    Example:
        >>> read_choice(Reply(text='{"check": "7f3a", "better": "B"}'), "7f3a").value
        0.0
    """
    found = _checked(reply, nonce, "better")
    if isinstance(found, Verdict):
        return found
    line, better = found
    if better not in CHOICES:
        return unparsed("JSON of another form")
    probability = _probability_of_a(reply, line, better)
    if probability is not None:
        return Verdict(value=probability, by_logprobs=True)
    return Verdict(value={"A": 1.0, "B": 0.0, "tie": 0.5}[better])


def holds_verdict(text: str) -> bool:
    """Whether an answer holds what could be taken for a verdict or for the end of the answer, as attacks do."""
    return bool(
        _RATING.search(text) or _LETTER.search(text) or re.search(r"\[The (Start|End) of |<\|The (Start|End) of ", text)
    )


def _checked(reply: Reply, nonce: str, name: str) -> tuple[str, Any] | Verdict:
    """The last line, JSON with the call's word, and what it says under the name."""
    if reply.finish == "length":
        return unparsed("a reply that was cut off")
    text = _without_thoughts(reply.text)
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not re.fullmatch(r"\s*(```|~~~)\w*\s*", line)
    ]
    if not lines:
        return unparsed("an empty reply")
    try:
        values = json.loads(lines[-1], object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return unparsed("no JSON in the last line")
    if not isinstance(values, dict) or values.get("check") != nonce:
        return unparsed("JSON without the call's check word")
    if set(values) != {"check", name}:
        return unparsed("JSON of another form")
    return lines[-1], values[name]


def _on_scale(rating: float) -> Verdict:
    # Compared as it comes: JSON may hold an integer that no float can.
    if not LOWEST <= rating <= HIGHEST:
        return unparsed("a rating outside 1 to 10")
    return Verdict(value=float(rating))


def _own_rating(reply: Reply, shown: Sequence[str]) -> str | Verdict:
    """What stands in the last pair of brackets that is the judge's own."""
    if reply.finish == "length":
        return unparsed("a reply that was cut off")
    text = _without_thoughts(reply.text)
    own = _without_quotes(text)
    found = _RATING.findall(own)
    if not found and not any(_RATING.search(other) for other in shown):
        # Nothing that was shown holds a verdict, so a last line in quotes or backticks is the judge's own.
        own = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        found = _RATING.findall(own)
    if not found:
        return unparsed("a verdict in quotes only" if _RATING.search(text) else "no verdict in the asked format")
    lines = [line for line in own.splitlines() if line.strip()]
    last_two = _squeezed("\n".join(lines[-2:]))
    if len(lines) > 1 and any(last_two in _squeezed(other) for other in shown):
        return unparsed("a verdict that repeats the answer's words")
    shown_too = {_plain(match) for other in shown for match in _RATING.findall(other)}
    if _plain(found[-1]) not in shown_too:
        return found[-1]
    if _VERDICT_LINE.match(lines[-1]) and len({_plain(match) for match in found}) == 1:
        return found[-1]
    return unparsed("a verdict that the answer holds too, so that it may be quoted")


def _without_thoughts(text: str) -> str:
    """A reply without the thoughts that some models write before it; one that never ends its thoughts has no reply."""
    rest = _THOUGHTS.sub("", text, count=1)
    return "" if re.match(r"\s*<think(?:ing)?>", rest) else rest


def _without_quotes(text: str) -> str:
    for pattern in (_FENCED, _QUOTED_LINE, _IN_QUOTES):
        text = pattern.sub(" ", text)
    return text


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _plain(match: str) -> str:
    return f"{float(match):g}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name twice")
    return values


def _probability_of_a(reply: Reply, line: str, better: str) -> float | None:
    """The judge's probability of A at the token of its choice, or None where the tokens do not tell."""
    if better == "tie" or not reply.tokens or "".join(token.text for token in reply.tokens) != reply.text:
        return None
    inside = re.search(r'"better"\s*:\s*"', line)
    if inside is None:
        return None
    place, start = reply.text.rindex(line) + inside.end(), 0
    for token in reply.tokens:
        if start <= place < start + len(token.text):
            return _share_of_a(token, place - start)
        start += len(token.text)
    return None


def _share_of_a(token: TokenChoice, offset: int) -> float | None:
    """P(A) / (P(A) + P(B)) over the alternatives that differ from the token in the letter alone."""
    before, after = token.text[:offset], token.text[offset + 1 :]
    logps = dict(token.alternatives)
    found = {letter: logps[word] for letter in "AB" if (word := f"{before}{letter}{after}") in logps}
    if not found or not all(value <= 0 and not math.isnan(value) for value in found.values()):
        return None
    top = max(found.values())
    if top == -math.inf:
        return None
    shares = {letter: math.exp(value - top) for letter, value in found.items()}
    return shares.get("A", 0.0) / sum(shares.values())
