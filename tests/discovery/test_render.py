"""Programs as text: what is written computes what the program does, in Python and in LaTeX."""

import random

import numpy as np
import pytest
import torch
from latex_reader import value_of
from torch import Tensor

from lossmith.discovery import check
from lossmith.discovery.compiler import compile_source
from lossmith.discovery.program import (
    Node,
    Program,
    ProgramError,
    const,
    from_json,
    functions,
    inputs_of,
    make,
    one_line,
    setting,
    to_latex,
    to_python,
    torch_function,
)
from lossmith.discovery.proposers.grammar import grammar

FAMILIES = ("preference", "token", "metric")
X = inputs_of("preference")
Z = make("sub", X["chosen_logps"], X["rejected_logps"])
BETA = setting("beta")


def drawn(family: str, seed: int) -> Program | None:
    """A program of the grammar that the genetic proposer uses, some constants made hyper-parameters."""
    dice, words = random.Random(seed), grammar(family)
    grown = dice.choice((lambda: words.loss(dice, 4), lambda: words.ramped(dice), lambda: words.item(dice, 4, True)))()
    try:
        plain = Program(family, grown)
        numbers = [node for node in plain.nodes if node.op == "const" and 0 < abs(float(node.value or 0)) < 100]
        if numbers and dice.random() < 0.5:
            from lossmith.discovery.program import replace

            chosen = dice.choice(numbers)
            return Program(family, replace(grown, {chosen: BETA}), {"beta": float(chosen.value or 0.0)})
        return plain
    except ProgramError:
        return None


def some_inputs(program: Program, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 1, 2])
    same = (labels[:, None] == labels) & ~torch.eye(5, dtype=torch.bool)
    given = {}
    for name in program.inputs:
        if name in ("same", "different"):
            given[name] = same if name == "same" else labels[:, None] != labels
        else:
            shape = (5, 5) if program.family == "metric" else (5,)
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
            given[name] = drawn if program.family == "metric" else -0.1 - 3 * drawn
    return given


def run_text(program: Program, given: dict[str, Tensor], **keywords: float) -> Tensor:
    # Our own text, of a program drawn here: the one place where it is run, to show that it is what it says.
    names = {"torch": torch, "F": torch.nn.functional, **vars(functions)}
    exec(to_python(program), names)  # noqa: S102
    return names["candidate_loss"](**given, **keywords)


def agree(program: Program, seed: int) -> None:
    for dtype in (torch.float64, torch.float32):
        given = {
            name: rows.to(dtype) if rows.is_floating_point() else rows
            for name, rows in some_inputs(program, seed).items()
        }
        sides = []
        for function in (run_text, lambda program, given: torch_function(program)(**given)):
            leaves = {
                name: rows.clone().requires_grad_() if rows.is_floating_point() else rows
                for name, rows in given.items()
            }
            losses = function(program, leaves)
            assert losses.dtype == dtype
            if losses.requires_grad:
                losses.sum().backward()
            sides.append([losses.detach(), *(rows.grad for rows in leaves.values() if rows.grad is not None)])
        for ours, expected in zip(*sides, strict=True):
            torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_computes_what_the_program_does_and_compiles_to_it(family):
    seen = {"number(": 0, ".unsqueeze(-1)": 0, "*, beta": 0}
    for seed in range(250):
        program = drawn(family, seed)
        if program is None or not program.inputs or program.root.type != "item":
            continue
        agree(program, seed)
        text = to_python(program)
        assert compile_source(text, family).key == program.key, text
        for part in seen:
            seen[part] += part in text
    assert seen["number("] > 3
    assert seen["*, beta"] > 30
    assert bool(seen[".unsqueeze(-1)"]) == (family == "metric")


def with_beta(root: Node) -> Program:
    return Program("preference", root, {"beta": 0.7})


