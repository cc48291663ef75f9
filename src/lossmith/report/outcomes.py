"""What became of the answers of a language model: shares of outcomes per loss, and which errors each loss mends."""

from collections import Counter
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary
from lossmith.explain.canvas import (
    PAPER,
    WIDTH_IN,
    figure_label,
    house_style,
    margin_note,
    message_figure,
    row_axes,
)
from lossmith.explain.text import one_line
from lossmith.report.tables import Cell, Column, Table

CORRECT = ("correct", "correct_other_steps")
"""Outcomes in which the answer is right."""
COLOURS = {
    "correct": "#009e73",
    "correct_other_steps": "#8fd3bd",
    "wrong_final_answer": "#f0e0a0",
    "wrong_result": "#e69f00",
    "wrong_operators": "#d55e00",
    "inverted_operands": "#f2a679",
    "wrong_operands": "#9e3d22",
    "missing_steps": "#0072b2",
    "extra_steps": "#8cc5ea",
    "wrong": "#d55e00",
    "unparsed": "#7a8290",
}
"""Outcome -> colour, in the order of the bars: neighbours differ in lightness, so they can be told without hue."""
OTHER_COLOUR = "#b9a3c9"
DARK_TEXT, LIGHT_TEXT = "#0d1117", "#fdfdfd"
ROOM_FOR_TEXT = 0.055
"""A share from here on is written into its bar."""


def outcome_counts(records: Sequence[RunRecord], losses: Sequence[str]) -> dict[str, Counter[str]]:
    """Loss -> outcome -> test answers of its finished runs; a loss without any is left out."""
    counts = {
        loss: Counter(
            outcome
            for record in records
            if record.loss == loss and record.status == "finished"
            for outcome in record.outcomes
        )
        for loss in losses
    }
    return {loss: found for loss, found in counts.items() if found}


def in_order(outcomes: Iterable[str]) -> list[str]:
    """The outcomes once each, right ones first and unreadable ones last; those that are not known come before these.

    Example:
        >>> in_order(["vague", "unparsed", "wrong_result", "correct", "vague"])
        ['correct', 'wrong_result', 'vague', 'unparsed']
    """
    order = list(COLOURS)
    last = len(order) - 1
    places = {name: place if place < last else last + 1 for place, name in enumerate(order)}
    return sorted(set(outcomes), key=lambda name: (places.get(name, last), name))


def outcome_name(outcome: str) -> str:
    """An outcome in words.

    Example:
        >>> outcome_name("correct_other_steps"), outcome_name("unparsed"), outcome_name("missing_steps")
        ('correct, other steps', 'no answer found', 'missing steps')
    """
    known = {"correct_other_steps": "correct, other steps", "unparsed": "no answer found"}
    return known.get(outcome) or one_line(outcome).replace("_", " ")


@house_style()
def outcomes_figure(records: Sequence[RunRecord], losses: Sequence[str]) -> Figure:
    """One bar per loss, divided by what became of its test answers, all seeds added up."""
    counts = outcome_counts(records, losses)
    if not counts:
        return message_figure("No run finished, so there is no answer to count.")
    outcomes = in_order([outcome for found in counts.values() for outcome in found])
    legend_rows = -(-len(outcomes) // 4)
    figure = Figure(figsize=(WIDTH_IN, 1.2 + 0.5 * len(counts) + 0.26 * legend_rows), layout="constrained")
    axes = row_axes(figure, list(counts))
    for height, found in enumerate(reversed(list(counts.values()))):
        start, total = 0.0, found.total()
        for outcome in outcomes:
            share = found[outcome] / total
            colour = COLOURS.get(outcome, OTHER_COLOUR)
            axes.barh(height, 100 * share, left=100 * start, height=0.62, color=colour, edgecolor=PAPER, linewidth=0.8)
            if share >= ROOM_FOR_TEXT:
                middle = 100 * (start + share / 2)
                ink = _text_on(colour)
                axes.text(middle, height, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=9)
            start += share
        margin_note(axes, height, f"{total:,}\nanswers")
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of test answers (%), finished seeds added up")
    patches = [Patch(color=COLOURS.get(outcome, OTHER_COLOUR)) for outcome in outcomes]
    legend = figure.legend(patches, [str(i) for i in range(len(outcomes))], loc="outside lower left", ncols=4)
    # Set afterwards: matplotlib leaves out legend entries whose text begins with an underscore.
    for text, outcome in zip(legend.get_texts(), outcomes, strict=True):
        text.set_text(figure_label(outcome_name(outcome), width=24, lines=1))
        text.set_fontsize(9)
    return figure


def mended_table(summary: StudySummary, records: Sequence[RunRecord]) -> Table | None:
    """Of each class of error, how many of the baseline's a loss mends and how many right answers it spoils into it.

    Answers are paired by seed and test example; runs on different test sets make no pair. None where there is no pair
    with an error.
    """
    runs = {(run.loss, run.seed): run.outcomes for run in records if run.status == "finished" and run.outcomes}
    flows: dict[str, Counter[tuple[str, str]]] = {}
    for row in summary.rows:
        pairs = [
            pair
            for seed in summary.seeds
            if not row.is_baseline and (row.loss, seed) in runs and (summary.baseline, seed) in runs
            if len(runs[row.loss, seed]) == len(runs[summary.baseline, seed])
            for pair in zip(runs[summary.baseline, seed], runs[row.loss, seed], strict=True)
        ]
        if pairs:
            flows[row.loss] = Counter(pairs)
    errors = in_order([name for found in flows.values() for pair in found for name in pair if name not in CORRECT])
    if not errors:
        return None
    columns = [_flow_column(error, flows) for error in errors]
    losses = tuple(Cell(text=one_line(loss), value=loss) for loss in flows)
    return Table(columns=(Column(name="loss", header="loss", cells=losses, numeric=False), *columns))


def _flow_column(error: str, flows: dict[str, Counter[tuple[str, str]]]) -> Column:
    cells = []
    for found in flows.values():
        mended = sum(found[error, right] for right in CORRECT)
        made = sum(found[right, error] for right in CORRECT)
        cells.append(Cell(text=f"{mended} / {made}", value=mended - made))
    return Column(name=error, header=outcome_name(error), cells=tuple(cells))


def _text_on(colour: str) -> str:
    """Dark or light letters, by the lightness of what is under them."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return DARK_TEXT if 0.299 * red + 0.587 * green + 0.114 * blue > 95 else LIGHT_TEXT
