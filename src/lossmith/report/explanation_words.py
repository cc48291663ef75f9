"""What was found when models were looked into: measures by loss, their differences over seeds, and sentences."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lossmith.evidence.statistics import PairedComparison, paired_t
from lossmith.explain.faithfulness import RANDOM
from lossmith.explain.text import MISSING, one_line
from lossmith.report.tables import Cell, Column, Table
from lossmith.report.wording import known, p_value
from lossmith.studies.explained_results import ExplainedStudy

FAR = 3
"""The last deciles that count as far, long or hard."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of every run."""

    key: str
    """Machine-readable name."""
    name: str
    """In words."""
    percent: bool
    """Whether it is shown in percent, and its differences in points."""


MEASURES = (
    Measure(key="accuracy", name="accuracy on these examples", percent=True),
    Measure(key="far_accuracy", name=f"accuracy, farthest {FAR} deciles (pretrained distance)", percent=True),
    Measure(key="long_accuracy", name=f"accuracy, longest {FAR} deciles", percent=True),
    Measure(key="ece", name="calibration error (ECE)", percent=True),
    Measure(key="purity", name="neighbourhood purity", percent=False),
    Measure(key="silhouette", name="silhouette", percent=False),
    Measure(key="alignment", name="alignment (lower: class together)", percent=False),
    Measure(key="uniformity", name="uniformity (lower: sphere filled)", percent=False),
    Measure(key="anisotropy", name="anisotropy", percent=False),
    Measure(key="comprehensiveness", name="comprehensiveness, integrated gradients", percent=False),
    Measure(key="sufficiency", name="sufficiency, integrated gradients (lower: faithful)", percent=False),
    Measure(key="hard_share", name=f"share of the gradient on the logits, hardest {FAR} deciles", percent=True),
)
METHODS = {
    "integrated_gradients": "integrated gradients",
    "gradient_x_input": "gradient x input",
    "occlusion": "occlusion",
    RANDOM: "random order",
}
"""Method of attribution -> its name in words."""
FAITHFULNESS = {
    "comprehensiveness": "comprehensiveness (higher: faithful)",
    "sufficiency": "sufficiency (lower: faithful)",
    "infidelity": "infidelity, nats² (lower: faithful; not between losses)",
    "unexplained": "unexplained (lower: faithful)",
}
"""Measure of a method -> header of its column."""
Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Measure -> loss -> seed -> value; what a run does not define is NaN."""


def measured(study: ExplainedStudy) -> dict[str, dict[str, dict[int, float]]]:
    """Every measure of every run."""
    values: dict[str, dict[str, dict[int, float]]] = {
        measure.key: {loss: {} for loss in study.losses} for measure in MEASURES
    }

    def put(key: str, loss: str, seed: int, value: float) -> None:
        values[key][loss][seed] = value

    for run in study.geometry.runs:
        for key in ("purity", "silhouette", "alignment", "uniformity", "anisotropy"):
            put(key, run.model, run.seed, getattr(run, key))
    for loss, seeds in study.calibration.errors.items():
        for seed, error in seeds.items():
            put("ece", loss, seed, error)
    for row in study.faithfulness.rows:
        if row.method == "integrated_gradients":
            put("comprehensiveness", row.model, row.seed, row.comprehensiveness)
            put("sufficiency", row.model, row.seed, row.sufficiency)
    for loss, seeds in study.calibration.errors.items():
        for seed in seeds:
            put("accuracy", loss, seed, _accuracy(study.by_length.parts, loss, seed, first=1))
            last = study.by_length.bins - FAR + 1
            put("long_accuracy", loss, seed, _accuracy(study.by_length.parts, loss, seed, first=last))
            put("far_accuracy", loss, seed, _accuracy(study.by_common_distance.parts, loss, seed, first=last))
            hard = [
                row["share"]
                for row in study.weights.rows
                if (row["model"], row["seed"], row["place"]) == (loss, seed, "logits")
                and row["decile"] > study.weights.bins - FAR
            ]
            put("hard_share", loss, seed, sum(hard) if hard else math.nan)
    return values


def _accuracy(parts: object, loss: str, seed: int, *, first: int) -> float:
    """Accuracy of the deciles from `first` on, weighted by their counts."""
    own = [
        part
        for part in parts  # pyright: ignore[reportGeneralTypeIssues]
        if part.model == loss and part.seed == seed and part.decile >= first and part.count
    ]
    count = sum(part.count for part in own)
    return sum(part.count * part.accuracy for part in own) / count if count else math.nan


def compared(values: Mapping[str, Mapping[int, float]], baseline: str, loss: str) -> PairedComparison | None:
    """The paired difference of one measure over the seeds that both know."""
    seeds = [seed for seed in values[loss] if known(values[loss][seed]) and known(values[baseline].get(seed))]
    if loss == baseline or not seeds:
        return None
    return paired_t([values[baseline][seed] for seed in seeds], [values[loss][seed] for seed in seeds])


def measures_table(study: ExplainedStudy, values: Values) -> Table:
    """One row per measure and loss: the mean, and the difference to the baseline with its interval over seeds."""
    rows = [(measure, loss) for measure in MEASURES for loss in study.losses]
    pairs = [compared(values[measure.key], study.baseline, loss) for measure, loss in rows]
    means = [_mean(values[measure.key][loss]) for measure, loss in rows]

    def cells(give: Callable[[int], tuple[str, str | float | None]]) -> tuple[Cell, ...]:
        return tuple(Cell(text=text, value=value) for text, value in (give(place) for place in range(len(rows))))

    return Table(
        columns=(
            Column(
                name="measure",
                header="measure",
                numeric=False,
                cells=cells(lambda i: (rows[i][0].name, rows[i][0].key)),
            ),
            Column(
                name="loss", header="loss", numeric=False, cells=cells(lambda i: (one_line(rows[i][1]), rows[i][1]))
            ),
            Column(
                name="mean", header="mean over seeds", cells=cells(lambda i: (_level(means[i], rows[i][0]), means[i]))
            ),
            Column(
                name="difference",
                header=f"difference to {one_line(study.baseline)} [95% interval]",
                cells=cells(lambda i: (_gap(pairs[i], rows[i][0]), None if pairs[i] is None else pairs[i].difference)),  # pyright: ignore[reportOptionalMemberAccess]
            ),
        )
    )


def faithfulness_table(study: ExplainedStudy) -> Table:
    """One row per method of attribution and loss: means over seeds of what says how faithful its weights are."""
    methods = [method for method in METHODS if any(row.method == method for row in study.faithfulness.rows)]
    rows = [(method, loss) for method in methods for loss in study.losses]

    def mean(measure: str, method: str, loss: str) -> float | None:
        own = [row for row in study.faithfulness.rows if (row.method, row.model) == (method, loss)]
        return _mean({row.seed: getattr(row, measure) for row in own})

    def cell(value: float | None) -> Cell:
        return Cell(text=MISSING if value is None else f"{value:.3f}", value=value)

    return Table(
        columns=(
            Column(
                name="method",
                header="method",
                numeric=False,
                cells=tuple(Cell(text=METHODS[method], value=method) for method, _ in rows),
            ),
            Column(
                name="loss",
                header="loss",
                numeric=False,
                cells=tuple(Cell(text=one_line(loss), value=loss) for _, loss in rows),
            ),
            *(
                Column(name=measure, header=header, cells=tuple(cell(mean(measure, *row)) for row in rows))
                for measure, header in FAITHFULNESS.items()
            ),
        )
    )


def findings(study: ExplainedStudy, values: Values) -> list[str]:
    """One sentence per loss on what differs from the baseline beyond the spread of its seeds."""
    said = []
    for loss in study.losses[1:]:
        clear = []
        for measure in MEASURES:
            pairs = compared(values[measure.key], study.baseline, loss)
            # Without spread there is no interval, and nothing to be clear about.
            spread = pairs is not None and known(pairs.low) and pairs.low < pairs.high
            if spread and (pairs.low > 0 or pairs.high < 0):  # pyright: ignore[reportOptionalMemberAccess]
                clear.append(f"{measure.name} {_gap(pairs, measure)}{' points' if measure.percent else ''}")
        if len(study.seeds) < 2:
            said.append(
                f"{loss}: with one seed nothing is known of the spread, so no difference to {study.baseline} can be "
                f"told from that of another training."
            )
        elif clear:
            said.append(f"{loss} against {study.baseline}, mean of {len(study.seeds)} seeds: {'; '.join(clear)}.")
        else:
            said.append(
                f"{loss}: over {len(study.seeds)} seeds no measure differs from {study.baseline} beyond its interval."
            )
    return said


def disagreement_sentences(study: ExplainedStudy) -> list[str]:
    """One sentence per loss on the examples that it gets right or wrong where the baseline does not."""
    said = []
    for one in study.disagreements.losses:
        gained, lost = (sum(map(len, by.values())) for by in (one.gained, one.lost))
        test = "" if one.pooled is None else f"; test by example p = {p_value(one.pooled.p_value)}"
        several = len(one.gained) > 1
        steady = sum(count == len(one.gained) for _, count in one.steady())
        said.append(
            f"{one.model} gets {gained} {'example' if gained == 1 else 'examples'} right that {study.baseline} gets "
            f"wrong and {lost} the other way round"
            + (f", {len(one.gained)} seeds added up" if several else "")
            + test
            + (f"; {steady} are gained in every seed." if several else ".")
        )
    return said


def stability_sentences(study: ExplainedStudy) -> list[str]:
    """One sentence per loss on how alike its seeds weigh tokens."""
    said = []
    for loss in study.losses:
        own = [
            pair
            for pair in study.stability.pairs
            if pair.model == loss and pair.method == "integrated_gradients" and known(pair.correlation)
        ]
        if own:
            values = [pair.correlation for pair in own]
            said.append(
                f"{loss}: two seeds rank the tokens of a text alike with a correlation of {sum(values) / len(own):.2f} "
                f"(from {min(values):.2f} to {max(values):.2f} over {len(own)} "
                f"{'pair' if len(own) == 1 else 'pairs'} of seeds; 1 is the same order)."
            )
    return said


def _mean(values: Mapping[int, float]) -> float | None:
    finite = [value for value in values.values() if known(value)]
    return sum(finite) / len(finite) if finite else None


def _number(value: float, measure: Measure) -> str:
    shown = f"{100 * value:.1f}" if measure.percent else f"{value:.3f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown


def _level(value: float | None, measure: Measure) -> str:
    return MISSING if value is None else _number(value, measure) + ("%" if measure.percent else "")


def _gap(pairs: PairedComparison | None, measure: Measure) -> str:
    if pairs is None:
        return MISSING
    sign = "+" if pairs.difference > 0 else ""
    interval = ""
    if pairs.low == pairs.high:
        interval = f" (all {pairs.blocks})"
    elif known(pairs.low) and known(pairs.high):
        interval = f" [{_number(pairs.low, measure)}, {_number(pairs.high, measure)}]"
    return f"{sign}{_number(pairs.difference, measure)}{interval}"
