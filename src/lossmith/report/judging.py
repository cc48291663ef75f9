"""Results of judges as files and as lines for a terminal."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lossmith.errors import EvidenceError
from lossmith.evaluation.judging import Level, MtBenchComparison, MtBenchResult, PairsResult
from lossmith.evaluation.judging.judge import Judgement
from lossmith.evidence import write_atomically
from lossmith.evidence.serialisation import differing_settings
from lossmith.report.tables import Table, raw_column, to_csv

AnyResult = MtBenchResult | PairsResult
SIDES = ("answers", "baseline")
"""The arguments of the command whose answers are graded, in the order of their results."""


def write_judging(
    folder: Path,
    results: Sequence[AnyResult],
    comparison: MtBenchComparison | None,
    *,
    settings: dict[str, Any],
    identity: dict[str, Any],
) -> None:
    """Write `results.json`, `results.csv` and `judgements.jsonl` into the folder, each whole or not at all.

    Args:
        folder: Where to.
        results: Of the answers and, where it was graded, of the baseline.
        comparison: Of the two.
        settings: All of the command.
        identity: Those that the results depend on, as `check_same_settings` compares them.

    Raises:
        EvidenceError: If a file cannot be written.
    """
    values = {
        "settings": settings,
        "identity": identity,
        "results": [result.to_dict() for result in results],
        "comparison": comparison and comparison.to_dict(),
    }
    write_atomically(folder / "results.json", json.dumps(_strict(values), indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "results.csv", to_csv(_csv(results, comparison)))
    write_judgements(folder, [(result.model, result.judgements or _offline(result)) for result in results])


def check_same_settings(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder with results of other settings, before anything is asked or written over.

    Raises:
        EvidenceError: If there are some; names what differs.
    """
    path, store = folder / "results.json", folder / "replies.sqlite"
    if not path.is_file():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["identity"]
        different = differing_settings(there, identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"`{path}` holds no results of this `lossmith judge`: choose another --out.") from error
    if different:
        keep = f" (--cache {store} keeps the replies)" if store.is_file() else ""
        raise EvidenceError(
            f"`{folder}` holds results of other settings ({'; '.join(different)}): choose another --out{keep}, or the "
            f"same settings."
        )


def write_judgements(folder: Path, judgements: Sequence[tuple[str, Sequence[Judgement]]]) -> None:
    """Write `judgements.jsonl`, a line for each judgement, with the side and the model whose answer it is about.

    Args:
        folder: Where to.
        judgements: Model and judgements of the answers, then of the baseline. Both may have one name.

    Raises:
        EvidenceError: If it cannot be written.
    """
    sides = zip(SIDES, judgements, strict=False)
    lines = [{"side": side, "model": model, **asdict(one)} for side, (model, own) in sides for one in own]
    text = "".join(json.dumps(_strict(line), ensure_ascii=False) + "\n" for line in lines)
    write_atomically(folder / "judgements.jsonl", text)


def judging_lines(results: Sequence[AnyResult], comparison: MtBenchComparison | None) -> list[str]:
    """What a person reads of the results."""
    lines: list[str] = []
    for result in results:
        lines += _mt_bench(result) if isinstance(result, MtBenchResult) else _pairs(result)
    if comparison is not None:
        p_value = comparison.paired.p_value
        lines.append(
            f"{comparison.model} - {comparison.baseline}: {comparison.difference.shown()} points over "
            f"{_count(comparison.difference.questions, 'question')}; paired t p = {p_value:.3f}, sign-flip p = "
            f"{comparison.paired.sign_flip_p:.3f}"
        )
    return lines


def judging_notices(results: Sequence[AnyResult]) -> list[str]:
    """What must be known of the results: missing verdicts with their effect, suspicious answers, what was not asked."""
    return list(dict.fromkeys(notice for result in results for notice in _notices(result)))


def _mt_bench(result: MtBenchResult) -> Iterator[str]:
    first, second = result.turns
    yield (
        f"{result.model}: MT-Bench {result.score.shown()} (1 to 10, judge '{result.judge}', "
        f"{_count(result.score.questions, 'question')}); turn 1 {first.shown()}, turn 2 {second.shown()}"
    )
    for name, own in result.categories.items():
        yield f"  {name}: {own.shown()}"


