"""The comparison as a table: one model, and writers for CSV, Markdown, LaTeX and the terminal."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossmith.evidence.metrics import metric_style
from lossmith.evidence.summary import LossSummary, StudySummary
from lossmith.explain.text import MISSING, one_line
from lossmith.report.wording import decimal, difference_with_interval, known, level, level_unit, metric_name, p_value

if TYPE_CHECKING:
    from rich.table import Table as RichTable

RAW_COLUMNS = (
    "loss", "mean", "difference", "low", "high", "p", "holm_p",
    "seeds_won", "seeds", "train_seconds", "peak_memory_mib",
)  # fmt: skip
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
MARKDOWN_SPECIAL = frozenset("\\`*_{}[]<>#|~$&!")
MINUS = "\N{MINUS SIGN}"
TERMINAL_HEADERS = {
    "mean": "mean",
    "difference": "difference\n[95% interval]",
    "holm_p": "p\n(Holm)",
    "seeds_won": "seeds\nwon",
    "average_rank": "average\nrank",
    "won": "data sets\nwon",
    "train_seconds": "train\n(s)",
    "peak_memory_mib": "peak\n(MiB)",
}
"""Headers short enough for a terminal of 80 columns, by column name; the full ones are in the other formats."""
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Braced, since a row that begins with * or [ would be read as the star or the option of the `\\` before it.
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    MISSING: "--",
    MINUS: "$-$",
} | {character: f"\\{character}" for character in "_&%#${}"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: what is shown, and the value behind it."""

    text: str
    """What a person reads."""
    value: str | float | None
    """What a machine reads or sorts by; None where there is nothing."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    """Machine-readable name."""
    header: str
    """Heading for people."""
    cells: tuple[Cell, ...]
    """One cell per row."""
    numeric: bool = True
    """Whether to align right."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of equal length."""

    columns: tuple[Column, ...]
    """From left to right."""

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The same cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


def comparison_table(summary: StudySummary) -> Table:
    """The table that people read: one row per loss, in the order of the study."""
    metric = summary.metric
    columns = (
        Column(
            name="loss",
            header="loss",
            numeric=False,
            cells=tuple(Cell(text=one_line(row.loss), value=row.loss) for row in summary.rows),
        ),
        number_column(
            "mean",
            f"mean {metric_name(metric)} ({level_unit(metric)})",
            [(level(r.mean, metric), r.mean) for r in summary.rows],
        ),
        number_column(
            "difference",
            f"difference to {one_line(summary.baseline)} [95% interval] ({metric_style(metric).unit})",
            [(_difference_text(r, metric), r.comparison and r.comparison.difference) for r in summary.rows],
        ),
        number_column("holm_p", "p (Holm)", [(p_value(r.holm_p), r.holm_p) for r in summary.rows]),
        number_column(
            "seeds_won", "seeds won", [(_won_text(r), r.comparison and r.comparison.wins) for r in summary.rows]
        ),
        number_column(
            "train_seconds", "training (s)", [(decimal(r.train_seconds, 1), r.train_seconds) for r in summary.rows]
        ),
        number_column(
            "peak_memory_mib",
            "peak memory (MiB)",
            [(decimal(r.peak_memory_mib, 0), r.peak_memory_mib) for r in summary.rows],
        ),
    )
    return Table(columns=columns)


def raw_table(summary: StudySummary) -> Table:
    """The table that machines read: fractions instead of percent, every number in its own column."""
    rows = [_raw_values(row) for row in summary.rows]
    return Table(
        columns=tuple(
            Column(name=name, header=name, cells=tuple(_raw_cell(row[name]) for row in rows), numeric=name != "loss")
            for name in RAW_COLUMNS
        )
    )


