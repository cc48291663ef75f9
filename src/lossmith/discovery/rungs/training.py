"""What the small rungs share: a program as a loss module, seeded draws, and one loop that says whose fault a NaN is."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lossmith.discovery.draws import draw
from lossmith.discovery.program import Program, as_objective
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import Block, CandidateError, HarnessError
from lossmith.nn import MetricLoss, ObjectiveModule, PreferenceLoss, TokenLoss
from lossmith.objectives import ObjectiveRecord

MODULES: dict[str, type[ObjectiveModule]] = {"preference": PreferenceLoss, "token": TokenLoss, "metric": MetricLoss}
"""Family -> the module that serves its programs, the same as for any loss of the library."""


def as_program(program: ProgramLike, family: str) -> Program:
    """The candidate as the program that a rung of `family` can train with.

    Raises:
        HarnessError: If the engine handed over something else.
    """
    if not isinstance(program, Program) or program.family != family:
        raise HarnessError(f"A rung of family '{family}' was given {type(program).__name__} `{program.key}`.")
    return program


def record_of(program: Program) -> ObjectiveRecord:
    """The objective of a program, named by its key."""
    return as_objective(program, f"candidate_{program.key[:12]}")


def module_of(program: ProgramLike, family: str) -> ObjectiveModule:
    """The program as a loss module: what `lossmith.loss` would return for a loss of the library."""
    module = MODULES[family](record_of(as_program(program, family)), {})
    if isinstance(module, MetricLoss):
        # Batches of a rung are what they are, for every program alike: no user can make them larger.
        module._warned_of_single_rows = True
    return module


def generator_of(block: Block, purpose: str, *, training: bool = False) -> np.random.Generator:
    """The draws of a block for one purpose; those of training differ between the control and its twin.

    Blocks of the search and of the confirmation draw from different streams even where their seeds were equal.
    """
    return draw(block.training_seed if training else block.seed, block.index, f"{block.split}/{purpose}")


def environment_of(settings: dict[str, Any]) -> str:
    """A short hash of what a rung's numbers depend on beside the block.

    Example:
        >>> environment_of({"steps": 3}) == environment_of({"steps": 3}), len(environment_of({}))
        (True, 12)
    """
    everything = settings | {"torch": torch.__version__, "numpy": np.__version__}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:12]


def fit(
    parameters: Sequence[torch.Tensor],
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
) -> float:
    """Adam with a rate that falls to 0 in a straight line; returns the last loss.

    Args:
        parameters: What is trained, in place.
        loss_of: Step -> the candidate's mean loss on the batch of that step.
        steps: How many.
        learning_rate: Of the first step.

    Raises:
        CandidateError: If a loss or a gradient is not finite, or the loss does not depend on the parameters.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    value = math.nan
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        loss = loss_of(step)
        if not loss.requires_grad:
            raise CandidateError(f"Step {step + 1}: the loss does not depend on the model.")
        optimizer.zero_grad()
        loss.backward()
        value = loss.item()
        if not (math.isfinite(value) and all(_finite(each.grad) for each in parameters)):
            raise CandidateError(f"Step {step + 1}: the loss is {value:g} and loss or gradient is not finite.")
        optimizer.step()
    return value


def _finite(gradient: torch.Tensor | None) -> bool:
    # One sum instead of a mask: an infinity or NaN anywhere makes it one.
    return gradient is None or math.isfinite(gradient.sum().item())


def batches(count: int, size: int, steps: int, generator: np.random.Generator) -> list[torch.Tensor]:
    """Row numbers of each step: passes over all rows, each in an order of its own.

    Example:
        >>> [len(rows) for rows in batches(5, 2, 4, np.random.default_rng(0))]
        [2, 2, 2, 2]
    """
    passes = -(-steps * size // count)
    order = torch.from_numpy(np.concatenate([generator.permutation(count) for _ in range(passes)]))
    return list(order[: steps * size].split(size))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For matrices this small a second thread only waits; and the number of threads is part of what is measured."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


def floats(values: np.ndarray) -> torch.Tensor:
    """An array as float32."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
