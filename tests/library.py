"""The losses that the module tests walk, and inputs that tell a right answer from a wrong one."""

import inspect
import types
from collections.abc import Callable

import torch
from torch import Tensor

import lossmith
from lossmith.nn import LossModule, parse_composition
from lossmith.objectives import ObjectiveRecord, get_record
from lossmith.testing import draw_statistics
from lossmith.testing.samples import CLASSES, DIM, VOCAB

EVERY = [str(record) for record in lossmith.list_losses()]
NAMES = [str(record) for record in lossmith.list_losses() if record.family in ("token", "region", "metric")]
VARIANTS = ["cross_entropy(label_smoothing=0.2)", "focal(gamma=0.5)"]
LOSSES = NAMES + VARIANTS


def record_of(text: str) -> ObjectiveRecord:
    return parse_composition(text).terms[0].record


def names(*, family: str | None = None, batch_coupled: bool | None = None) -> list[str]:
    """Losses, variants included, of one family or one kind of coupling."""
    return [
        text
        for text in LOSSES
        if family in (None, record_of(text).family) and batch_coupled in (None, record_of(text).batch_coupled)
    ]


def build(text: str, *, dtype: torch.dtype = torch.float64, **settings) -> LossModule:
    """The loss with sizes where it owns proxies, drawn from a fixed seed."""
    torch.manual_seed(5)
    sizes = {"num_classes": CLASSES, "embedding_dim": DIM}
    required = parse_composition(text).required
    return lossmith.loss(text, **{name: sizes[name] for name in required}, **settings).to(dtype)


def scores_for(module: LossModule, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random logits or embeddings of `shape` rows, as a leaf that collects gradients."""
    generator = torch.Generator().manual_seed(seed)
    columns = DIM if "embeddings" in module.inputs else VOCAB
    values = 1.7 * torch.randn(*shape, columns, generator=generator, dtype=torch.float64) + 0.3
    return values.to(dtype).requires_grad_()


def labels_for(*shape: int, seed: int = 0) -> Tensor:
    """Random classes below `CLASSES`."""
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(100 + seed))


def gradients(value: Tensor, module: LossModule, *scores: Tensor) -> list[Tensor]:
    """Gradients of the scores and of the loss's own parameters; every one of them takes part in the graph."""
    return list(torch.autograd.grad(value, [*scores, *module.parameters()]))


def make_statistics(record: ObjectiveRecord, *, rows: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Float64 statistics that an objective of any family reads; its hyper-parameters at their defaults."""
    return draw_statistics(record, rows=rows, seed=seed)


def plain(function: Callable) -> Callable:
    """A function without the type-checking wrappers, its helpers included, as a user's process has it.

    The wrapper of jaxtyping and beartype cannot be traced by torch.compile.
    """
    bare = inspect.unwrap(function)
    scope = {
        name: plain(value) if inspect.isfunction(value) and value.__module__.startswith("lossmith.") else value
        for name, value in bare.__globals__.items()
        if name in bare.__code__.co_names
    }
    copy = types.FunctionType(bare.__code__, {**bare.__globals__, **scope}, bare.__name__, bare.__defaults__)
    copy.__kwdefaults__ = bare.__kwdefaults__
    return copy


def defaults(name: str) -> dict[str, object]:
    """Hyper-parameters that reach the pure function, with their defaults."""
    record = get_record(name)
    return {k: v for k, v in record.hyperparameters.items() if k not in record.module_hyperparameters}
