"""Confusion matrices: one panel per loss, all seeds added up."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lossmith.evaluation import confusion_matrix
from lossmith.evidence.records import RunRecord
from lossmith.explain.canvas import WIDTH_IN, figure_label, house_style, message_figure

MAX_WRITTEN_CLASSES = 12
"""Up to here cells carry their counts and axes the names of the classes."""
ROOMY_CLASSES = 4
"""Up to here cells have room for a share as well, and panels can be small."""
UNPARSED = "unparsed"
"""Last class of answers that name no option; no example truly is of it, so it has a column and no row."""
# One hue, from light to dark at even steps; cell text is dark or light by the share under it, in dark mode too.
SHARES = LinearSegmentedColormap.from_list("shares", ["#f2f6fa", "#9cc4e0", "#3b83b6", "#0b3c66"])
DARK_TEXT, LIGHT_TEXT = "#0d1117", "#fdfdfd"


def confusion_counts(records: Sequence[RunRecord], *, classes: int) -> Int[np.ndarray, "classes classes"]:
    """How often each true class (row) was called each class (column), summed over the finished runs."""
    finished = [record for record in records if record.status == "finished"]
    labels = np.array([label for record in finished for label in record.labels], dtype=np.int64)
    predictions = np.array([label for record in finished for label in record.predictions], dtype=np.int64)
    return confusion_matrix(labels, predictions, classes)


def row_shares(counts: Int[np.ndarray, "true classes"]) -> Float[np.ndarray, "true classes"]:
    """Each row divided by its sum; a class without examples is a row of zeros."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


@house_style()
def confusion_figure(records: Sequence[RunRecord], losses: Sequence[str]) -> Figure:
    """One row-normalised confusion matrix per loss, with counts where there is room to read them."""
    names = next((record.label_names for record in records if record.status == "finished" and record.predictions), [])
    shown = [
        loss for loss in losses if any(r.loss == loss and r.status == "finished" and r.predictions for r in records)
    ]
    if not names or not shown:
        return message_figure("No run finished, so there is no confusion matrix.")
    true_names = names[: _true_classes(records, names)]
    written = len(names) <= MAX_WRITTEN_CLASSES
    rows = math.ceil(len(shown) / (4 if len(true_names) <= ROOMY_CLASSES else 2 if written else 3))
    columns = math.ceil(len(shown) / rows)
    panel_in = min(WIDTH_IN / columns, 4.5)
    figure = Figure(figsize=(max(panel_in * columns, 4.5), rows * (0.88 * panel_in + 0.3) + 0.8), layout="constrained")
    panels = []
    image = None
    for position, loss in enumerate(shown):
        axes = figure.add_subplot(rows, columns, position + 1)
        counts = confusion_counts([record for record in records if record.loss == loss], classes=len(names))
        image = _panel(axes, counts[: len(true_names)])
        axes.set_title(figure_label(loss, width=104 // columns), fontsize=8.5)
        _name_classes(axes, names, last_row=position + columns >= len(shown))
        _name_true_classes(axes, names, true_names, first_column=position % columns == 0)
        panels.append(axes)
    if not written and image is not None:
        figure.colorbar(image, ax=panels, location="top", shrink=0.5, aspect=40, label="share of the true class")
    figure.supxlabel("predicted class", fontsize=10)
    figure.supylabel("true class", fontsize=10)
    return figure


def _true_classes(records: Sequence[RunRecord], names: Sequence[str]) -> int:
    """How many classes, from the first, can be true."""
    last = len(names) - 1
    return last if names[last] == UNPARSED and not any(last in record.labels for record in records) else len(names)


def _panel(axes: Axes, counts: Int[np.ndarray, "true classes"]) -> AxesImage:
    shares = row_shares(counts)
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, interpolation="none")
    axes.spines[:].set_visible(False)
    if counts.shape[1] > MAX_WRITTEN_CLASSES:
        return image
    roomy = len(counts) <= ROOMY_CLASSES
    for (row, column), count in np.ndenumerate(counts):
        text = f"{shares[row, column]:.0%}\n{count}" if roomy else str(count)
        colour = LIGHT_TEXT if shares[row, column] > 0.5 else DARK_TEXT
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if roomy else 7)
    return image


def _name_classes(axes: Axes, names: Sequence[str], *, last_row: bool) -> None:
    if len(names) > MAX_WRITTEN_CLASSES:
        axes.tick_params(labelsize=8)
        return
    turned = len(names) > 2
    axes.set_xticks(
        range(len(names)),
        _short(names) if last_row else [""] * len(names),
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
    )
    axes.tick_params(length=0, labelsize=8)


def _name_true_classes(axes: Axes, names: Sequence[str], true_names: Sequence[str], *, first_column: bool) -> None:
    if len(names) <= MAX_WRITTEN_CLASSES:
        shown = _short(true_names) if first_column else [""] * len(true_names)
        axes.set_yticks(range(len(true_names)), shown)


def _short(names: Sequence[str]) -> list[str]:
    return [figure_label(name, width=14, lines=1) for name in names]
