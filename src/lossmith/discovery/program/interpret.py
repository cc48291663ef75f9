"""From a program to a torch function: a flat list of calls, made once, without any generated source."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lossmith._numerics import at_least_float32
from lossmith._typing import Tensor
from lossmith.discovery.program.nodes import Node, order
from lossmith.discovery.program.operators import OPERATORS
from lossmith.discovery.program.program import ITEM, Program
from lossmith.discovery.program.types import ProgramError
from lossmith.objectives import ObjectiveRecord
from lossmith.objectives._registry import describe

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class _Step:
    """One call: a function, where its arguments lie, what of them grows an axis, and whether it is told the type."""

    function: Callable[..., Any]
    places: tuple[int, ...]
    wider: tuple[int, ...]
    """Arguments of one number per item that meet a table."""
    typed: bool


def _plan(program: Program) -> tuple[list[Any], dict[str, int], list[_Step]]:
    """Slots with the constants filled in, name -> slot, and the calls, each of which fills the next slot."""
    leaves: list[Any] = []
    places: dict[Node, int] = {}
    names: dict[str, int] = {}
    nodes = order(program.root)
    for node in nodes:
        if not node.args:
            places[node] = len(leaves)
            if node.op != "const":
                names[str(node.value)] = len(leaves)
            leaves.append(node.value if node.op == "const" else None)
    steps: list[_Step] = []
    plain = {node for node in nodes if node.op in ("const", "hyperparameter")}
    for node in nodes:
        if not node.args:
            continue
        operator = OPERATORS[node.op]
        table = any(arg.type in ("table", "table_mask") for arg in node.args)
        wider = tuple(i for i, arg in enumerate(node.args) if table and arg.type in ("item", "mask"))
        where = tuple(places[arg] for arg in node.args)
        if all(arg in plain for arg in node.args):
            # Numbers and hyper-parameters alone: numpy, since torch's functions take no plain numbers.
            plain.add(node)
            steps.append(_Step(_on_numbers(operator.numpy), where, (), False))
        else:
            steps.append(_Step(operator.torch, where, wider, operator.typed))
        places[node] = len(leaves) + len(steps) - 1
    return leaves, names, steps


def _on_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*numbers: float) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(function(*(np.float64(number) for number in numbers))).item()

    return call


def torch_function(program: Program, name: str = "candidate_loss") -> Callable[..., Tensor]:
    """A differentiable function of the program's inputs, with its hyper-parameters as keywords.

    It has the signature of a handwritten objective, so `lossmith.testing.check_objective`, `lossmith.objective` and
    every engine take it. Half precision goes up, float64 stays; lengths may be integers.

    Args:
        program: What to compute.
        name: Name of the function.

    Raises:
        ProgramError: If it reads no input, so that nothing says how many items there are.

    Example:
        >>> from lossmith.discovery.program import const, inputs_of, make
        >>> x = inputs_of("preference")
        >>> margin = make("sub", x["chosen_logps"], x["rejected_logps"])
        >>> hinge = torch_function(Program("preference", make("relu", make("sub", const(1), margin))))
        >>> hinge(torch.tensor([-1.0]), torch.tensor([-1.25]))
        tensor([0.7500])
    """
    if not program.inputs:
        raise ProgramError("The program reads no input.")
    leaves, places, steps = _plan(program)
    inputs, defaults = program.inputs, dict(program.hyperparameters)
    spots = [places[input] for input in inputs]
    calls = [(step.function, step.places, step.wider, step.typed) for step in steps]

    def run(*given: Tensor, **keywords: Any) -> Tensor:
        slots = list(leaves)
        values = given if len(given) == len(inputs) else _bind(name, inputs, given, keywords)
        dtype = values[0].dtype
        if dtype in _WIDE and all(value.dtype == dtype for value in values):
            for spot, value in zip(spots, values, strict=True):
                slots[spot] = value
        else:
            dtype = torch.float32
            for spot, value in zip(spots, values, strict=True):
                slots[spot] = at_least_float32(value)
                if value.is_floating_point():
                    dtype = torch.promote_types(dtype, value.dtype)
        for setting, default in defaults.items():
            slots[places[setting]] = keywords.get(setting, default)
        for word in keywords:
            if word not in defaults and word not in inputs[len(given) :]:
                raise TypeError(f"{name}() got an unexpected keyword argument '{word}'")
        for function, where, wider, typed in calls:
            arguments = [slots[place] for place in where]
            for place in wider:
                arguments[place] = arguments[place].unsqueeze(-1)
            slots.append(function(*arguments, dtype) if typed else function(*arguments))
        result = slots[-1] if calls else slots[spots[0]]
        return result if isinstance(result, Tensor) else torch.full_like(slots[spots[0]], result, dtype=dtype)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"{one_line_of(program)}"
    run.__signature__ = _signature(program)  # type: ignore[attr-defined]
    return run


def one_line_of(program: Program) -> str:
    """The formula, for a docstring."""
    from lossmith.discovery.program.render import one_line

    return f"Compute {one_line(program)}."


def _bind(name: str, inputs: tuple[str, ...], given: tuple[Tensor, ...], keywords: dict[str, Any]) -> list[Tensor]:
    """The inputs in order, whether given by place or by name."""
    if len(given) > len(inputs):
        raise TypeError(f"{name}() takes {len(inputs)} positional arguments but {len(given)} were given")
    values = list(given)
    for input in inputs[len(given) :]:
        if input not in keywords:
            raise TypeError(f"{name}() missing 1 required positional argument: '{input}'")
        values.append(keywords[input])
    return values


def _signature(program: Program) -> inspect.Signature:
    inputs = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor) for name in program.inputs
    ]
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=float)
        for name, default in program.hyperparameters.items()
    ]
    return inspect.Signature([*inputs, *settings], return_annotation=Tensor)


def as_objective(program: Program, name: str, *, source: str = "") -> ObjectiveRecord:
    """The record of a program, as `lossmith.objective` makes it of a function, without entering the library.

    Args:
        program: What to compute; one number per item.
        name: Name of the objective.
        source: Where it comes from.

    Raises:
        ProgramError: If the program does not give one number per item.
        ObjectiveInputError: If the program reads nothing that its family has.
    """
    if program.root.type != "item":
        raise ProgramError(f"An objective gives one number per {ITEM[program.family]}, not a {program.root.type}.")
    function = torch_function(program, f"{name}_loss")
    masks = {"same", "different"} & set(program.inputs)
    facts: dict[str, Any] = {}
    if program.family == "metric":
        facts = {
            "module_hyperparameters": {"normalize": True},
            "needs_positives": "same" in masks,
            "row_local": not any(node.type == "scalar" and node.args for node in order(program.literal_root)),
        }
    return describe(
        function,
        family=program.family,
        item=ITEM[program.family],
        source=source,
        batch_coupled=program.batch_coupled,
        **facts,
    )
