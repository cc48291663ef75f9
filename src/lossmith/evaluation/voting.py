"""Several samples of an answer: the most frequent one; and pass rates with intervals."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.evaluation.choices import chosen_letter
from lossmith.evaluation.completions import check_kind, plain_text
from lossmith.evaluation.numbers import flexible_answer, strict_answer
from lossmith.tasks.completion import Kind, Problem


def majority(kind: Kind, problems: Sequence[Problem], samples: Sequence[Sequence[str]]) -> list[str]:
    """For each problem the sample to judge: the first one with the most frequent answer.

    Answers are compared by value (`18` and `$18.00` vote together). Among equally frequent answers the one that came
    first wins. Samples without an answer do not vote; where no sample of a math problem has a number after `####`,
    numbers read as in `flexible_match` vote; where nothing can be read the first sample is taken.

    Args:
        kind: What an answer is: `math`, `choice` or `text`.
        problems: What was asked.
        samples: Generated texts of each problem, at least one each.

    Raises:
        ConfigurationError: If `kind` is unknown.
        DataError: If the lengths differ or a problem has no sample.

    Example:
        >>> row = Problem(id="1", prompt="6*3? ", question="", target="#### 18", answer="18")
        >>> majority("math", [row], [["#### 17", "so #### 18", "#### $18.00"]])
        ['so #### 18']
    """
    check_kind(kind)
    if len(samples) != len(problems):
        raise DataError(f"`samples` must have one entry for each of the {len(problems)} problems, got {len(samples)}.")
    chosen = []
    for problem, texts in zip(problems, samples, strict=True):
        if not texts:
            raise DataError(f"`samples` must hold at least one text for each problem, got none for '{problem.id}'.")
        chosen.append(_vote(_readers(kind, problem), texts))
    return chosen


def pass_rate(scores: Sequence[float]) -> tuple[float, float, float]:
    """Share of examples that pass, with its 95% Wilson interval.

    Args:
        scores: 1 for an example that passes, 0 for one that does not.

    Returns:
        The share, the lower and the upper end, all in [0, 1].

    Raises:
        DataError: If there is no score, or one is neither 0 nor 1.

    Example:
        >>> [round(number, 3) for number in pass_rate([1.0] * 8 + [0.0] * 2)]
        [0.8, 0.49, 0.943]
    """
    if not scores:
        raise DataError("`scores` must hold at least one score, got none.")
    odd = next((score for score in scores if score not in (0, 1)), None)
    if odd is not None:
        raise DataError(f"`scores` must be 0 or 1 for a pass rate, got {odd}.")
    stats = require("scipy.stats", extra="train", purpose="give pass rates an interval")
    passed = sum(score == 1 for score in scores)
    interval = stats.binomtest(passed, len(scores)).proportion_ci(confidence_level=0.95, method="wilson")
    return passed / len(scores), float(interval.low), float(interval.high)


def _readers(kind: Kind, problem: Problem) -> list[Callable[[str], Hashable | None]]:
    if kind == "math":
        return [strict_answer, flexible_answer]
    if kind == "choice":
        return [lambda text: chosen_letter(text, problem)]
    return [lambda text: plain_text(text) or None]


def _vote(readers: Sequence[Callable[[str], Hashable | None]], texts: Sequence[str]) -> str:
    for read in readers:
        answers = [read(text) for text in texts]
        votes = Counter(answer for answer in answers if answer is not None)
        if votes:
            # Counter keeps the order of first appearance and most_common is stable, so the earlier answer wins a tie.
            return texts[answers.index(votes.most_common(1)[0][0])]
    return texts[0]
