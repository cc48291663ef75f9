"""Predictions as a file, CSV or JSONL, and in words."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lossmith.errors import ConfigurationError
from lossmith.evaluation.selective import SelectiveAccuracy, selective_accuracy
from lossmith.evidence import format_value
from lossmith.studies import Prediction, Predictor
from lossmith.tasks.unlabelled import Texts

SUFFIXES = (".csv", ".jsonl")
SHOWN_LABELS = 5


@contextmanager
def opened(out: Path | None) -> Iterator[TextIO]:
    """Where predictions are written: standard output, or a file that appears when it is whole.

    Raises:
        ConfigurationError: If `out` is of another kind, is there already, or cannot be written; before anything else.
    """
    if out is None:
        if hasattr(sys.stdout, "reconfigure"):
            # What was read as UTF-8 is written as such, whatever the terminal's locale says.
            sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
        yield sys.stdout
        # Here, where a reader that has gone is noticed, and not when Python ends.
        sys.stdout.flush()
        return
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"`--out` must end in {' or '.join(SUFFIXES)}, got `{out}`.")
    if os.path.lexists(out):
        raise ConfigurationError(f"`{out}` is there already: choose another --out, or remove it.")
    scratch = out.with_name(f".{out.name}.unfinished")
    try:
        with scratch.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        os.replace(scratch, out)
    except OSError as error:
        raise ConfigurationError(f"`--out {out}` cannot be written: {error.strerror or error}.") from error
    finally:
        # Also after an error of the predictions; there is none after the replacement.
        if os.path.lexists(scratch):
            scratch.unlink()


def write_csv(
    stream: TextIO, rows: Texts, predictions: Sequence[Prediction], *, shown: Callable[[str], str] = str
) -> None:
    """The rows in their order under a header; the label is empty where the model abstains.

    Args:
        stream: Where to write.
        rows: What was classified.
        predictions: One per row.
        shown: How texts are written, for a terminal.
    """
    writer = csv.writer(stream, lineterminator="\n")
    first = True
    for record in _records(rows, predictions):
        if first:
            writer.writerow(record)
            first = False
        writer.writerow([shown(_cell(value)) for value in record.values()])


def write_jsonl(stream: TextIO, rows: Texts, predictions: Sequence[Prediction]) -> None:
    """One object per row, in their order; the label is null where the model abstains."""
    for record in _records(rows, predictions):
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _records(rows: Texts, predictions: Sequence[Prediction]) -> Iterator[dict[str, str | float | bool | None]]:
    for row, found in enumerate(predictions):
        yield {
            "text": rows.texts[row],
            **({} if rows.pairs is None else {"pair": rows.pairs[row]}),
            "label": found.label,
            "probability": found.probability,
            "calibrated_probability": found.calibrated_probability,
            "abstained": found.abstained,
            "guess": found.guess,
        }


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    # float32 scores have no more digits.
    return value if isinstance(value, str) else f"{value:.7g}"


def prediction_lines(rows: Texts, predictions: Sequence[Prediction], predictor: Predictor) -> list[str]:
    """What is to be said beside predictions: a text left out, what the threshold acted on, how right they are."""
    lines = []
    if rows.unread is not None:
        lines.append(
            f"The column '{rows.unread}' is not read: `--text-pair-column {rows.unread}` makes it the second text, for "
            f"a model of pairs."
        )
    threshold, total = predictor.threshold, len(predictions)
    if threshold is not None:
        answered = total - sum(found.abstained for found in predictions)
        acts_on = "probability" if predictor.temperature is None else "calibrated probability"
        lines.append(
            f"{answered} of {total} texts are answered: the threshold {threshold:g} is on the {acts_on} of "
            f"{predictor.method}."
        )
    if rows.labels is None:
        return lines
    found = selective_accuracy(
        [prediction.guess for prediction in predictions],
        [prediction.abstained for prediction in predictions],
        rows.labels,
        predictor.label_names,
    )
    if found is None:
        return lines
    if set(found.unknown) >= {label for label in rows.labels if label is not None}:
        # Numbers where the model has names, say: an accuracy of 0 would be one of the writing.
        return [
            *lines,
            f"No label is a class of the model, so nothing is known of the accuracy: {_classes(found, predictor)}.",
        ]
    if found.unknown:
        lines.append(f"Some labels are no classes of the model and count as wrong: {_classes(found, predictor)}.")
    line = f"accuracy {format_value(found.accuracy, 'accuracy')}% of {found.labelled} labelled texts"
    if threshold is not None:
        line += f", coverage {format_value(found.coverage, 'accuracy')}%"
        if found.answered_accuracy is not None:
            among = format_value(found.answered_accuracy, "accuracy")
            line += f", accuracy among the {found.answered} answered {among}%"
    return [*lines, f"{line}."]


def _classes(found: SelectiveAccuracy, predictor: Predictor) -> str:
    def some(names: Sequence[str]) -> str:
        more = f" and {len(names) - SHOWN_LABELS} more" if len(names) > SHOWN_LABELS else ""
        return ", ".join(f"'{name}'" for name in names[:SHOWN_LABELS]) + more

    return f"got {some(found.unknown)}, it has {some(predictor.label_names)}"
