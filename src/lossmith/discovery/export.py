"""A program of a run as files that stand on their own: objective, property tests, card, and the way back to the run."""

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lossmith.discovery.card import card, titled
from lossmith.discovery.compiler import CompileError, compile_source
from lossmith.discovery.describe import Description, describe_candidate
from lossmith.discovery.history import History, open_history
from lossmith.discovery.identity import probes
from lossmith.discovery.program import Program, as_objective, one_line, to_latex, to_python, torch_function
from lossmith.errors import ConfigurationError, LossmithError
from lossmith.evidence import check_writable, write_atomically
from lossmith.objectives import list_losses
from lossmith.testing import check_objective
from lossmith.testing.report import Check

HELPERS = ("mean_masked", "number", "std_batch", "var_batch")
PINNED = 6
"""Items at which the exported tests pin values and gradients."""


Pinned = tuple[dict[str, list], list[float], dict[str, list]]
"""Inputs, values and gradients."""


class ExportError(LossmithError):
    """The text of an export is not the program of the run: our mistake, and found before anything is written."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    announced: bool
    """Whether the run claims that it is better than the control."""


def export(run: str | Path, winner: str, *, out: str | Path | None = None, name: str | None = None) -> Exported:
    """Write a program of a run as an objective of its own.

    Writes `NAME_loss.py` (a plain torch function under `@lossmith.objective`), `test_NAME_loss.py`, `card.md` with the
    evidence, and `program.json`, from which lossmith reads the same program again. A program that the run did not
    announce is exported too, and its card says so.

    Args:
        run: Folder of the run.
        winner: First letters of a program's key, or `winner` (the best that was announced), or `best`.
        out: Where to write; a folder `export-NAME` in the run's where it is left out.
        name: Of the objective; made from the key where it is left out.

    Raises:
        ConfigurationError: If no program fits, or the name cannot be one.
        EvidenceError: If there is no run, or the folder cannot be written.
        ExportError: If what would be written is not the program of the run.
    """
    history = open_history(run)
    key = history.find(winner)
    name = objective_name(name or f"found_{key[:8]}")
    ours = (each for each in list_losses() if each.function.__module__.startswith("lossmith.objectives."))
    if any(name in (each.name, *each.aliases) for each in ours):
        raise ConfigurationError(f"`--name` must be new, got '{name}', which is an objective of the library already.")
    folder = Path(out) if out is not None else history.folder / f"export-{name}"
    program = history.programs[key]
    description = describe_candidate(program, history.family, name=name)
    broken = broken_rules(program, name)
    check_text(program, source := objective_source(program, name, history, description))
    texts = {
        f"{name}_loss.py": source,
        f"test_{name}_loss.py": tests_source(program, name, description, [each.name for each in broken]),
        "card.md": card(history, key, name, description, broken),
        "program.json": program.to_json() + "\n",
    }
    check_writable(folder)
    for file, text in texts.items():
        write_atomically(folder / file, text)
    files = tuple(folder / file for file in texts)
    return Exported(name=name, folder=folder, files=files, announced=key in history.announced())


def objective_name(given: str) -> str:
    """The name of an objective, which its function may be given by as well: `mine` for `mine_loss`.

    Raises:
        ConfigurationError: If it is no name in Python.
    """
    name = given.removesuffix("_loss")
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise ConfigurationError(f"`--name` must be a name in Python, got '{given}'.")
    return name


def check_text(program: Program, source: str) -> None:
    """Compile the text of an export, as `lossmith discover check` would, and hold it against the program of the run.

    Raises:
        ExportError: If it does not compile, is another program, or has other values or gradients at the pinned points.
    """
    head = f"Nothing was written: the text of program `{program.key}`"
    try:
        found = compile_source(source, program.family)
    except CompileError as error:
        raise ExportError(f"{head} does not compile: {error}") from error
    if found.key != program.key:
        raise ExportError(f"{head} compiles to program `{found.key}`, another one.")
    if not _close(pinned(found), pinned(program)):
        raise ExportError(f"{head} has other values or gradients at the pinned points.")


def _close(found: Pinned, expected: Pinned) -> bool:
    """Equal but for rounding, and not a number at the same places."""
    before, after = ({"": values, **gradients} for _, values, gradients in (expected, found))
    return before.keys() == after.keys() and all(
        np.allclose(after[name], rows, rtol=1e-9, atol=1e-12, equal_nan=True) for name, rows in before.items()
    )


def objective_source(program: Program, name: str, history: History, description: Description) -> str:
    """A module with the objective and nothing else."""
    record = as_objective(program, name)
    head, *body = to_python(program, f"{name}_loss").rstrip("\n").split("\n")
    text = "\n".join([head, *body])
    helpers = [helper for helper in HELPERS if re.search(rf"\b{helper}\(", text)]
    facts = {
        "family": program.family,
        "item": record.item,
        "source": f"lossmith discover, run {history.folder.name}, program {program.key}",
        **({"batch_coupled": True} if record.batch_coupled else {}),
        **({"needs_positives": True} if record.needs_positives else {}),
        **({"row_local": True} if record.row_local else {}),
    }
    declared = [f"    {key}={json.dumps(value) if isinstance(value, str) else value}," for key, value in facts.items()]
    if program.family == "metric":
        declared.append('    module_hyperparameters={"normalize": True},')
    floats = [each for each in program.inputs if each not in ("same", "different")]
    lines = [
        f'"""{titled(name)}: an objective that `lossmith discover` found; see card.md for what is known of it."""',
        "",
        "import torch",
        "import torch.nn.functional as F  # noqa: F401",
        "",
        "import lossmith",
        *([f"from lossmith.discovery import {', '.join(helpers)}"] if helpers else []),
        "",
        "",
        "@lossmith.objective(",
        *declared,
        ")",
        head,
        *_docstring(program, description),
        *_upwards(floats),
        *body,
        "",
        "",
        "def _up(values):",
        '    """Half precision and whole numbers as float32; float64 stays."""',
        "    return values if values.dtype in (torch.float32, torch.float64) else values.float()",
        "",
    ]
    return "\n".join(lines)


def _docstring(program: Program, description: Description) -> list[str]:
    near = description.relatives[0] if description.relatives else None
    told = f"The closest known loss is `{near.loss}`, at distance {near.distance:.2g}." if near else ""
    formula = one_line(program)
    short = formula if len(formula) < 90 else formula[:86] + " ..."
    return [
        f'    r"""Compute {short}.',
        "",
        f"    $$\\ell = {to_latex(program)}$$",
        *(["", f"    {told}"] if told else []),
        '    """',
    ]


