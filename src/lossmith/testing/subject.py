"""The objective under test, alone and in its module, and what the checks say where it is wrong."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lossmith._checks import did_you_mean
from lossmith._typing import Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.nn import MetricLoss, ObjectiveModule, PreferenceLoss, RegionLoss, TokenLoss, UnpairedLoss
from lossmith.objectives import ObjectiveRecord, list_losses, objective
from lossmith.objectives._registry import describe
from lossmith.testing.samples import SIZES, Batch, draw_statistics

_MODULES: dict[str, type[ObjectiveModule]] = {
    "token": TokenLoss,
    "region": RegionLoss,
    "preference": PreferenceLoss,
    "unpaired": UnpairedLoss,
    "metric": MetricLoss,
}


class Failure(Exception):
    """A rule is broken: what was expected and what came."""


class Skip(Exception):
    """A check does not apply: why."""


@dataclass(frozen=True)
class Subject:
    """One objective with its hyper-parameters."""

    record: ObjectiveRecord
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    traceable: Callable[..., Any] = inspect.unwrap

    @property
    def settings(self) -> dict[str, Any]:
        """Hyper-parameters that reach the function."""
        own = {**self.record.hyperparameters, **self.hyperparameters}
        return {name: value for name, value in own.items() if name not in self.record.module_hyperparameters}

    def statistics(self, **draw: Any) -> dict[str, Tensor]:
        """Random statistics for the function."""
        return draw_statistics(self.record, hyperparameters=self.hyperparameters, **draw)

    def call(self, statistics: dict[str, Tensor], **settings: Any) -> Tensor:
        """The function alone."""
        return self.record.function(**statistics, **self.settings | settings)

    def module(self, dtype: torch.dtype = torch.float64) -> ObjectiveModule:
        """A fresh module, its proxies always the same."""
        sizes = {name: SIZES[name] for name in self.record.required}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            module = _MODULES[self.record.family](self.record, self.hyperparameters, **sizes)
        return module.to(dtype)


def find_record(function: Callable[..., Any], declaration: dict[str, Any]) -> ObjectiveRecord:
    """The record of a recorded function, or of one that is described by the keywords of `objective`.

    Raises:
        ObjectiveInputError: If the function is neither recorded nor described, or both.
    """
    name = getattr(function, "__name__", repr(function))
    own = inspect.unwrap(function)
    found = [record for record in list_losses() if inspect.unwrap(record.function) is own]
    if found and declaration:
        raise ObjectiveInputError(f"`{next(iter(declaration))}` of {name} comes from its decorator: leave it out here.")
    if not found and not declaration:
        raise ObjectiveInputError(
            f"{name} is not recorded: decorate it with `@lossmith.objective(...)`, or give the keywords of that "
            f"decorator here, such as family='token', item='token'."
        )
    if found:
        return found[0]
    known = inspect.signature(objective).parameters
    for keyword in declaration:
        if keyword not in known:
            hint = f"{did_you_mean(keyword, known)} Known: {', '.join(known)}."
            raise ObjectiveInputError(f"`lossmith.objective` has no keyword `{keyword}`.{hint}")
    missing = [keyword for keyword in ("family", "item") if keyword not in declaration]
    if missing:
        raise ObjectiveInputError(f"{name} is not recorded, so its `{missing[0]}` must be given here.")
    return describe(function, **declaration)


def run(module: ObjectiveModule, batch: Batch, **call: Any) -> tuple[Tensor, list[Tensor]]:
    """Value of a module and the gradients of the sum of it: those of the batch's leaves, then of the parameters."""
    batch = batch.fresh()
    value = module(**batch.inputs, **call)
    return value, slopes(value, [*batch.leaves, *module.parameters()])


def slopes(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of the sum of `value`, zeros for what it does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(found, leaves, strict=True)]


def require_equal(what: str, got: Tensor, wanted: Tensor, *, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Raise `Failure` with the entry that is farthest off unless two tensors are equal."""
    if got.shape != wanted.shape:
        raise Failure(f"{what}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}")
    got, wanted = got.detach().double(), wanted.detach().double()
    if torch.allclose(got, wanted, rtol=rtol, atol=atol):
        return
    if bool(torch.isnan(wanted).any()):
        raise Failure(f"{what}: expected numbers, what they are compared with is nan itself")
    off = ((got - wanted).abs() / (wanted.abs() + atol + 1e-300)).nan_to_num(nan=torch.inf).flatten()
    place = int(off.argmax())
    came, expected = got.flatten()[place].item(), wanted.flatten()[place].item()
    where = "" if wanted.ndim == 0 else f" at entry {place}"
    raise Failure(f"{what}: expected {expected:.8g}{where}, got {came:.8g}")


def require_finite(what: str, *tensors: Tensor) -> None:
    """Raise `Failure` with the first value that is not finite."""
    for tensor in tensors:
        wrong = tensor.detach()[~torch.isfinite(tensor.detach())]
        if wrong.numel():
            raise Failure(f"{what}: expected finite numbers, got {wrong.flatten()[0].item()}")
