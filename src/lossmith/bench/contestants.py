"""Who is measured: our engines, and the ways of others to the same loss and gradients."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import lossmith
from lossmith._checks import did_you_mean
from lossmith._typing import Tensor
from lossmith.bench.cases import Case, Inputs
from lossmith.errors import ConfigurationError

ENGINES = ("chunked", "triton", "dense")
IGNORED = -100

Step = Callable[[], Tensor | None]
"""Forward and backward, finished when it returns; the loss, or None where nothing is one."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to a loss and its gradients."""

    competitor: str | None = None
    """A name in `COMPETITORS`; None for our own."""
    loss: str = "cross_entropy"
    """Name or composition; a competitor knows cross_entropy alone."""
    engine: str | None = None
    """Ours: "chunked", "triton" or "dense"."""
    reduction: str = "mean"
    """Ours: with "none" the backward pass starts from one random number per token."""

    @property
    def own(self) -> bool:
        """Whether it is lossmith."""
        return self.competitor is None

    def __str__(self) -> str:
        if self.competitor is not None:
            return COMPETITORS[self.competitor].label
        reduction = "" if self.reduction == "mean" else f", reduction {self.reduction}"
        return f"lossmith {self.loss}, {self.engine}{reduction}"


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """Somebody else's cross-entropy of a linear map."""

    label: str
    """How tables name it."""
    build: Callable[[Inputs], Step]
    """From the inputs to what is measured."""
    package: str | None = None
    """Module that brings it."""
    needs_cuda: bool = False
    logits: float = 0.0
    """How many tensors of the size of the logits it holds at a time, about."""


def obstacle(contestant: Contestant, case: Case) -> str | None:
    """Why it cannot run here, in a few words, or None."""
    if contestant.competitor is None:
        if contestant.engine != "triton":
            return None
        if case.device != "cuda":
            return "needs CUDA"
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    competitor = COMPETITORS[contestant.competitor]
    if competitor.needs_cuda and case.device != "cuda":
        return "needs CUDA"
    if competitor.package and importlib.util.find_spec(competitor.package) is None:
        return "not installed"
    if contestant.competitor.startswith("torch_chunked") and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return f"not in torch {torch.__version__}"
    return None


def logits_held(contestant: Contestant) -> float:
    """How many tensors of the size of the logits it holds at a time, about."""
    if contestant.competitor is not None:
        return COMPETITORS[contestant.competitor].logits
    return 4.0 if contestant.engine == "dense" else 0.0


def make_step(contestant: Contestant, inputs: Inputs) -> Step:
    """Forward and backward on these inputs, whose gradients it leaves in `grad`."""
    name = contestant.competitor
    step = _own(inputs, contestant) if name is None else COMPETITORS[name].build(inputs)
    return _finished(step, inputs.hidden.device)


def plan_of(contestant: Contestant, inputs: Inputs) -> str | None:
    """Plan and number of products of one of ours that builds no logits."""
    if not contestant.own or contestant.engine == "dense":
        return None
    loss = lossmith.loss(contestant.loss)
    plan = loss.plan(_linear_logits(inputs, contestant), inputs.labels, reduction=contestant.reduction)
    return f"{plan.name}, {plan.products} products"


def check_loss(text: str) -> None:
    """Raise unless this is a loss of logits and labels alone.

    Raises:
        LossmithError: For a text that names no loss, or one that reads something else.
    """
    loss = lossmith.loss(text)
    if "[" in str(loss) or "->" in str(loss):
        raise ConfigurationError(
            f"The benchmark draws one set of labels and no training: '{text}' has a scope or a schedule. "
            f"Give its terms alone."
        )
    required = loss.required
    if set(required) - {"logits", "labels"} or "logits" not in required:
        shown = ", ".join(f"`{name}`" for name in required)
        raise ConfigurationError(f"The benchmark measures losses of `logits` and `labels`; '{text}' reads {shown}.")


