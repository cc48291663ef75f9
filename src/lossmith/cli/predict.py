"""`lossmith predict`: a saved classifier on a file of texts."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lossmith.cli.shared import Device, plain, require_train_extra
from lossmith.errors import ConfigurationError


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `lossmith train` wrote.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV, TSV, JSONL or parquet; - for lines of text.")],
    method: Annotated[str, typer.Option(help="head, proxies, mixture or neighbours.")] = "head",
    threshold: Annotated[float | None, typer.Option(help="Abstain below this probability, in (0, 1].")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts; that of training, else text.")] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(help="Column of the second texts of pairs; that of training.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the true labels; that of training, if it is there.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new .csv or .jsonl; else CSV on standard output.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts per forward pass.")] = 64,
    device: Device = None,
) -> None:
    """Label texts with a saved classifier: label, probability, calibrated probability; abstains if asked to."""
    require_train_extra()
    from lossmith import studies
    from lossmith.report.live import BatchProgress
    from lossmith.report.predictions import opened, prediction_lines, write_csv, write_jsonl
    from lossmith.tasks.unlabelled import lines_of, read_texts

    errors = Console(stderr=True)
    columns = {"text_column": text_column, "text_pair_column": text_pair_column, "label_column": label_column}
    named = {name: column for name, column in columns.items() if column is not None}
    predictor = studies.open_predictor(
        model.expanduser(), method=method, threshold=threshold, device="auto" if device is None else device
    )
    remembered = {} if file == "-" else predictor.columns
    predictor.check_pairs("text_pair_column" in {**remembered, **named})
    if file == "-":
        _refuse_columns(named)
        rows = lines_of(sys.stdin.buffer.read())
    else:
        rows = read_texts(Path(file).expanduser(), **named, usual=remembered)
    try:
        with opened(out) as stream:
            with BatchProgress(errors) as bar:
                found = predictor.predict(
                    rows.texts,
                    rows.pairs,
                    batch_size=batch_size,
                    on_batch=lambda done, total: bar.moved("texts", done, total),
                )
            if out is not None and out.suffix.lower() == ".jsonl":
                write_jsonl(stream, rows, found)
            else:
                write_csv(stream, rows, found, shown=plain if out is None and sys.stdout.isatty() else str)
    except KeyboardInterrupt:
        errors.print("Stopped; nothing was written.")
        raise typer.Exit(130) from None
    for line in prediction_lines(rows, found, predictor):
        errors.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def _refuse_columns(named: dict[str, str]) -> None:
    for name in named:
        raise ConfigurationError(f"`--{name.replace('_', '-')}` names a column, and standard input has none.")
