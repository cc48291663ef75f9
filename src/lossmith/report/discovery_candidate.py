"""One candidate of discovery in the terminal and as a picture."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from lossmith.discovery.describe import Description
from lossmith.errors import MissingExtraError
from lossmith.explain.terminal import curve_text
from lossmith.report.losses import curve_figure, write_file


def print_description(description: Description, console: Console) -> None:
    """The verdict, the source as it was compiled, properties, relatives and the curve.

    Args:
        description: What to show.
        console: Where to print; plain text where it is not a terminal.
    """
    console.print(Text(str(description.verdict), style="bold"), soft_wrap=True)
    if description.python is None:
        return
    console.print()
    console.print(Text(description.python.rstrip()), soft_wrap=True)
    console.print()
    console.print(Text(f"LaTeX: {description.latex}"), soft_wrap=True)
    for sentence in description.sentences:
        console.print(Text(sentence.replace("`", "")), soft_wrap=True)
    if description.relatives:
        near = "; ".join(f"{entry.loss} at {entry.distance:.2g}" for entry in description.relatives)
        console.print(Text(f"Closest known losses: {near} (0 the same, below 0.05 neighbours)."), soft_wrap=True)
    if not description.curves:
        return
    console.print()
    own = description.curves[0]
    console.print(Text(own.setting), soft_wrap=True)
    try:
        drawn = Text(curve_text(own, width=console.width), no_wrap=True, overflow="crop")
    except MissingExtraError as error:
        console.print(Text(str(error)))
        return
    drawn.highlight_regex(r"[\u2801-\u28ff]+", "cyan")
    console.print(drawn)


def write_picture(description: Description, path: Path) -> None:
    """The candidate's curves, the closest known loss dashed beside them, as a PNG.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        EvidenceError: If the file cannot be written.
    """
    from lossmith._extras import require

    require("matplotlib", extra="train", purpose="draw a loss as a picture")
    from lossmith.explain.canvas import png_bytes

    write_file(path, png_bytes(curve_figure(*description.curves)))