def _upwards(names: Sequence[str]) -> list[str]:
    return [f"    {name} = _up({name})" for name in names]


def tests_source(program: Program, name: str, description: Description, broken: Sequence[str]) -> str:
    """Property tests of the exported objective: the library's battery, and numbers pinned from the run's program."""
    inputs, values, gradients = pinned(program)
    flags = description.verdict.flags
    steady = program.family == "preference" and not {"non-monotone", "grad-mismatch"} & set(flags)
    pulls = _pulls(gradients) if steady else {}
    lines = [
        f'"""Properties of {name}; the numbers are those of the program in the run\'s database."""',
        "",
        "import json",
        "from pathlib import Path",
        "",
        "import torch",
        f"from {name}_loss import {name}_loss",
        "",
        "from lossmith.discovery.program import from_json, torch_function",
        "from lossmith.testing import check_objective",
        "",
        f"INPUTS = json.loads('{json.dumps(inputs)}')",
        f"VALUES = {json.dumps(values)}",
        f"GRADIENTS = json.loads('{json.dumps(gradients)}')",
        "",
        "",
        "def leaves():",
        "    masks = {name: torch.tensor(INPUTS[name]) for name in INPUTS if name in ('same', 'different')}",
        "    floats = {name: torch.tensor(INPUTS[name], dtype=torch.float64) for name in INPUTS if name not in masks}",
        "    return masks | {name: rows.requires_grad_() for name, rows in floats.items()}",
        "",
        "",
        "def test_the_rules_of_every_objective():",
        f"    check_objective({name}_loss, skip={json.dumps(list(broken))})",
        "",
        "",
        "def test_values_and_gradients_are_those_of_the_run():",
        "    given = leaves()",
        f"    losses = {name}_loss(**given)",
        "    torch.testing.assert_close(losses, torch.tensor(VALUES, dtype=torch.float64), rtol=1e-9, atol=1e-12)",
        "    losses.sum().backward()",
        "    for name, rows in GRADIENTS.items():",
        "        expected = torch.tensor(rows, dtype=torch.float64)",
        "        torch.testing.assert_close(given[name].grad, expected, rtol=1e-9, atol=1e-12)",
        "",
        "",
        "def test_the_stored_program_is_the_same_function():",
        '    program = from_json(Path(__file__).with_name("program.json").read_text())',
        "    given = {name: rows.detach() for name, rows in leaves().items()}",
        "    stored = torch_function(program)(**given)",
        f"    torch.testing.assert_close(stored, {name}_loss(**given), rtol=1e-9, atol=1e-12)",
        "",
    ]
    if pulls:
        lines += [
            "",
            "def test_a_larger_margin_is_never_worse():",
            "    given = leaves()",
            f"    {name}_loss(**given).sum().backward()",
            f"    for name, sign in {json.dumps(pulls)}.items():",
            "        pull = sign * given[name].grad",
            "        assert (pull >= -1e-12).all(), name",
            "        assert (pull > 0).any(), name",
            "",
        ]
    return "\n".join(lines)


