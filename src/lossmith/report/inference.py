"""The inference section of a classification's report: losses by ways to read off a class, and calibration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lossmith.errors import LossmithError
from lossmith.evidence.metrics import (
    CALIBRATION_METRICS,
    METHOD_METRICS,
    METHOD_PREFIXES,
    metric_style,
    split_metric,
)
from lossmith.evidence.records import RunRecord
from lossmith.evidence.statistics import PairedComparison, paired_t
from lossmith.evidence.summary import StudySummary
from lossmith.explain.text import MISSING, one_line
from lossmith.nn import Term, parse_composition
from lossmith.report.tables import Table, number_column, raw_column, text_column, to_markdown
from lossmith.report.wording import decimal, difference_with_interval, level, level_unit, metric_name

OWN_PROXIES, CLASS_MEANS = "proxies (learnt)", "proxies (class means)"
"""What the method `proxies` is for a loss that owns proxies, and for one that does not."""
UNTRAINED = "untrained head"
"""What stands for the head where a loss reads embeddings only: it stays as it was drawn."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One metric of one loss by one method."""

    loss: str
    """The loss."""
    method: str
    """One of `METHOD_PREFIXES`."""
    metric: str
    """Its name without the method's prefix."""
    values: dict[int, float]
    """Seed -> value, for the finished runs that have it."""
    same: PairedComparison | None
    """Against the baseline by the same method; None for the baseline."""
    plain: PairedComparison | None
    """Against the baseline's head; None for that itself."""

    @property
    def mean(self) -> float | None:
        """Over `values`."""
        return math.fsum(self.values.values()) / len(self.values) if self.values else None


@dataclass(frozen=True, kw_only=True)
class InferenceParts:
    """What the section shows."""

    table: Table
    """Losses by methods, for people."""
    calibration: Table
    """Losses by metrics of calibration, for people."""
    raw: Table
    """Every metric of both, for machines."""
    methods: tuple[tuple[str, str], ...]
    """What a reader must know of each method: its name and words."""
    comparisons: str
    """How many differences the first table holds, in words."""
    untrained: frozenset[str] = frozenset()
    """Losses that read embeddings only, which leaves the head as it was drawn."""

    @property
    def markdown(self) -> str:
        """The section as Markdown."""
        words = "\n".join(f"- {name}: {said}" for name, said in self.methods)
        return f"{to_markdown(self.table)}\n{words}\n\n{self.comparisons}\n\n{to_markdown(self.calibration)}"


def inference_parts(summary: StudySummary, records: Sequence[RunRecord]) -> InferenceParts | None:
    """The section; None where no finished run knows another method than the head."""
    finished = [run for run in records if run.status == "finished"]
    others = [prefix for prefix in METHOD_PREFIXES.values() if prefix]
    if not any(f"{prefix}accuracy" in run.metrics for run in finished for prefix in others):
        return None
    losses = [row.loss for row in summary.rows]
    name = split_metric(summary.metric)[1]
    deciding = name if name in METHOD_METRICS[:3] else "accuracy"
    found = {
        (loss, method, metric): _answered(finished, loss, method, metric, summary.baseline)
        for loss in losses
        for method in METHOD_PREFIXES
        for metric in dict.fromkeys((*METHOD_METRICS, *(CALIBRATION_METRICS if method == "head" else ())))
    }
    return InferenceParts(
        table=_method_table(found, losses, deciding, summary.baseline),
        calibration=_calibration_table(found, losses, finished, summary.baseline),
        raw=_raw_table([answered for answered in found.values() if answered.values]),
        methods=_methods(losses, finished),
        comparisons=_comparisons(found, losses, deciding, summary.baseline),
        untrained=frozenset(loss for loss in losses if _leaves_head(loss)),
    )


def ways_table(summary: StudySummary, records: Sequence[RunRecord]) -> Table | None:
    """The deciding kind of metric by loss and way of inference, for the terminal; None where there is one way."""
    parts = inference_parts(summary, records)
    if parts is None:
        return None
    name = split_metric(summary.metric)[1]
    metric = name if name in METHOD_METRICS else "accuracy"
    place = next(number for number, column in enumerate(parts.table.columns) if column.name == metric)
    means = {(str(row[0].value), str(row[1].value)): row[place] for row in parts.table.rows}
    losses = list(dict.fromkeys(loss for loss, _ in means))
    return Table(
        columns=(
            text_column("ways", f"{metric_name(metric)} by", [(loss, loss) for loss in losses]),
            *(
                number_column(method, method, [(means[loss, method].text, None) for loss in losses])
                for method in METHOD_PREFIXES
            ),
        )
    )


