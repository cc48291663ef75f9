"""The benchmark in the terminal: a bar while it runs, a table per case at the end."""

import statistics
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lossmith.bench.results import Results, memory_ratio, provenance_lines, time_ratio
from lossmith.bench.run import Row


class LiveBenchmark:
    """A listener that draws a bar on a console; a line per step where it is no terminal."""

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "LiveBenchmark":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, text: str) -> None:
        """Move the bar and say what comes now."""
        if not self._console.is_terminal:
            self._console.print(f"{done + 1}/{total} {text}", markup=False, highlight=False, soft_wrap=True)
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done, description=escape(text))


def results_view(results: Results) -> RenderableType:
    """A table per case, then machine and versions."""
    tables = [_table(results, results.of(case)) for case in results.cases()]
    notes = ["peak: memory beyond inputs and gradients; ratios: medians of paired turns, with their range."]
    notes += [] if results.complete else ["Stopped before its end; what is here was measured."]
    return Group(*tables, *(Text(line, style="dim") for line in (*notes, *provenance_lines(results))))


def _table(results: Results, rows: list[Row]) -> Table:
    baseline = results.baseline(rows[0].case)
    table = Table(title=Text(str(rows[0].case)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    against = "" if baseline is None else f"x {baseline.contestant}"
    table.add_column(Text("forward and backward of"), overflow="fold", ratio=1)
    for title in ("time", against, "peak MiB", "off by"):
        table.add_column(Text(title), justify="right")
    for row in rows:
        table.add_row(*_cells(row, baseline))
    return table


def _cells(row: Row, baseline: Row | None) -> list[Text]:
    name = Text(str(row.contestant))
    if row.state == "not here":
        return [name, Text(row.note, style="dim"), Text(), Text(), Text()]
    for line in (row.plan, row.note):
        if line:
            name.append(f"\n  {line}", style="dim")
    if not row.seconds:
        return [name, Text(row.state, style="dim"), Text(), Text(peak_text(row)), Text(deviation_text(row))]
    ratio, memory = time_ratio(row, baseline), memory_ratio(row, baseline)
    return [
        name,
        Text(seconds_text(row)),
        Text("" if ratio is None else str(ratio)),
        Text(peak_text(row) + ("" if memory is None else f" ({memory:.2f}x)")),
        Text(deviation_text(row)),
    ]


def seconds_text(row: Row) -> str:
    """Median time of forward and backward, in ms or s."""
    seconds = statistics.median(row.seconds)
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def peak_text(row: Row) -> str:
    """Peak memory beyond inputs and gradients, in MiB."""
    return "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}"


def deviation_text(row: Row) -> str:
    """How far the gradients are from what they are compared with."""
    return "" if row.gradient_deviation is None else f"{row.gradient_deviation:.0e}"