def _pulls(gradients: Mapping[str, list]) -> dict[str, float]:
    """Sign of the pull on each side that the loss reads; empty where a pinned gradient of one of them is against it."""
    signs = {"chosen_logps": -1.0, "rejected_logps": 1.0}
    pulls = {name: sign * np.asarray(gradients[name]) for name, sign in signs.items() if name in gradients}
    kept = all((pull >= 0).all() and (pull > 0).any() for pull in pulls.values())
    return {name: signs[name] for name in pulls} if kept else {}


def broken_rules(program: Program, name: str) -> list[Check]:
    """The rules of the library's battery that the program does not keep: told in the card, left out of its tests."""
    record = as_objective(program, name)
    facts = {"normalize": True} if program.family == "metric" else None
    report = check_objective(
        torch_function(program, f"{name}_loss"),
        # What is exported is a plain function, which torch.compile traces; this one walks a list.
        skip=("compile",),
        raise_failures=False,
        family=program.family,
        item=record.item,
        batch_coupled=record.batch_coupled,
        needs_positives=record.needs_positives,
        row_local=record.row_local,
        module_hyperparameters=facts,
    )
    return list(report.failed)


def pinned(program: Program) -> Pinned:
    """A few probe points with the program's values and gradients there, in float64, exact as text."""
    points = probes(program.family).inputs
    batch = 1
    given = {}
    for name in program.inputs:
        if name not in points:
            given[name] = torch.tensor(0.0, dtype=torch.float64)
            continue
        rows = points[name][batch]
        if program.family == "metric":
            rows = rows[:PINNED, :PINNED] if rows.ndim == 2 else rows
            given[name] = torch.from_numpy(np.array(rows))
        else:
            given[name] = torch.from_numpy(np.array(rows.reshape(-1)[:PINNED]))
    leaves = {name: rows.requires_grad_() if rows.is_floating_point() else rows for name, rows in given.items()}
    losses = torch_function(program)(**leaves)
    losses.sum().backward()
    gradients = {name: rows.grad.tolist() for name, rows in leaves.items() if rows.grad is not None}
    return {name: rows.detach().tolist() for name, rows in leaves.items()}, losses.tolist(), gradients