def _pairs(result: PairsResult) -> Iterator[str]:
    yield (
        f"{result.model} against {result.baseline}, by {result.decided_by}: win rate "
        f"{_percent(result.win_rate)} over {_count(result.pairs, 'pair')}; pairs won outright "
        f"{_percent(result.discrete_win_rate)}"
    )
    if result.length_controlled is not None:
        yield f"  length-controlled win rate {_percent(result.length_controlled.win_rate)}"
        yield f"  {result.length_controlled.says}"
    elif result.style == "helpful":
        yield f"  no length-controlled win rate: {result.no_length_control}"
    if result.first_preferred is not None and result.orders_agree is not None:
        yield (
            f"  the answer shown first is preferred {_percent(result.first_preferred)} (50% without position bias); "
            f"both orders agree on {100 * result.orders_agree:.0f}% of pairs"
        )
    ours, theirs = result.mean_lengths
    yield f"  mean length {ours:,.0f} characters, baseline {theirs:,.0f}"


def _notices(result: AnyResult) -> Iterator[str]:
    missing = sum(result.missing.values())
    if missing:
        scale, unit = (1.0, "") if isinstance(result, MtBenchResult) else (100.0, "%")
        low, high = (f"{value * scale:.2f}{unit}" for value in result.if_missing_were)
        why = ", ".join(f"{count} x {reason}" for reason, count in result.missing.items())
        level = "score" if isinstance(result, MtBenchResult) else "win rate"
        yield (
            f"{_count(missing, 'verdict')} of '{result.model}' are missing and not in the means ({why}); the {level} "
            f"would be {low} if all were the worst, {high} if all were the best."
        )
    if result.not_asked:
        yield f"{_count(result.not_asked, 'question')} were not asked: {result.stopped}. The same command continues."
    if isinstance(result, MtBenchResult) and result.unanswered:
        yield f"'{result.model}' did not answer {_count(result.unanswered, 'question')} of the benchmark."
    if isinstance(result, PairsResult) and result.unmatched:
        yield f"{_count(result.unmatched, 'answer')} have no counterpart in the other file and were left out."
    if isinstance(result, MtBenchResult) and result.asked_with_check:
        yield (
            f"{_count(result.asked_with_check, 'turn')} of '{result.model}' were asked with a check word behind the "
            f"published prompt, since an answer in them holds a verdict or a delimiter of it."
        )
    if result.suspicious:
        shown = ", ".join(result.suspicious[:5])
        yield (
            f"{_count(len(result.suspicious), 'question')} have an answer that holds a verdict or a delimiter of the "
            f"prompt ({shown}): read what the judge made of them in judgements.jsonl."
        )


def _csv(results: Sequence[AnyResult], comparison: MtBenchComparison | None) -> Table:
    rows = [(side, *row) for side, result in zip(SIDES, results, strict=False) for row in _rows(result)]
    if comparison is not None:
        difference = f"{comparison.model} - {comparison.baseline}"
        rows.append(("answers - baseline", difference, "difference", comparison.difference))
    columns = {
        "side": [side for side, *_ in rows],
        "model": [model for _, model, _, _ in rows],
        "what": [what for _, _, what, _ in rows],
        "mean": [own.mean for *_, own in rows],
        "low": [own.low for *_, own in rows],
        "high": [own.high for *_, own in rows],
        "questions": [float(own.questions) for *_, own in rows],
    }
    return Table(columns=tuple(raw_column(name, values) for name, values in columns.items()))


def _rows(result: AnyResult) -> Iterator[tuple[str, str, Level]]:
    if isinstance(result, MtBenchResult):
        yield result.model, "score", result.score
        yield result.model, "turn 1", result.turns[0]
        yield result.model, "turn 2", result.turns[1]
        for name, own in result.categories.items():
            yield result.model, name, own
        return
    yield result.model, "win rate", result.win_rate
    yield result.model, "discrete win rate", result.discrete_win_rate
    if result.length_controlled is not None:
        yield result.model, "length-controlled win rate", result.length_controlled.win_rate
    if result.first_preferred is not None:
        yield result.model, "first shown preferred", result.first_preferred


def _offline(result: AnyResult) -> list[Judgement]:
    if isinstance(result, MtBenchResult):
        return []
    return [
        Judgement(
            id=pair.id,
            part=result.style,
            category=pair.category,
            value=pair.value,
            problem="",
            by_logprobs=False,
            reply="",
            key="",
            asked=True,
            checked=False,
        )
        for pair in result.preferences
    ]


def _strict(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    return [_strict(one) for one in value] if isinstance(value, list | tuple) else value


def _percent(level: Level) -> str:
    """Such as `54.2% [29.2, 83.3]`."""
    shown = level.shown(scale=100, decimals=1)
    if math.isnan(level.mean):
        return shown
    mean, _, interval = shown.partition(" ")
    return f"{mean}% {interval}".rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
