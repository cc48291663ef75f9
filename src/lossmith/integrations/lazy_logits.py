"""Logits as a record of what a model does to them: what stands in their place while a loss is computed at the head."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lossmith.engines import LinearLogits
from lossmith.errors import ModelError

RECORDED = "scale, tanh soft-cap, slices over tokens, casts and added linear maps"


@dataclass(frozen=True)
class Product:
    """One linear map of the sum that makes logits: `inputs @ weight.T + bias`; no weight while it is not known yet."""

    inputs: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """Logits as a record of how they are made: linear maps, added up, times a scale, perhaps through a soft-cap.

    They stand for `outer * tanh(scale * sum)` where `outer` is given, else for `scale * sum`.
    """

    products: tuple[Product, ...]
    vocab: int
    model: str
    """Class of the model, for messages."""
    scale: float = 1.0
    outer: float | None = None

    @property
    def shape(self) -> torch.Size:
        """[..., vocab]."""
        return torch.Size((*self.products[0].inputs.shape[:-1], self.vocab))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of what they are made of."""
        return self.products[0].inputs.dtype

    @property
    def device(self) -> torch.device:
        """Where they would lie."""
        return self.products[0].inputs.device

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.products[0].inputs.ndim

    def size(self, axis: int | None = None) -> Any:
        """Shape, or one entry of it."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def to(self, *args: Any, **kwargs: Any) -> "LazyLogits":
        """A cast or a move changes nothing: statistics are float32 or better, where the output matrix lies."""
        return self

    contiguous = clone = to

    def tanh(self) -> "LazyLogits":
        """The soft-cap."""
        if self.outer is not None:
            raise self.refusal("a second tanh")
        return replace(self, outer=1.0)

    def __mul__(self, factor: object) -> "LazyLogits":
        number = self._number(factor, "a product with")
        if self.outer is not None:
            return replace(self, outer=self.outer * number)
        return replace(self, scale=self.scale * number)

    __rmul__ = __mul__
    mul = __mul__

    def __truediv__(self, factor: object) -> "LazyLogits":
        return self * (1.0 / self._number(factor, "a quotient with"))

    div = __truediv__

    def __neg__(self) -> "LazyLogits":
        return self * -1.0

    def __add__(self, other: object) -> "LazyLogits":
        if not isinstance(other, LazyLogits):
            raise self.refusal(f"a sum with {type(other).__name__}")
        if self.outer is not None or other.outer is not None:
            raise self.refusal("a sum behind a soft-cap")
        scaled = [replace(p, factor=p.factor * part.scale) for part in (self, other) for p in part.products]
        return replace(self, products=tuple(scaled), scale=1.0)

    add = __add__

    def __getitem__(self, index: object) -> "LazyLogits":
        parts = index if isinstance(index, tuple) else (index,)
        used = sum(part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else 1 for part in parts)
        if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
            *leading, last = parts
            if Ellipsis not in leading or last != slice(None):
                raise self.refusal("a slice of the vocabulary")
            parts, used = tuple(leading), 0
            index = (*parts, slice(None))
        if used >= self.ndim:
            *leading, last = parts
            if not isinstance(last, slice) or last != slice(None):
                raise self.refusal("a slice of the vocabulary")
            index = tuple(leading)
        return self._mapped(lambda inputs: inputs[index])  # pyright: ignore[reportArgumentType]

    def reshape(self, *shape: Any) -> "LazyLogits":
        """Another shape of the leading axes."""
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        whole = sizes[-1] == -1 and -1 not in sizes[:-1] and math.prod(sizes[:-1]) == math.prod(self.shape[:-1])
        if sizes[-1] != self.vocab and not (whole and len(sizes) > 1):
            raise self.refusal("a shape without the vocabulary as its last axis")
        return self._mapped(lambda inputs: inputs.reshape(*sizes[:-1], inputs.shape[-1]))

    view = reshape

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "LazyLogits":
        return replace(self, products=tuple(replace(p, inputs=change(p.inputs)) for p in self.products))

    def _number(self, value: object, what: str) -> float:
        if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
            return value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(f"{what} {_shown(value)}")
        return value

    def refusal(self, what: str) -> ModelError:
        """The error for what cannot be recorded."""
        return ModelError(
            f"{self.model} computes {what} on its logits, which cannot be recorded (what can: {RECORDED}): train it on "
            f"dense logits, with `compute_loss_func=lossmith.integrations.transformers.compute_loss(loss)` in "
            "transformers' own Trainer."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(name)
        raise self.refusal(f"`.{name}`")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch's functions do to them."""
        name = getattr(func, "__name__", str(func))
        lazy = next(value for value in (*args, *(kwargs or {}).values()) if isinstance(value, LazyLogits))
        if name == "tanh":
            return lazy.tanh()
        if name in ("mul", "multiply", "__mul__", "__rmul__") and len(args) == 2 and not kwargs:
            return lazy * (args[0] if args[1] is lazy else args[1])
        if name in ("div", "true_divide", "__truediv__") and len(args) == 2 and not kwargs and args[0] is lazy:
            return lazy / args[1]
        if name in ("add", "__add__", "__radd__") and len(args) == 2 and not kwargs:
            return lazy + (args[0] if args[1] is lazy else args[1])
        raise lazy.refusal(f"torch's `{name}`")

    def linear(self, model_scale: float, softcap: float | None) -> LinearLogits:
        """The logits as one linear map, then the model's scale and soft-cap.

        Maps added to the first one (LoRA) are joined to it: their inputs stand beside the hidden states, their
        matrices beside the output matrix. That copies the output matrix.
        """
        products, biases = self.products, [p.bias * p.factor for p in self.products if p.bias is not None]
        if any(p.weight is None for p in products):
            raise AssertionError("a stand-in is no linear map")
        if any(p.weight is not None and p.weight.numel() == 0 for p in products):
            raise ModelError(
                f"A weight within the output embedding of {self.model} is empty while its loss is computed, since "
                f"DeepSpeed ZeRO-3 fills them one by one: keep adapters and `modules_to_save` off the output "
                f"embedding, or use ZeRO-2 or FSDP2."
            )
        bias = None if not biases else biases[0] if len(biases) == 1 else torch.stack(biases).sum(0)
        first = products[0]
        if len(products) == 1 and first.factor == 1:
            assert first.weight is not None
            return LinearLogits(first.inputs, first.weight, first.bias, self.scale * model_scale, softcap)
        hidden = torch.cat([p.inputs * p.factor if p.factor != 1 else p.inputs for p in products], dim=-1)
        weight = torch.cat([p.weight for p in products], dim=-1)  # pyright: ignore[reportArgumentType]
        return LinearLogits(hidden, weight.to(hidden.dtype), bias, self.scale * model_scale, softcap)

    # Last, since within the class they hide the built-in names from here on.
    float = type = type_as = to


def _shown(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