@pytest.mark.parametrize(
    "part",
    [
        make("log", make("add", const(1), BETA)),
        make("max", BETA, const(0.5)),
        make("min", Z, const(0.5)),
        make("max", BETA, Z),
        make("detach", BETA),
        make("cast", make("gt", BETA, const(0.5))),
        make("where", make("gt", BETA, const(0.5)), const(1), const(2)),
        make("where", make("gt", BETA, const(0.5)), const(1), Z),
        make("where", make("gt", BETA, const(0.5)), make("mean_batch", Z), Z),
        make("where", make("gt", Z, const(0.5)), const(1), const(2)),
        make("not", make("gt", BETA, const(0.5))),
        make("div", const(1), make("sub", BETA, const(0.7))),
        make("pow", make("neg", BETA), const(0.5)),
        make("clamp", BETA, const(0), const(0.5)),
        make("sigmoid", make("softplus", BETA)),
        make("exp", make("mul", const(1000), BETA)),
    ],
)
def test_numbers_alone_are_written_as_torch_takes_them(part):
    value = make("cast", part) if part.type in ("flag", "mask") else part
    program = with_beta(make("add", make("softplus", make("neg", Z)), value))
    agree(program, 3)
    assert compile_source(to_python(program)).key == program.key
    given = some_inputs(program, 1)
    other = dict.fromkeys(program.hyperparameters, 0.2)
    torch.testing.assert_close(
        run_text(program, given, **other), torch_function(program)(**given, **other), equal_nan=True
    )


def test_a_chosen_number_is_one_per_item():
    head = "def f(chosen_logps, rejected_logps, *, beta=0.1):\n    z = chosen_logps - rejected_logps\n"
    source = head + "    return F.softplus(-z) + F.softplus(torch.where(beta > 0.05, 1.0, z))\n"
    verdict = check(source)
    assert verdict.category != "internal", verdict
    program = compile_source(source)
    given = some_inputs(program, 0)
    expected = torch.nn.functional.softplus(given["rejected_logps"] - given["chosen_logps"]) + np.log1p(np.e)
    torch.testing.assert_close(torch_function(program)(**given), expected)


def test_local_names_do_not_meet_those_of_settings():
    shared = make("sub", Z, setting("v2"))
    root = make("add", make("mul", shared, shared), make("softplus", make("mul", setting("v1"), Z)))
    program = Program("preference", root, {"v1": 2.0, "v2": 0.5})
    agree(program, 5)
    assert compile_source(to_python(program)).key == program.key
    assert from_json(program.to_json()) == program


@pytest.mark.parametrize("name", ["class", "torch", "chosen_logps", "béta", "number", "a b", ""])
def test_settings_have_names_that_a_text_can_hold(name):
    root = make("mul", setting(name), Z)
    with pytest.raises(ProgramError, match="cannot be called"):
        Program("preference", root, {name: 1.0})
    good = Program("preference", make("mul", setting("tau"), Z), {"tau": 1.0}).to_json()
    with pytest.raises(ProgramError):
        from_json(good.replace('"tau"', f'"{name}"'))


# ---- LaTeX


def test_names_that_end_as_a_module_does_stay():
    program = Program("preference", make("add", make("relu", Z), make("detach", setting("kF"))), {"kF": 2})
    assert one_line(program).endswith(" + kF.detach()")
    assert one_line(program).startswith("relu(")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_reads_as_the_program(family):
    count = 0
    for seed in range(250):
        program = drawn(family, seed)
        if program is None or not program.inputs or program.root.type != "item":
            continue
        given = some_inputs(program, seed)
        arrays = {name: rows.numpy() for name, rows in given.items()} | dict(program.hyperparameters)
        with np.errstate(all="ignore"):
            found = value_of(to_latex(program), arrays)
        expected = torch_function(program)(**given).numpy()
        found = np.broadcast_to(found[:, 0] if found.ndim == 2 else found, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=to_latex(program))
        count += 1
    assert count > 150


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (make("mul", X["chosen_logps"], const(-2)), r"\log \pi(y_c) \, \left(-2\right)"),
        (make("mul", const(2), make("mul", const(3), X["chosen_logps"])), r"2 \, \left(3 \, \log \pi(y_c)\right)"),
        (make("mul", const(1e-5), X["chosen_logps"]), r"10^{-5} \, \log \pi(y_c)"),
        (make("mul", const(-2.5e20), X["chosen_logps"]), r"-2.5 \cdot 10^{20} \, \log \pi(y_c)"),
        (make("sub", X["chosen_logps"], const(-3)), r"\log \pi(y_c) - \left(-3\right)"),
        (make("neg", make("neg", X["chosen_logps"])), r"-\left(-\log \pi(y_c)\right)"),
        (make("mul", const(0.123456789), X["chosen_logps"]), r"0.123456789 \, \log \pi(y_c)"),
    ],
)
def test_signs_and_numbers_are_read_as_they_are(root, expected):
    assert to_latex(Program("preference", root)) == expected
