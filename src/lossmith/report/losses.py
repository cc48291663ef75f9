"""The library on screen: a table of losses, and one loss with its formula, source, settings and curve."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossmith.errors import EvidenceError, MissingExtraError
from lossmith.explain import Curve, NoCurveError, loss_curve, loss_facts
from lossmith.explain.terminal import curve_text, value_limits
from lossmith.nn import Composition, Term, parse_composition
from lossmith.objectives import ObjectiveRecord, list_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CALLED_WITH = {
    "token": "logits, labels",
    "region": "logits, labels",
    "preference": "chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, "
    "rejected_lengths",
    "unpaired": "logps, ref_logps, desirable, kl",
    "metric": "embeddings, labels",
}
"""Family -> what its losses are called with; the statistics they read come from that."""
MODULE_SETTINGS = {
    "centers_per_class": "Proxies of each class, >= 1; they are part of the loss and are trained with it.",
    "normalize": "Whether embeddings are scaled to unit length first.",
    "running_kl": "Whether `kl` is averaged over all calls in training mode, so that a call may leave it out.",
}
"""Hyper-parameter that only the module uses -> its meaning; no docstring of an objective has it."""


def losses_table(family: str | None = None) -> Table:
    """All losses, or those of one family; two columns, so that words stay whole in 60 columns of a terminal.

    Raises:
        ObjectiveInputError: For an unknown family.
    """
    records = list_losses(family)
    settings = [len(setting) for record in records for setting in settings_text(record)]
    table = Table(show_lines=True)
    table.add_column("loss", overflow="fold", min_width=max(len(record.name) for record in records))
    table.add_column("what minimising it does", overflow="fold", min_width=max([20, *settings]))
    for record in records:
        who = Text(record.name, style="bold")
        who.append(f"\n{record.family}\nper {record.item}", style="not bold")
        for alias in record.aliases:
            who.append(f"\nalias {alias}", style="not bold italic")
        does = Text(record.summary)
        does.append(f"\nreads {', '.join(record.reads)}", style="dim")
        does.append(f"\nwith {', '.join(settings_text(record)) or 'no hyper-parameters'}")
        table.add_row(who, does)
    return table


def show_loss(text: str, console: Console, *, png: Path | str | None = None) -> None:
    """Print what a loss or a weighted sum of losses is, and draw what it asks of a model.

    Args:
        text: A name or a composition, as for `lossmith.loss`.
        console: Where to print; plain text where it is not a terminal.
        png: Also write the panels there, as a picture.

    Raises:
        ObjectiveInputError: For unknown names and settings.
        NoCurveError: With `png`, where there is no curve to draw.
        CompositionError: For a string that cannot be read.
        MissingExtraError: With `png`, if matplotlib is not installed.
        EvidenceError: If the picture cannot be written.
    """
    composition = parse_composition(text)
    curve: Curve | NoCurveError
    try:
        curve = loss_curve(text)
    except NoCurveError as error:
        if png is not None:
            raise
        curve = error
    only = composition.terms[0]
    if len(composition.terms) == 1 and only.weight == 1 and only.scope is None:
        _print_loss(only, console)
    else:
        _print_sum(composition, console)
    console.print()
    if isinstance(curve, NoCurveError):
        console.print(Text(f"No curve: {curve}"))
        return
    _print_curve(curve, console)
    if png is not None:
        _write_png(curve, Path(png))
        console.print(Text(f"Picture: {png}"), soft_wrap=True)


def curve_figure(*curves: Curve) -> "Figure":
    """The loss, its gradient and the implied target side by side; further curves over the same line, dashed, beside.

    The axes belong to the first curve: another one that reaches much further leaves its panel.
    """
    from matplotlib.figure import Figure

    from lossmith.explain.canvas import MUTED, WIDTH_IN, figure_label, figure_text, house_style

    first = curves[0]
    assert all(curve.x == first.x for curve in curves)
    with house_style():
        panels = 2 if first.implied_target is None else 3
        figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
        axes = [figure.add_subplot(1, panels, place + 1) for place in range(panels)]
        _draw_panel(axes[0], first, [curve.loss for curve in curves], "loss")
        _draw_panel(axes[1], first, [curve.gradient for curve in curves], f"gradient by {first.gradient_name}")
        axes[1].axhline(0, color=MUTED, linewidth=0.8, zorder=0)
        targets = [curve.implied_target for curve in curves if curve.implied_target is not None]
        if targets:
            dots = (0, (1.5, 1.5))
            axes[2].plot(first.x, first.x, color=MUTED, linewidth=1, linestyle=dots, label="p itself: no pull")
            _draw_panel(axes[2], first, targets, "implied target", beside=first.x)
            axes[2].legend(loc="lower right", fontsize=8.5)
        figure.suptitle(figure_label(first.name, width=100), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        figure.supxlabel(figure_text(first.setting), x=0.01, ha="left", fontsize=8.5, color=MUTED)
        if len(curves) > 1:
            names = [figure_label(curve.name, width=100) for curve in curves]
            figure.legend(axes[0].lines, names, loc="upper right", ncols=len(curves), fontsize=9, borderaxespad=0)
    return figure


def _draw_panel(
    axes: "Axes",
    curve: Curve,
    lines: Sequence[Sequence[float]],
    title: str,
    *,
    beside: Sequence[float] | None = None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    from lossmith.explain.canvas import DASHES, HUES

    for place, values in enumerate(lines):
        axes.plot(curve.x, values, color=HUES[place % len(HUES)], linewidth=2.2, linestyle=DASHES[place % len(DASHES)])
    axes.set_ylim(*_panel_limits(lines, beside))
    axes.set_title(title, loc="left")
    axes.set_xlabel(curve.x_name)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid()


def _panel_limits(lines: Sequence[Sequence[float]], beside: Sequence[float] | None) -> tuple[float, float]:
    """Limits that hold all lines, unless the first would be squashed: then half as much again as it needs."""
    low, high = value_limits(lines[0], *([beside] if beside is not None else []))
    all_low, all_high = value_limits([low, high], *lines[1:]) if lines[1:] else (low, high)
    if all_high - all_low > 5 * (high - low):
        room = 0.5 * (high - low)
        all_low, all_high = max(all_low, low - room), min(all_high, high + room)
    room = 0.05 * (all_high - all_low)
    return all_low - room, all_high + room


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a report whole or not at all, with the folders above it.

    Raises:
        EvidenceError: If it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise EvidenceError(f"Cannot write `{path}`: {error.strerror or error}.") from error


def _write_png(curve: Curve, path: Path) -> None:
    from lossmith._extras import require

    require("matplotlib", extra="train", purpose="draw a loss as a picture")
    from lossmith.explain.canvas import png_bytes

    write_file(path, png_bytes(curve_figure(curve)))


def _print_loss(term: Term, console: Console) -> None:
    record, facts = term.record, loss_facts(term.record)
    _heading(str(term), console)
    console.print(Text(record.summary))
    console.print()
    for block in _formula_blocks(facts.formula):
        console.print(block)
    if facts.formula:
        console.print()
    lines = [
        ("Family", f"{record.family}, one loss per {record.item}"),
        ("Aliases", ", ".join(record.aliases) or "none"),
        ("Reads", ", ".join(record.reads)),
        ("Call", _call(record)),
        ("Use when", _plain(facts.use_when)),
        ("Value", _plain(facts.returns)),
        ("Batch", coupling_text(record)),
        ("Source", _plain(facts.reference) or record.source),
        ("Address", record.source if record.source not in facts.reference else ""),
        ("Deviation", _plain(facts.deviation)),
        ("Relatives", _plain(facts.relatives)),
        ("Elsewhere", _plain(facts.elsewhere)),
    ]
    console.print(_grid(lines))
    console.print()
    _print_settings(term, facts.meanings, console)


def _print_settings(term: Term, meanings: dict[str, str], console: Console) -> None:
    if not term.record.hyperparameters:
        console.print(Text("No hyper-parameters."))
        return
    console.print(Text("Hyper-parameters", style="bold"))
    rows = []
    for name, default in term.record.hyperparameters.items():
        shown = f"{name}={term.hyperparameters.get(name, default)!r}"
        if name in term.hyperparameters:
            shown += f" (default {default!r})"
        rows.append((shown, _plain(meanings.get(name) or MODULE_SETTINGS.get(name, ""))))
    console.print(_grid(rows, style=""))


def _print_sum(composition: Composition, console: Console) -> None:
    _heading(str(composition), console)
    console.print(Text("A weighted sum; called with the union of what its terms need."))
    for term in composition.terms:
        record = term.record
        console.print()
        labels = f" on the labels of scope '{term.scope}'" if term.scope else ""
        console.print(Text(f"{term.weight:g} times {record.name}{labels}", style="bold"))
        lines = [
            ("Does", record.summary),
            ("Family", f"{record.family}, one loss per {record.item}; reads {', '.join(record.reads)}"),
            ("Settings", ", ".join(settings_text(record, term.hyperparameters)) or "none"),
            ("Batch", coupling_text(record)),
            ("Source", record.source),
        ]
        console.print(_grid(lines))


def _print_curve(curve: Curve, console: Console) -> None:
    console.print(Text(curve.setting))
    try:
        drawn = Text(curve_text(curve, width=console.width), no_wrap=True, overflow="crop")
    except MissingExtraError as error:
        console.print(Text(str(error)))
        return
    drawn.highlight_regex(r"[\u2801-\u28ff]+", "cyan")
    console.print(drawn)


def _heading(name: str, console: Console) -> None:
    console.print(Text(name, style="bold underline"))


def _grid(lines: Sequence[tuple[str, str]], *, style: str = "bold") -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold", min_width=9)
    grid.add_column(overflow="fold")
    for name, text in lines:
        if text or style != "bold":
            grid.add_row(Text(name, style=style), Text(text))
    return grid


def settings_text(record: ObjectiveRecord, given: dict[str, Any] | None = None) -> list[str]:
    """`name=default` of every hyper-parameter, or with the values given."""
    return [f"{name}={value!r}" for name, value in {**record.hyperparameters, **(given or {})}.items()]


def _call(record: ObjectiveRecord) -> str:
    more = f", built with {' and '.join(record.required)} (it owns proxies)" if record.required else ""
    inputs = CALLED_WITH[record.family].split(", ")
    if record.family in ("preference", "unpaired") and not set(inputs) <= set(record.reads):
        more = "; what it does not read may be left out"
    return f"loss({', '.join(inputs)}){more}"


def coupling_text(record: ObjectiveRecord) -> str:
    """Whether gradient accumulation changes the loss, in words."""
    if not record.batch_coupled:
        return "not coupled: several micro-batches equal one batch"
    escape = "; with region='sequence' they do" if record.family == "region" else ""
    return f"coupled: several micro-batches do not equal one batch{escape}"


def _plain(text: str) -> str:
    """Prose of a docstring without the marks around its inline mathematics and code."""
    return re.sub(r"\$([^$]+)\$", r"\1", text).replace("`", "")


def _formula_blocks(formula: str) -> Iterator[Text | Padding]:
    """Paragraphs folded by the terminal, equations as LaTeX source, indented."""
    for place, part in enumerate(formula.split("$$")):
        if place % 2:
            yield Padding(Text(" ".join(part.split()).rstrip(",.")), (0, 0, 0, 4))
            continue
        for paragraph in filter(None, map(str.strip, part.split("\n\n"))):
            yield Text(_plain(" ".join(paragraph.split())))
