"""Win rates: which of two answers a judge prefers, asked in both orders."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError
from lossmith.evaluation.judging.answer_files import AnswerRow, AnswerSet, matched, request_text
from lossmith.evaluation.judging.calls import Reply
from lossmith.evaluation.judging.intervals import Level, level
from lossmith.evaluation.judging.judge import Inquiry, Judge, Judged, Judgement
from lossmith.evaluation.judging.length_control import LEAST_ROWS, GamedRows, LengthControlled, length_controlled
from lossmith.evaluation.judging.mt_bench import bounds
from lossmith.evaluation.judging.prompts import STYLES, PairStyle, pair_call
from lossmith.evaluation.judging.verdicts import Verdict, holds_verdict, read_choice

FIRST, SECOND = "model first", "baseline first"
"""The two orders in which every pair is shown."""
LENGTH_CONTROLLED_STYLE = "helpful"
"""The style that AlpacaEval's length-controlled win rate is for."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """What came of one pair."""

    id: str
    """Of the question."""
    category: str
    """Kind of the question; empty where the files do not say."""
    value: float | None
    """Preference for the model, mean over both orders, in [0, 1]; None where a verdict is missing."""
    first: float | None
    """Share of the answer that was shown first, mean over both orders; 0.5 where the order does not matter."""
    length: int
    """Characters of the model's answer."""
    baseline_length: int
    """Characters of the baseline's."""


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """How often a model's answers are preferred to the baseline's."""

    model: str
    """Whose answers."""
    baseline: str
    """Against whose."""
    decided_by: str
    """A judge at an endpoint, a reward model or a likelihood: in words."""
    style: str
    """What was compared: `helpful`, `concise`, or the offline judge's own."""
    win_rate: Level
    """Mean preference for the model, in [0, 1]; 0.5 is a draw."""
    discrete_win_rate: Level
    """The same with each pair as won, lost or drawn."""
    first_preferred: Level | None
    """Mean share of the answer that was shown first: 0.5 without position bias; None for an offline judge."""
    orders_agree: float | None
    """Share of pairs whose winner is the same in both orders."""
    length_controlled: LengthControlled | None
    """The win rate at equal lengths, where it was asked for."""
    no_length_control: str
    """Why there is none, in words."""
    if_missing_were: tuple[float, float]
    """The win rate if every missing verdict were for the baseline, and if it were for the model."""
    missing: dict[str, int]
    """Why verdicts are missing, with how often."""
    pairs: int
    """Pairs with both verdicts."""
    by_logprobs: int
    """Verdicts that are probabilities of the judge; the others are its words."""
    not_asked: int
    """Questions that the asking did not reach."""
    stopped: str
    """Why not all were asked; empty where they were."""
    unmatched: int
    """Answers of either file without a counterpart in the other."""
    mean_lengths: tuple[float, float]
    """Mean characters of the model's and the baseline's answers."""
    suspicious: tuple[str, ...]
    """Ids of pairs with an answer that holds a verdict or a delimiter."""
    preferences: tuple[Preference, ...]
    """Pair by pair."""
    judgements: tuple[Judgement, ...]
    """Verdict by verdict; none of an offline judge."""
    sent: int
    """Requests that this took now."""
    tokens: int
    """Tokens that they cost."""

    def to_dict(self) -> dict[str, Any]:
        """All but the single judgements, for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("judgements", "preferences")}


def judge_pairs(
    answers: AnswerSet,
    baseline: AnswerSet,
    judge: Judge,
    *,
    style: str = "helpful",
    difficulties: Mapping[str, float] | None = None,
    gamed: GamedRows | None = None,
    seed: int = 0,
) -> PairsResult:
    """Let a judge compare the answers of two models to the same questions, each pair in both orders.

    Args:
        answers: Of the model.
        baseline: Of the one to beat: another model, or people.
        judge: Who compares.
        style: `helpful` (AlpacaEval's question, in our words) or `concise` (summaries: accurate, complete, short).
        difficulties: AlpacaEval's instruction difficulties by id, for the length-controlled win rate.
        gamed: AlpacaEval's rows of gamed baselines, for the same.
        seed: Of the bootstraps.

    Raises:
        ConfigurationError: For an unknown style, or difficulties for one that they are not read for.
        DataError: If the files do not belong together, or difficulties are missing for a question.
        JudgeError: If the judge cannot be asked or never keeps to the format.
    """
    pairs = matched(answers, baseline)
    known = chosen_style(style)
    check_tables([ours.id for ours, _ in pairs], style, difficulties, gamed)
    found = judge.ask(comparing(pairs, known, judge))
    preferences = [_preference(ours, theirs, found) for ours, theirs in pairs]
    length_control, why_not = controlled(preferences, style, difficulties, gamed, seed)
    asked = [one for one in found.judgements if one.value is not None]
    first = level([[pair.first] for pair in preferences if pair.first is not None], seed=seed)
    return PairsResult(
        model=answers.model,
        baseline=baseline.model,
        decided_by=f"the judge '{judge.model}'",
        style=style,
        **win_rates(preferences, seed),
        first_preferred=first,
        orders_agree=_agreement(preferences, found),
        length_controlled=length_control,
        no_length_control=why_not,
        if_missing_were=bounds(sum(map(_for_model, asked)), len(asked), found.missing, 0.0, 1.0),
        missing=found.problems,
        by_logprobs=sum(one.by_logprobs for one in asked),
        not_asked=found.not_asked,
        stopped=found.stopped,
        unmatched=unmatched(answers, baseline),
        suspicious=tuple(ours.id for ours, theirs in pairs if _suspicious(ours) or _suspicious(theirs)),
        judgements=found.judgements,
        sent=found.sent,
        tokens=found.tokens,
    )


def comparing(pairs: Sequence[tuple[AnswerRow, AnswerRow]], style: PairStyle, judge: Judge) -> list[Inquiry]:
    """What the judge is asked: every pair in both orders."""
    sampling = judge.sampling(style.reply_tokens, logprobs=True)
    asked: list[Inquiry] = []
    for ours, theirs in pairs:
        request, answer = request_text(ours.turns or theirs.turns, ours.answers)
        _, other = request_text(ours.turns or theirs.turns, theirs.answers)
        for repeat in range(judge.repeats):
            for order, shown in ((FIRST, (answer, other)), (SECOND, (other, answer))):
                call, check = pair_call(style, request, *shown, model=judge.model, sampling=sampling, repeat=repeat)
                part = order + (f", repeat {repeat + 1}" if judge.repeats > 1 else "")
                category = ours.category or theirs.category
                asked.append(
                    Inquiry(id=ours.id, part=part, category=category, call=call, read=_reader(check), checked=True)
                )
    return asked


def chosen_style(name: str) -> PairStyle:
    """The style of that name.

    Raises:
        ConfigurationError: If there is none.
    """
    if name not in STYLES:
        raise ConfigurationError(
            f"`style` must be one of {', '.join(STYLES)}, got '{name}'.{did_you_mean(name, STYLES)}"
        )
    return STYLES[name]


def win_rates(preferences: Sequence[Preference], seed: int) -> dict[str, Any]:
    """Win rates and lengths over the pairs that have a preference."""
    kept = [pair for pair in preferences if pair.value is not None]
    values = [pair.value for pair in kept if pair.value is not None]
    count = max(1, len(kept))
    return {
        "win_rate": level([[value] for value in values], seed=seed),
        "discrete_win_rate": level([[0.5 if value == 0.5 else float(value > 0.5)] for value in values], seed=seed),
        "pairs": len(kept),
        "mean_lengths": (sum(p.length for p in kept) / count, sum(p.baseline_length for p in kept) / count),
        "preferences": tuple(preferences),
    }


def check_tables(
    names: Sequence[str], style: str, difficulties: Mapping[str, float] | None, gamed: GamedRows | None
) -> None:
    """Find before the first call whether the tables of the length-controlled win rate fit.

    Raises:
        ConfigurationError: If the style has no such win rate.
        DataError: If difficulties are missing for a question, or for gamed rows.
    """
    if style != LENGTH_CONTROLLED_STYLE and not (difficulties is None and gamed is None):
        raise ConfigurationError(
            f"`difficulties` and `gamed` are for `style` '{LENGTH_CONTROLLED_STYLE}' alone, got '{style}'."
        )
    if difficulties is not None and not all(math.isfinite(difficulty_of(name, difficulties)) for name in names):
        raise DataError("`difficulties` must be finite numbers.")
    if gamed is not None and difficulties is None:
        raise DataError("`gamed` needs `difficulties`, which its rows are told apart by: give both.")


def controlled(
    preferences: Sequence[Preference],
    style: str,
    difficulties: Mapping[str, float] | None,
    gamed: GamedRows | None,
    seed: int,
) -> tuple[LengthControlled | None, str]:
    """The length-controlled win rate, or why there is none.

    Raises:
        DataError: If difficulties are given, but not for every question.
    """
    if style != LENGTH_CONTROLLED_STYLE:
        return None, "length control is for AlpacaEval's question only"
    kept = [pair for pair in preferences if pair.value is not None]
    given = None if difficulties is None else [difficulty_of(pair.id, difficulties) for pair in kept]
    gaps = {pair.length - pair.baseline_length for pair in kept}
    if len(kept) < LEAST_ROWS:
        return None, f"a length-controlled win rate needs at least {LEAST_ROWS} pairs with both verdicts"
    if len(gaps) == 1 and gaps != {0}:
        return None, "all lengths differ by the same amount, so that their effect cannot be told"
    found = length_controlled(
        [pair.value for pair in kept if pair.value is not None],
        [pair.length for pair in kept],
        [pair.baseline_length for pair in kept],
        difficulties=given,
        gamed=gamed,
        seed=seed,
    )
    return found, ""


def difficulty_of(name: str, difficulties: Mapping[str, float]) -> float:
    """The difficulty of a question, by its id or, as AlpacaEval numbers them, by the number that ends it.

    Raises:
        DataError: If there is none.

    Example:
        >>> difficulty_of("alpaca_eval:7", {"7": -0.25})
        -0.25
    """
    for key in (name, name.rpartition(":")[2]):
        if key in difficulties:
            return difficulties[key]
    raise DataError(f"`difficulties` must hold every question, got none for '{name}'.")


def unmatched(answers: AnswerSet, baseline: AnswerSet) -> int:
    """Answers of either without a counterpart in the other."""
    return len(answers.rows.keys() ^ baseline.rows.keys())


def _reader(check: str) -> Callable[[Reply], Verdict]:
    def read(reply: Reply) -> Verdict:
        return read_choice(reply, check)

    return read


def _suspicious(row: AnswerRow) -> bool:
    return any(map(holds_verdict, row.answers))


def _for_model(one: Judgement) -> float:
    value = math.nan if one.value is None else one.value
    return value if one.part.startswith(FIRST) else 1 - value


def _preference(ours: AnswerRow, theirs: AnswerRow, found: Judged) -> Preference:
    own = found.of(ours.id)
    sides = [[one for one in own if one.part.startswith(order) and one.value is not None] for order in (FIRST, SECOND)]
    value = first = None
    if all(sides):
        shares = [sum(one.value or 0.0 for one in side) / len(side) for side in sides]
        value, first = (shares[0] + 1 - shares[1]) / 2, (shares[0] + shares[1]) / 2
    lengths = [len(request_text(ours.turns or theirs.turns, row.answers)[1]) for row in (ours, theirs)]
    return Preference(
        id=ours.id,
        category=ours.category or theirs.category,
        value=value,
        first=first,
        length=lengths[0],
        baseline_length=lengths[1],
    )


def _agreement(preferences: Sequence[Preference], found: Judged) -> float | None:
    """Share of pairs whose winner is the same, whichever answer is shown first."""
    same = []
    for pair in preferences:
        if pair.value is None:
            continue
        by_order = [
            [_for_model(one) for one in found.of(pair.id) if one.part.startswith(order) and one.value is not None]
            for order in (FIRST, SECOND)
        ]
        winners = [_winner(sum(values) / len(values)) for values in by_order]
        same.append(winners[0] == winners[1])
    return sum(same) / len(same) if same else None


def _winner(share: float) -> int:
    return (share > 0.5) - (share < 0.5)