def check_names(names: tuple[str, ...], known: tuple[str, ...], setting: str) -> None:
    """Raise `ConfigurationError` for a name that is not known."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigurationError(f"`{setting}` knows no '{name}'.{hint} Known: {', '.join(known)}.")


def _finished(step: Step, device: torch.device) -> Step:
    """The step, waiting for the device."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)
    if wait is None:
        return step

    def synchronised() -> Tensor | None:
        loss = step()
        wait()
        return loss

    return synchronised


def _differentiated(inputs: Inputs, forward: Callable[[], Tensor]) -> Step:
    def step() -> Tensor:
        inputs.hidden.grad = inputs.weight.grad = None
        loss = forward()
        loss.backward()
        return loss.detach()

    return step


def _linear_logits(inputs: Inputs, contestant: Contestant) -> lossmith.LinearLogits:
    return lossmith.LinearLogits(inputs.hidden, inputs.weight, impl=contestant.engine or "auto")


def _own(inputs: Inputs, contestant: Contestant) -> Step:
    loss = lossmith.loss(contestant.loss)

    def forward() -> Tensor:
        value = loss(_linear_logits(inputs, contestant), inputs.labels, reduction=contestant.reduction)
        return (value * inputs.upstream).sum() if contestant.reduction == "none" else value

    return _differentiated(inputs, forward)


def _dense(inputs: Inputs) -> Step:
    return _differentiated(inputs, lambda: F.cross_entropy(inputs.hidden @ inputs.weight.T, inputs.labels))


def _products(inputs: Inputs) -> Step:
    """The products of plain code, with torch.mm, and nothing between them."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()

    def step() -> None:
        inputs.hidden.grad = inputs.weight.grad = None
        scores = torch.mm(hidden, weight.T)
        # Kept to the end, as the gradients of the others are.
        gradients = torch.mm(scores, weight), torch.mm(scores.T, hidden)
        del scores, gradients

    return step


def _torch_chunked(inputs: Inputs, **options: Any) -> Step:
    chosen = torch.nn.LinearCrossEntropyOptions(**options)
    return _differentiated(
        inputs, lambda: F.linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, options=chosen)
    )


def _trl(inputs: Inputs) -> Step:
    """As TRL's trainers call it: only rows that count where it runs Triton, every row elsewhere."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    columns = getattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32_768)
    valid = inputs.labels != IGNORED
    compact = inputs.hidden.device.type == "cuda"

    def forward() -> Tensor:
        hidden = inputs.hidden[valid] if compact else inputs.hidden
        labels = inputs.labels[valid] if compact else inputs.labels.clamp(min=0)
        # Without the entropy and the other outputs that its trainers log, which would cost it more time.
        token_logps, *_ = ChunkedLogProbFunction.apply(hidden, inputs.weight, None, labels, 1.0, columns, None, 1.0, ())
        kept = token_logps if compact else token_logps.masked_fill(~valid, 0)
        return -kept.sum() / valid.sum()

    return _differentiated(inputs, forward)


def _liger(inputs: Inputs) -> Step:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)
    return _differentiated(inputs, lambda: loss(inputs.weight, inputs.hidden, inputs.labels))


def _cut_cross_entropy(inputs: Inputs) -> Step:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    return _differentiated(
        inputs, lambda: linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, ignore_index=IGNORED)
    )


COMPETITORS = {
    "dense": Competitor(label="torch, dense", build=_dense, logits=3),
    "products": Competitor(label="bare three products", build=_products, logits=1),
    "torch_chunked": Competitor(label="torch, chunked (defaults)", build=_torch_chunked),
    "torch_chunked_256": Competitor(
        label="torch, chunked (256 rows)",
        build=lambda inputs: _torch_chunked(inputs, batch_chunk_size=256, chunking_method=None),
    ),
    "trl": Competitor(label="TRL, chunked", build=_trl, package="trl"),
    "liger": Competitor(label="Liger, fused", build=_liger, package="liger_kernel", needs_cuda=True),
    "cut_cross_entropy": Competitor(
        label="cut-cross-entropy", build=_cut_cross_entropy, package="cut_cross_entropy", needs_cuda=True
    ),
}
"""By the name that `--against` takes. `dense` is what a user writes by hand."""