def by_loss(table: Table) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The table of methods by loss: the loss, and per method its name and the cells behind it."""
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for loss, method, *numbers in table.rows:
        groups.setdefault(str(loss.value), []).append((method.text, [cell.text for cell in numbers]))
    return list(groups.items())


def method_name(loss: str, method: str) -> str:
    """The method as a row names it: the proxies say whose they are, and the head whether it was trained."""
    if method == "proxies":
        return {True: OWN_PROXIES, False: CLASS_MEANS, None: method}[_owns_proxies(loss)]
    if method in ("head", "mixture") and _leaves_head(loss):
        return UNTRAINED if method == "head" else f"{method} ({UNTRAINED})"
    return method


def _owns_proxies(loss: str) -> bool | None:
    """Whether the trained loss asks its own; None for a loss that this installation does not know."""
    terms = _terms(loss)
    # The last phase of a schedule is what training ends with.
    final = [term for term in terms if term.phase == terms[-1].phase]
    return any(term.record.class_scores is not None for term in final) if terms else None


def _leaves_head(loss: str) -> bool:
    """Whether no term reads logits, so that the head is never trained."""
    terms = _terms(loss)
    return bool(terms) and all(term.record.family == "metric" for term in terms)


def _terms(loss: str) -> tuple[Term, ...]:
    try:
        return parse_composition(loss).terms
    except LossmithError:
        return ()


def _answered(records: Sequence[RunRecord], loss: str, method: str, metric: str, baseline: str) -> Answered:
    name = METHOD_PREFIXES[method] + metric
    values = _by_seed(records, loss, name)
    same = None if loss == baseline else _paired(_by_seed(records, baseline, name), values, metric)
    is_plain = loss == baseline and method == "head"
    plain = None if is_plain else _paired(_by_seed(records, baseline, metric), values, metric)
    return Answered(loss=loss, method=method, metric=metric, values=values, same=same, plain=plain)


def _by_seed(records: Sequence[RunRecord], loss: str, metric: str) -> dict[int, float]:
    return {
        run.seed: run.metrics[metric]
        for run in records
        if run.loss == loss and math.isfinite(run.metrics.get(metric, math.nan))
    }


def _paired(before: dict[int, float], after: dict[int, float], metric: str) -> PairedComparison | None:
    seeds = [seed for seed in after if seed in before]
    if not seeds:
        return None
    pairs = [before[seed] for seed in seeds], [after[seed] for seed in seeds]
    return paired_t(*pairs, higher_is_better=metric_style(metric).higher_is_better)


Found = dict[tuple[str, str, str], Answered]


def _method_table(found: Found, losses: Sequence[str], deciding: str, baseline: str) -> Table:
    rows = [(loss, method) for loss in losses for method in METHOD_PREFIXES]
    named = one_line(baseline)
    unit = metric_style(deciding).unit
    shown = {metric: [found[loss, method, metric] for loss, method in rows] for metric in METHOD_METRICS}
    return Table(
        columns=(
            text_column("loss", "loss", [(loss, loss) for loss, _ in rows]),
            text_column("method", "class by", [(method_name(loss, method), method) for loss, method in rows]),
            *(
                number_column(
                    metric, f"{metric_name(metric)} ({level_unit(metric)})", [_mean(one) for one in shown[metric]]
                )
                for metric in METHOD_METRICS
            ),
            number_column(
                "same",
                f"{metric_name(deciding)} against {named}, same way [95% interval] ({unit})",
                [_difference(one, one.same, "baseline") for one in shown[deciding]],
            ),
            number_column(
                "plain",
                f"{metric_name(deciding)} against the head of {named} [95% interval] ({unit})",
                [_difference(one, one.plain, "its head") for one in shown[deciding]],
            ),
        )
    )


def _calibration_table(found: Found, losses: Sequence[str], records: Sequence[RunRecord], baseline: str) -> Table:
    temperatures = {loss: _temperature([run for run in records if run.loss == loss]) for loss in losses}
    named = [f"{loss} ({UNTRAINED})" if _leaves_head(loss) else loss for loss in losses]
    columns = [text_column("loss", "loss", list(zip(named, losses, strict=True)))]
    for metric in CALIBRATION_METRICS:
        answered = [found[loss, "head", metric] for loss in losses]
        columns.append(
            number_column(metric, f"{metric_name(metric)} ({level_unit(metric)})", [_mean(a) for a in answered])
        )
    calibrated = [found[loss, "head", "calibrated_nll"] for loss in losses]
    columns.append(
        number_column(
            "difference",
            f"calibrated NLL against {one_line(baseline)} [95% interval] (nats)",
            [_difference(one, one.same, "baseline") for one in calibrated],
        )
    )
    columns.append(number_column("temperature", "temperature", [(decimal(t, 2), t) for t in temperatures.values()]))
    return Table(columns=tuple(columns))


def _temperature(records: Sequence[RunRecord]) -> float | None:
    """The mean temperature of the head; None where none was fitted."""
    fitted = [(run.config.get("temperatures") or {}).get("head") for run in records]
    kept = [float(value) for value in fitted if isinstance(value, int | float) and math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else None


def _raw_table(rows: Sequence[Answered]) -> Table:
    """A row per loss, method and metric: fractions instead of percent, every number in its own column."""
    columns = [raw_column(name, [getattr(row, name) for row in rows]) for name in ("loss", "method", "metric")]
    columns.append(raw_column("mean", [row.mean for row in rows]))
    columns.append(raw_column("seeds", [len(row.values) for row in rows]))
    for prefix, pairs in (("same_method", [row.same for row in rows]), ("baseline_head", [row.plain for row in rows])):
        for name in ("difference", "low", "high", "p_value"):
            columns.append(raw_column(f"{prefix}_{name}", [one and getattr(one, name) for one in pairs]))
    return Table(columns=tuple(columns))


def _methods(losses: Sequence[str], records: Sequence[RunRecord]) -> tuple[tuple[str, str], ...]:
    own = [bool(_owns_proxies(loss)) for loss in losses]
    proxies = {
        (True, True): (
            "the class whose proxies score best; a loss with proxies of its own brings those that it learnt, and for "
            "the others the proxy of a class is the mean embedding of its training texts"
        ),
        (True, False): "the class whose learnt proxies score best",
        (False, True): (
            "the class with the nearest proxy; none of these losses owns proxies, so the proxy of a class is the mean "
            "embedding of its training texts"
        ),
    }[any(own), not all(own)]
    return (
        ("head", f"the classification layer, as every classifier is used{_untrained(losses)}"),
        ("proxies", proxies),
        ("mixture", f"the class with the highest weighted mean of both probabilities{_shares(records)}"),
        ("neighbours", "the class of the training text with the nearest embedding (cosine)"),
    )


def _untrained(losses: Sequence[str]) -> str:
    left = [one_line(loss) for loss in losses if _leaves_head(loss)]
    if not left:
        return ""
    return (
        f"; {', '.join(left)} read{'s' if len(left) == 1 else ''} embeddings only, so the head stays as it was drawn: "
        f"its numbers, their calibration and a mixture with them say nothing of the loss"
    )


def _shares(records: Sequence[RunRecord]) -> str:
    """The weights of the mixture, where all runs share and record them."""
    heads = {run.config.get("mixture") for run in records}
    head = heads.pop() if len(heads) == 1 else None
    return f", {head:g} of the head's and {1 - head:g} of the proxies'" if isinstance(head, int | float) else ""


def _comparisons(found: Found, losses: Sequence[str], deciding: str, baseline: str) -> str:
    """How many different differences the table of methods shows."""
    count = 0
    for (loss, method, metric), answered in found.items():
        if metric == deciding:
            count += answered.same is not None
            # The head against the baseline's head is in both columns.
            count += answered.plain is not None and not (method == "head" and loss != baseline)
    return (
        f"{count} different comparisons: the intervals describe, each alone, and are not corrected for their number, "
        f"so some of so many exclude 0 by chance. Only the metric that the study was started with is decided by Holm's "
        f"correction, above."
    )


def _mean(answered: Answered) -> tuple[str, float | None]:
    return level(answered.mean, answered.metric), answered.mean


def _difference(answered: Answered, pairs: PairedComparison | None, itself: str) -> tuple[str, float | None]:
    if pairs is None:
        return (itself if answered.values else MISSING), None
    return difference_with_interval(pairs, answered.metric), pairs.difference
