"""A curve as plain text for a terminal, drawn by plotext."""

import re
from collections.abc import Sequence

from lossmith._extras import require
from lossmith.explain.curves import Curve

MAX_WIDTH, MIN_WIDTH, PANEL_HEIGHT = 88, 30, 11
MARKER = "braille"
DIAGONAL_MARKER = "·"


def curve_text(curve: Curve, *, width: int = 80) -> str:
    """The loss, its gradient and the implied target, one panel above the other, without any escape codes.

    Args:
        curve: What to draw.
        width: Columns of the terminal; panels are between 30 and 88 wide.

    Raises:
        MissingExtraError: If plotext is not installed.
    """
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    panels: list[tuple[str, Sequence[float], Sequence[float] | None]] = [
        (f"Loss over the {curve.x_name}", curve.loss, None),
        (f"Gradient with respect to {curve.gradient_name}", curve.gradient, None),
    ]
    if curve.implied_target is not None:
        panels.append(("Implied target (dots: the target is p itself, no pull)", curve.implied_target, curve.x))
    return "\n".join(_panel(title, curve.x, y, dots, width) for title, y, dots in panels)


def value_limits(*lines: Sequence[float]) -> tuple[float, float]:
    """Limits of a value axis that holds all lines; a line that is flat but for rounding stays flat in the picture.

    Example:
        >>> value_limits([1.0, 1.0 + 1e-15])
        (0.5, 1.5)
    """
    low, high = min(map(min, lines)), max(map(max, lines))
    if high - low > 1e-9 * max(1.0, abs(low), abs(high)):
        return low, high
    return round(low, 9) - 0.5, round(low, 9) + 0.5


def _panel(title: str, x: Sequence[float], y: Sequence[float], dots: Sequence[float] | None, width: int) -> str:
    plotext = require("plotext", extra="train", purpose="draw a loss in the terminal")
    # plotext has one figure per process; it is cleared before and after, and not cut to the size of the terminal.
    figure = plotext.figure
    figure.clear()
    plotext.terminal.limit(False, False)
    try:
        figure.plot_size(width, PANEL_HEIGHT)
        if dots is not None:
            figure.draw(figure.signal(x, dots, marker=DIAGONAL_MARKER))
        figure.draw(figure.signal(x, y, marker=MARKER).lines())
        low, high = value_limits(y, *([dots] if dots is not None else []))
        figure.ruler("y").lim(low, high)
        # A curve leaves out the ends of its line; the axis has them.
        start, end = 2 * x[0] - x[1], 2 * x[-1] - x[-2]
        figure.ruler("x").lim(start, end)
        places = [start + (end - start) * share / 4 for share in range(5)]
        # Left alone, plotext writes 100 as 1e2; adding 0 takes the sign off a rounded -0.
        figure.ruler("x").ticks(places, [f"{round(place, 9) + 0.0:.4g}" for place in places])
        drawn = figure.build().string(colorless=True)
    finally:
        figure.clear()
        plotext.terminal.limit()
    # A tick that rounds to zero keeps the sign of what was rounded.
    lines = [re.sub(r"-(0\.0+)┤", r" \1┤", line.rstrip()) for line in drawn.splitlines()]
    return "\n".join([title, *lines])
