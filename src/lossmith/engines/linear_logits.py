"""Logits as the linear map that would make them: accepted wherever logits are, and never built."""

import math
from copy import copy
from typing import Any, final

import torch
import torch.distributed as dist

from lossmith._checks import check_one_of, check_positive, check_same_device, check_unit_interval
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError

IMPLS = ("auto", "dense", "chunked", "triton")


@final
class LinearLogits:
    r"""The logits `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`, unbuilt.

    Every token and region loss takes it in the place of logits, with the same values and gradients, and computes what
    it needs in chunks: memory grows with tokens and with vocabulary, not with their product. Lovász alone reads a
    table of tokens x classes that occur among the labels.

    Args:
        hidden: Last hidden states, [..., hidden].
        weight: Output matrix, [vocab, hidden], of the device and dtype of `hidden` (under autocast any dtype; products
            then round to autocast's). With a `group` this rank's slice of the vocabulary.
        bias: One number per class, [vocab], or None. -inf makes a class impossible (but not with a soft-cap, whose
            scores are finite).
        scale: Multiplies the scores, finite (Cohere's `logit_scale`; one over Granite's `logits_scaling`).
        softcap: Bounds the scaled scores to (-softcap, softcap), > 0, or None (Gemma's `final_logit_softcapping`).
        impl: The engine: "auto" (chunked), "dense" (builds the logits; the readable reference), "chunked" (pure torch,
            any device), "triton" (NVIDIA GPUs).
        skip_below: In the backward pass of the triton engine, tiles whose probabilities all lie below this are left
            out: an approximation, 0 (exact) unless asked for.
        group: Ranks of torch.distributed that share the vocabulary, in rank order, each with the same `hidden` and its
            own slice of `weight` and `bias` (tensor parallel). Values are those of one rank with the whole vocabulary;
            each rank has the gradient of its own slice and the whole gradient of `hidden`.

    Raises:
        ObjectiveInputError: For shapes, dtypes or devices that do not fit, a sharded weight, or a setting that the
            engine does not have.

    Example:
        >>> import lossmith
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
        >>> logits = LinearLogits(hidden, weight)
        >>> logits.shape
        torch.Size([2, 3])
        >>> lossmith.loss("cross_entropy")(logits, torch.tensor([1, 2]))
        tensor(0.9795)
    """

    def __init__(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        weight: Float[Tensor, "vocab hidden"],
        bias: Float[Tensor, " vocab"] | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
        *,
        impl: str = "auto",
        skip_below: float = 0.0,
        group: Any = None,
    ):
        self.hidden = hidden
        self.weight = weight
        self.bias = bias
        self.scale = float(_number("scale", scale))
        self.softcap = None if softcap is None else float(_number("softcap", softcap))
        self.impl = impl
        self.skip_below = skip_below
        self.group = group
        self.watch: Any = None
        self.operand_dtype = _autocast_dtype(hidden) if isinstance(hidden, Tensor) else None
        self._check()
        self.vocab_start, self.vocab, self.largest_slice = self._vocabulary()

    @property
    def shape(self) -> torch.Size:
        """Shape of the logits that are not built, [..., vocab]."""
        return torch.Size((*self.hidden.shape[:-1], self.vocab))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the statistics: float32, or float64 where `hidden` is."""
        return at_least_float32(self.hidden.new_empty(0)).dtype

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.hidden.device

    @property
    def requires_grad(self) -> bool:
        """Whether anything that the logits are made of asks for a gradient."""
        return any(part.requires_grad for part in self.parts)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that the logits are made of."""
        return (self.hidden, self.weight) if self.bias is None else (self.hidden, self.weight, self.bias)

    @property
    def engine(self) -> str:
        """The engine that serves it: "dense", "chunked" or "triton"."""
        return "chunked" if self.impl == "auto" else self.impl

    def dense(self) -> Float[Tensor, "*batch vocab"]:
        """The logits, built: the reference that every engine is compared with.

        Raises:
            ObjectiveInputError: Where a `group` shares the vocabulary.
        """
        if self.group is not None:
            raise ObjectiveInputError("Logits whose vocabulary is shared by a `group` cannot be built on one rank.")
        hidden, weight = self.hidden, self.weight
        if self.operand_dtype is not None:
            hidden, weight = hidden.to(self.operand_dtype), weight.to(self.operand_dtype)
        scores = at_least_float32(hidden @ weight.T)
        if self.bias is not None:
            scores = scores + self.bias
        scores = scores * self.scale if self.scale != 1 else scores
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return scores

    def flattened(self) -> "LinearLogits":
        """The same logits with one axis for all rows."""
        flat = copy(self)
        flat.hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        return flat

    def with_parts(self, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> "LinearLogits":
        """The same map with other tensors; None where they are not to be held."""
        other = copy(self)
        other.hidden, other.weight, other.bias = hidden, weight, bias  # pyright: ignore[reportAttributeAccessIssue]
        return other

    def zero(self) -> Float[Tensor, ""]:
        """A 0 in the graph of everything that the logits are made of, whatever values that holds."""
        return torch.stack([part.reshape(-1)[:0].sum().to(self.dtype) for part in self.parts]).sum()

    def __repr__(self) -> str:
        parts = [f"hidden={tuple(self.hidden.shape)}", f"weight={tuple(self.weight.shape)}"]
        parts += [f"bias={tuple(self.bias.shape)}"] if self.bias is not None else []
        parts += [f"scale={self.scale:g}"] if self.scale != 1 else []
        parts += [f"softcap={self.softcap:g}"] if self.softcap is not None else []
        return f"LinearLogits({', '.join(parts)}, impl='{self.impl}', dtype={self.hidden.dtype}, device={self.device})"

    def _check(self) -> None:
        for name, ndim in (("hidden", None), ("weight", 2), ("bias", 1)):
            _check_tensor(name, getattr(self, name), ndim)
        width = self.hidden.shape[-1]
        if self.weight.shape[0] == 0:
            raise ObjectiveInputError(
                f"`weight` must have a row for each class, got none, {tuple(self.weight.shape)}: is it sharded "
                f"elsewhere?"
            )
        if self.weight.shape[1] != width:
            raise ObjectiveInputError(
                f"`weight` must be [vocab, hidden] with hidden = {width}, the last axis of `hidden`, got "
                f"{tuple(self.weight.shape)}."
            )
        if self.bias is not None and self.bias.shape[0] != self.weight.shape[0]:
            raise ObjectiveInputError(
                f"`bias` must have one number per row of `weight`, ({self.weight.shape[0]},), got "
                f"{tuple(self.bias.shape)}."
            )
        check_same_device(**dict(zip(("hidden", "weight", "bias"), self.parts, strict=False)))
        self._check_dtypes()
        if self.softcap is not None:
            check_positive("softcap", self.softcap)
        check_one_of("impl", self.impl, IMPLS)
        check_unit_interval("skip_below", _number("skip_below", self.skip_below))
        if self.skip_below and self.impl != "triton":
            raise ObjectiveInputError(
                f"`skip_below` is an approximation of the triton engine: give impl='triton' or leave it at 0, got "
                f"{self.skip_below:g} with impl='{self.impl}'."
            )
        if self.group is not None and self.engine != "chunked":
            raise ObjectiveInputError(f"A `group` needs impl='chunked' (or 'auto'), got impl='{self.impl}'.")
        if self.group is not None and not (dist.is_available() and isinstance(self.group, dist.ProcessGroup)):
            raise ObjectiveInputError(
                f"`group` must be a process group of torch.distributed, got {type(self.group).__name__}."
            )

    def _check_dtypes(self) -> None:
        if self.operand_dtype is None:
            for name, part in zip(("weight", "bias"), self.parts[1:], strict=False):
                # A bias in float32 beside half precision costs nothing and loses nothing.
                if part.dtype != self.hidden.dtype and (name == "weight" or part.dtype != torch.float32):
                    raise ObjectiveInputError(
                        f"`{name}` must have the dtype of `hidden`, {self.hidden.dtype}, got {part.dtype}: cast one of "
                        f"them, or make LinearLogits under torch.autocast."
                    )

    def _vocabulary(self) -> tuple[int, int, int]:
        """First class of this rank, the size of the whole vocabulary and that of the largest rank's slice of it."""
        own = self.weight.shape[0]
        if self.group is None:
            return 0, own, own
        counts = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(counts, torch.tensor([own], device=self.device), group=self.group)
        sizes = [int(count) for count in counts]
        return sum(sizes[: dist.get_rank(self.group)]), sum(sizes), max(sizes)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ObjectiveInputError(f"`{name}` must be a finite number, got {value!r}.")
    return value


def _check_tensor(name: str, value: object, ndim: int | None) -> None:
    if value is None and name == "bias":
        return
    if not isinstance(value, Tensor):
        raise ObjectiveInputError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    # A DTensor (FSDP2, tensor parallel) or a ZeRO-3 placeholder holds a part of its rows, or none.
    if hasattr(value, "device_mesh") or (hasattr(value, "ds_id") and value.numel() == 0):
        raise ObjectiveInputError(
            f"`{name}` is sharded over ranks ({type(value).__name__}, {tuple(value.shape)}): make LinearLogits inside "
            f"the wrapped forward, where it is whole, or give each rank its slice of the vocabulary with `group`."
        )
    if not value.is_floating_point():
        raise ObjectiveInputError(f"`{name}` must be a floating-point tensor, got {value.dtype}.")
    if value.ndim != ndim if ndim is not None else value.ndim < 1 or value.shape[-1] == 0:
        axes = {"hidden": "[..., hidden]", "weight": "[vocab, hidden]", "bias": "[vocab]"}[name]
        raise ObjectiveInputError(f"`{name}` must be {axes}, got {tuple(value.shape)}.")


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """What autocast rounds the operands of a product to, here and now; it leaves float64 alone."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