def to_csv(table: Table) -> str:
    """Comma-separated values with lossless numbers; text that a spreadsheet would run as a formula gets a quote."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([_harmless(column.header) for column in table.columns])
    writer.writerows(
        [_harmless(cell.text) if isinstance(cell.value, str) else cell.text for cell in row] for row in table.rows
    )
    return lines.getvalue()


def to_markdown(table: Table) -> str:
    """A Markdown table; characters that Markdown or HTML would read are escaped."""
    rows = [[_markdown(column.header) for column in table.columns]]
    rows.append(["---:" if column.numeric else ":---" for column in table.columns])
    rows.extend([_markdown(cell.text) for cell in row] for row in table.rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def to_latex(table: Table) -> str:
    """A LaTeX `tabular` in the style of the booktabs package, everything escaped."""
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    body = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(_latex_text(column.header) for column in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def to_rich(table: Table) -> "RichTable":
    """The table for a terminal; markup in foreign text stays text."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for column in table.columns:
        header = TERMINAL_HEADERS.get(column.name, column.header)
        # Only the loss may wrap, so that the numbers stay readable in 80 columns.
        justify = "right" if column.numeric else "left"
        min_width = None if column.numeric else 19
        shown.add_column(escape(header), justify=justify, overflow="fold", no_wrap=column.numeric, min_width=min_width)
    for row in table.rows:
        # "4 of 5 (1 tied)" takes two lines, so that the last column stays within 80 columns.
        shown.add_row(escape(row[0].text), *(escape(cell.text.replace(" (", "\n(")) for cell in row[1:]))
    return shown


def text_column(name: str, header: str, cells: Sequence[tuple[str, str]]) -> Column:
    """A column of foreign text: what is shown of it, on one line, and the text itself."""
    made = tuple(Cell(text=one_line(text), value=value) for text, value in cells)
    return Column(name=name, header=header, cells=made, numeric=False)


def number_column(name: str, header: str, cells: Sequence[tuple[str, float | None]]) -> Column:
    """A column of numbers: what is shown and what is sorted by."""
    return Column(name=name, header=header, cells=tuple(Cell(text=text, value=value) for text, value in cells))


def raw_column(name: str, values: Sequence[str | float | None]) -> Column:
    """A column for machines: lossless numbers, empty where there is none; text on one line."""
    numeric = not any(isinstance(value, str) for value in values)
    return Column(name=name, header=name, cells=tuple(_raw_cell(value) for value in values), numeric=numeric)


def _difference_text(row: LossSummary, metric: str) -> str:
    if row.is_baseline:
        return "baseline"
    return difference_with_interval(row.comparison, metric)


def _won_text(row: LossSummary) -> str:
    if row.comparison is None:
        return MISSING
    ties = f" ({row.comparison.ties} tied)" if row.comparison.ties else ""
    return f"{row.comparison.wins} of {row.comparison.blocks}{ties}"


def _raw_values(row: LossSummary) -> dict[str, str | float | None]:
    pairs = row.comparison
    return {
        "loss": row.loss,
        "mean": row.mean,
        "difference": pairs and pairs.difference,
        "low": pairs and pairs.low,
        "high": pairs and pairs.high,
        "p": pairs and pairs.p_value,
        "holm_p": row.holm_p,
        "seeds_won": pairs and pairs.wins,
        "seeds": pairs.blocks if pairs else len(row.values),
        "train_seconds": row.train_seconds,
        "peak_memory_mib": row.peak_memory_mib,
    }


def _raw_cell(value: str | float | None) -> Cell:
    if isinstance(value, str):
        return Cell(text=one_line(value), value=value)
    return Cell(text=repr(value) if known(value) else "", value=value)


def _harmless(text: str) -> str:
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA_STARTS) else text


def _markdown(text: str) -> str:
    return "".join(f"\\{character}" if character in MARKDOWN_SPECIAL else character for character in one_line(text))


def _latex(cell: Cell) -> str:
    # A number's hyphen would be printed as a hyphen, shorter than a minus.
    return _latex_text(cell.text if isinstance(cell.value, str) else cell.text.replace("-", MINUS))


def _latex_text(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in one_line(text))
