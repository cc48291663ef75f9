"""What all figures share: palette, house style, harmless text, and saving as PNG bytes or inline SVG."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmith.explain.text import one_line, wrapped

INK, MUTED, GRID, PAPER = "#1f2328", "#667080", "#d8dee4", "#fffffe"
CSS_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
"""Neutral colours that an inline SVG takes from its page, so that dark mode reaches the figures."""

# Okabe and Ito's colour-blind-safe hues without yellow and black: each reads on white and on near-black paper.
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "D", "^")
DASHES: tuple[Literal["-"] | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
)
BASELINE_COLOUR = "#7a8290"

WIDTH_IN = 9.0
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same picture on every machine
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "savefig.dpi": 150,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, kw_only=True)
class LossStyle:
    """How one loss looks in every figure."""

    colour: str
    """Colour of lines and points."""
    marker: str
    """Shape of its points; tells apart losses that share a hue."""
    dashes: Literal["-"] | tuple[float, tuple[float, ...]]
    """Line style of its curves."""


def loss_styles(losses: Sequence[str], baseline: str) -> dict[str, LossStyle]:
    """One look per loss, by its place in the study: the baseline is grey, hues repeat with another shape."""
    styles = {baseline: LossStyle(colour=BASELINE_COLOUR, marker="o", dashes="-")}
    for index, loss in enumerate(loss for loss in losses if loss != baseline):
        turn = index // len(HUES) % len(MARKERS)
        styles[loss] = LossStyle(colour=HUES[index % len(HUES)], marker=MARKERS[turn], dashes=DASHES[turn])
    return styles


def model_styles(models: Sequence[str], baseline: str | None) -> dict[str, LossStyle]:
    """One look per model; the baseline, or the first model where there is none among them, is grey."""
    return loss_styles(models, baseline if baseline is not None and baseline in models else models[0])


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save inside this: matplotlib's defaults plus `STYLE`, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A missing glyph (emoji, CJK) shows as a box in the PNG; the SVG carries the text itself.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def figure_text(text: object) -> str:
    r"""Foreign text on one line that matplotlib cannot read as mathematics.

    Example:
        >>> figure_text("$x$ costs 1$")
        '\\$x\\$ costs 1\\$'
    """
    return one_line(text).replace("$", r"\$")


def figure_label(text: object, *, width: int = 26, lines: int = 2) -> str:
    """Foreign text folded into a few lines for an axis, a legend or a panel title."""
    return wrapped(text, width=width, lines=lines).replace("$", r"\$")


def row_axes(figure: Figure, labels: Sequence[str]) -> Axes:
    """Axes with a named row per label, the first on top at height `len(labels) - 1`."""
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), [figure_label(label, width=30) for label in reversed(labels)])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return axes


def margin_note(axes: Axes, height: int, text: str) -> None:
    """Lines of text to the right of a row."""
    harmless = "\n".join(figure_text(line).rstrip() for line in text.split("\n"))
    axes.text(1.015, height, harmless, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK)


def message_figure(message: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = Figure(figsize=(WIDTH_IN, 1.4))
    figure.text(0.5, 0.5, figure_text(message), ha="center", va="center", color=MUTED)
    return figure


def png_bytes(figure: Figure, *, dpi: int = STYLE["savefig.dpi"]) -> bytes:
    """The figure as PNG, equal for equal figures."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page, equal for equal figures.

    Its ids start with `name`, so two figures of a page never share one; its neutral colours follow the page; it
    carries a title and a description for screen readers, and no style sheet that would reach the rest of the page.
    """
    buffer = io.BytesIO()
    with house_style():
        matplotlib.rcParams["svg.hashsalt"] = f"lossmith-{name}"
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"style", "metadata"}:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _page_value(key, value, name) for key, value in element.attrib.items()}
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "figure", "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for position, (tag, identifier, text) in enumerate((("title", "title", title), ("desc", "desc", description))):
        label = ElementTree.Element(tag, {"id": f"{name}-{identifier}"})
        label.text = one_line(text)
        root.insert(position, label)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _page_value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    value = value.replace("url(#", f"url(#{name}-")
    if _local(key) == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    for colour, variable in CSS_COLOURS.items():
        value = value.replace(colour, variable)
    return value
