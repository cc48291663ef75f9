"""The page and the table of `lossmith baseline`."""

import re
from pathlib import Path

from lossmith.evidence.folders import write_atomically
from lossmith.explain.text import one_line
from lossmith.report.markdown import prose
from lossmith.report.markdown import table as markdown_table
from lossmith.report.provenance import flat_settings
from lossmith.report.tables import Cell, Column, Table, to_markdown
from lossmith.report.wording import metric_name
from lossmith.studies.baseline import BaselineResult
from lossmith.studies.baseline_answers import ModelResult

LONGEST_ANSWER = 1200
"""Characters of a sample that the page shows."""


def baseline_table(result: BaselineResult) -> Table:
    """One row per model and metric: the rate and its interval, in percent."""
    rows = [(model, metric, *rate) for model in result.models for metric, rate in model.rates.items()]
    named = [metric_name(metric) for _, metric, *_ in rows]
    shown = [f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for _, _, rate, low, high in rows]
    return Table(
        columns=(
            Column(
                name="model",
                header="model",
                cells=tuple(Cell(text=one_line(model.model), value=model.model) for model, *_ in rows),
                numeric=False,
            ),
            Column(
                name="metric",
                header="metric",
                cells=tuple(Cell(text=name, value=row[1]) for name, row in zip(named, rows, strict=True)),
                numeric=False,
            ),
            Column(
                name="rate",
                header="% [95% interval]",
                cells=tuple(Cell(text=text, value=row[2]) for text, row in zip(shown, rows, strict=True)),
            ),
        )
    )


def baseline_notices(result: BaselineResult) -> list[str]:
    """Sentences that a reader must know, of the data and of each model."""
    return [*result.notices, *(f"{model.model}: {said}" for model in result.models for said in model.notices)]


def write_baseline(folder: Path, result: BaselineResult, *, command: str) -> Path:
    """Write `baseline.md` into `folder`, and return its path.

    Args:
        folder: The results folder.
        result: What was found.
        command: The command line that makes it again.

    Raises:
        EvidenceError: If it cannot be written.
    """
    blocks = [
        f"# Baselines on {prose(one_line(result.task))}",
        f"{result.problems} test problems. Rates are shares of them in percent, with 95% Wilson intervals.",
        to_markdown(baseline_table(result)).strip(),
        *(f"> {prose(one_line(said))}" for said in baseline_notices(result)),
        *(_settings(result, command)),
        *(block for model in result.models for block in _model(model)),
    ]
    path = folder / "baseline.md"
    write_atomically(path, "\n\n".join(blocks) + "\n")
    return path


def _settings(result: BaselineResult, command: str) -> list[str]:
    facts = {
        "settings": result.settings,
        "task_fingerprint": result.task_fingerprint,
        "backend": result.backend,
        "commit": result.commit or "unknown",
        "versions": result.versions,
        "hardware": result.hardware,
    }
    rows = [(f"`{name}`", prose(value)) for name, value in flat_settings(facts)]
    return [
        "## How it was made",
        _fenced(command, "sh"),
        prose(one_line(result.attribution)),
        markdown_table(("setting", "value"), rows),
    ]


def _model(model: ModelResult) -> list[str]:
    means = [(metric_name(name), f"{100 * value:.1f}") for name, value in model.metrics.items()]
    counts = [(name.replace("_", " "), str(count)) for name, count in model.outcomes.items()]
    template = "its chat template" if model.chat else "plain text"
    blocks = [
        f"## {prose(one_line(model.model))}",
        f"Prompts in {template}; answers of {model.new_tokens:.0f} tokens in the mean. Weights `{model.fingerprint}`.",
        markdown_table(("metric", "mean, %"), means),
        markdown_table(("outcome", "answers"), counts),
        "### Samples",
    ]
    for sample in model.samples:
        parts = (sample["prompt"], "--- wanted ---", sample["target"], "--- answered ---", _clipped(sample["answer"]))
        blocks += [
            f"Problem {prose(one_line(sample['id']))}: {sample['outcome'].replace('_', ' ')}.",
            _fenced("\n".join(parts)),
        ]
    return blocks


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]} …"


def _fenced(text: str, language: str = "text") -> str:
    """Foreign text as it is: no mark within it can end the block."""
    lines = [one_line(line) for line in text.split("\n")]
    longest = max(len(run) for run in re.findall("`*", "\n".join(lines)))
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])
