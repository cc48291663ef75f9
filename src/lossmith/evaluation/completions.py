"""Generated answers judged against a task's targets: metrics, scores of each example, kinds of mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from lossmith.errors import ConfigurationError, DataError
from lossmith.evaluation.choices import chosen_letter
from lossmith.evaluation.numbers import flexible_answer, parse_number, strict_answer
from lossmith.evaluation.outcomes import math_outcome
from lossmith.evaluation.released import released_choice, released_math
from lossmith.evaluation.steps import find_steps, step_metrics
from lossmith.tasks._numbers import write_number
from lossmith.tasks.completion import Kind, Problem


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What generated answers are worth."""

    metrics: dict[str, float]
    """Means of `scores`, fractions."""
    scores: dict[str, list[float]]
    """Each metric for each example, in the order of the problems."""
    outcomes: list[str]
    """Class of each answer: `outcomes.MATH_OUTCOMES` or `outcomes.CHOICE_OUTCOMES`."""
    answers: list[str | None]
    """What was read: a number, a letter, a text without surplus white space; None where nothing could be."""
    released_raises: int = 0
    """Number of examples on which the released code stops with an error (math; here they count as wrong)."""


@dataclass(frozen=True, slots=True)
class _Judged:
    scores: dict[str, float]
    outcome: str
    answer: str | None
    raises: bool = False


def judge(kind: Kind, problems: Sequence[Problem], texts: Sequence[str], *, stopped: Sequence[bool]) -> Judgement:
    """Judge one generated text per problem.

    Args:
        kind: What an answer is: `math` (steps and a number after `####`), `choice` (a letter), `text`.
        problems: What was asked, at least one.
        texts: What the model wrote after each prompt, without it.
        stopped: Whether each text ended by itself (with an end-of-sequence token).

    Returns:
        For `math`: `exact_match` (the number after the first `####`, exactly), `flexible_match`, `answered`,
        `stopped`, the step metrics of `steps.step_metrics` and their `released_*` twins. For `choice`: `accuracy`,
        `released_accuracy`, `answered`, `stopped`. For `text`: `exact_match` up to white space and case, `answered`,
        `stopped`. `docs/metrics.md` has them with examples.

    Raises:
        ConfigurationError: If `kind` is unknown.
        DataError: If the lengths differ, there is no problem, or a math problem's answer is no number.

    Example:
        >>> row = Problem(id="1", prompt="Half of 48? ", question="", target="<<48/2=24>> #### 24", answer="24")
        >>> judgement = judge("math", [row], ["<<48/2=24>> #### $24.00"], stopped=[True])
        >>> judgement.metrics["exact_match"], judgement.outcomes, judgement.answers
        (1.0, ['correct'], ['24'])
    """
    check_kind(kind)
    _check_lengths(problems, texts=texts, stopped=stopped)
    judge_one = {"math": _math, "choice": _choice, "text": _text}[kind]
    judged = [judge_one(problem, text) for problem, text in zip(problems, texts, strict=True)]
    names = [name for name in judged[0].scores if all(name in one.scores for one in judged)]
    scores = {name: [one.scores[name] for one in judged] for name in names}
    scores["stopped"] = [float(flag) for flag in stopped]
    return Judgement(
        metrics={name: sum(values) / len(values) for name, values in scores.items()},
        scores=scores,
        outcomes=[one.outcome for one in judged],
        answers=[one.answer for one in judged],
        released_raises=sum(one.raises for one in judged),
    )


def notice(judgement: Judgement, kind: Kind) -> str | None:
    """A sentence for reports where fewer than half of the answers could be read; None otherwise.

    Example:
        >>> row = Problem(id="1", prompt="1+1? ", question="", target="#### 2", answer="2")
        >>> print(notice(judge("math", [row] * 3, ["two", "2", "#### 3"], stopped=[True] * 3), "math"))
        Only 1 of 3 answers holds a number after ####: exact match counts the other 2 as wrong.
    """
    check_kind(kind)
    total, read = len(judgement.answers), sum(answer is not None for answer in judgement.answers)
    what = {"math": "a number after ####", "choice": "a letter of an option", "text": "any text"}[kind]
    metric = "accuracy" if kind == "choice" else "exact match"
    if read == 0:
        because = "because nothing could be read, not because answers were wrong"
        return f"None of the {total} answers holds {what}: {metric} is 0 {because}."
    if 2 * read < total:
        verb = "holds" if read == 1 else "hold"
        return f"Only {read} of {total} answers {verb} {what}: {metric} counts the other {total - read} as wrong."
    return None


def check_kind(kind: str) -> None:
    """Raise ConfigurationError for a kind that is none."""
    if kind not in get_args(Kind):
        raise ConfigurationError(f"`kind` must be one of {list(get_args(Kind))}, got '{kind}'.")


def plain_text(text: str) -> str:
    """Text as answers are compared: white space as single blanks, case folded.

    Example:
        >>> plain_text("  New   York ")
        'new york'
    """
    return " ".join(text.casefold().split())


def _math(problem: Problem, text: str) -> _Judged:
    right = parse_number(problem.answer)
    if right is None:
        raise DataError(f"Row '{problem.id}': the answer of a math problem must be a number, got '{problem.answer}'.")
    answer = strict_answer(text)
    predicted, target = find_steps(text), find_steps(problem.target)
    released = released_math(text, problem.target)
    scores = {
        "exact_match": float(answer == right),
        "flexible_match": float(flexible_answer(text) == right),
        "answered": float(answer is not None),
        **step_metrics(predicted, target),
        **{f"released_{name}": score for name, score in released.metrics.items()},
    }
    outcome = math_outcome(answer, right, predicted, target)
    return _Judged(scores, outcome, None if answer is None else write_number(answer), released.raises)


def _choice(problem: Problem, text: str) -> _Judged:
    letter = chosen_letter(text, problem)
    is_right = letter == problem.answer
    scores = {
        "accuracy": float(is_right),
        "released_accuracy": released_choice(problem.prompt + text, problem.prompt + problem.target),
        "answered": float(letter is not None),
    }
    return _Judged(scores, "unparsed" if letter is None else "correct" if is_right else "wrong", letter)


def _text(problem: Problem, text: str) -> _Judged:
    said = " ".join(text.split())
    is_right = plain_text(text) == plain_text(problem.answer)
    scores = {"exact_match": float(is_right), "answered": float(bool(said))}
    return _Judged(scores, "unparsed" if not said else "correct" if is_right else "wrong", said or None)


def _check_lengths(problems: Sequence[Problem], **others: Sequence[object]) -> None:
    if not problems:
        raise DataError("`problems` must hold at least one problem, got none.")
    for name, values in others.items():
        if len(values) != len(problems):
            raise DataError(
                f"`{name}` must have one entry for each of the {len(problems)} problems, got {len(values)}."
            )
