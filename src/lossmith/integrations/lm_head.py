"""A loss at the output embedding of a causal language model, inside its wrapped forward; the logits are never built.

For the length of one forward a stand-in takes the place of the output embedding and returns `LazyLogits`, which record
what the model does to its logits afterwards. At the end of that forward the true output embedding is called once, with
a loss as its result: whatever wraps the model or the embedding (DDP, FSDP2, DeepSpeed, LoRA) sees an ordinary forward
of an ordinary module, and has its parameters whole while they are used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.engines import LinearLogits
from lossmith.errors import ModelError
from lossmith.integrations.lazy_logits import LazyLogits, Product

Compute = Callable[[LinearLogits], Tensor]
"""A loss of logits [batch, seq, vocab] that are not built."""


class _StandIn(nn.Module):
    """Takes the place of an output embedding for one forward, and keeps what it was called with."""

    def __init__(self, head: nn.Module, vocab: int, model: str):
        super().__init__()
        # In a list, so that it is no submodule of its own stand-in.
        self._head, self._vocab, self._model = [head], vocab, model
        self.autocast: tuple[str, bool, torch.dtype] | None = None

    def forward(self, hidden: Tensor) -> LazyLogits:
        device = hidden.device.type
        self.autocast = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return LazyLogits((Product(hidden),), self._vocab, self._model)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Models ask their output embedding for its dtype or size.
            return getattr(self.__dict__["_head"][0], name)


class HeadLoss:
    """A causal language model whose loss is computed at its output embedding, inside its (wrapped) forward.

    Works for every model whose output embedding is a linear map, with bias, tied or not, with LoRA on it or not, and
    whose logits are that map times a scale, soft-capped or not.

    Args:
        model: A transformers model or a PEFT model around one, not wrapped for several devices.

    Raises:
        ModelError: If it has no output embedding, or one that is no linear map in floating point.
    """

    def __init__(self, model: nn.Module):
        self.base: nn.Module = base_model(model)
        self.name = type(self.base).__name__
        find: Any = getattr(self.base, "get_output_embeddings", None)
        head = None if find is None else find()
        if head is None:
            raise ModelError(f"{self.name} has no output embedding, so no loss can be computed there.")
        self.vocab = _vocabulary(head, self.name)
        self.path = next(path for path, module in self.base.named_modules() if module is head)

    def __call__(self, wrapped: nn.Module, inputs: Mapping[str, Any], compute: Compute) -> Any:
        """Run `wrapped(**inputs)` with `compute` as its loss.

        Args:
            wrapped: The model, or what wraps it (DDP, FSDP2, PEFT).
            inputs: Its keyword arguments; `labels` are left out.
            compute: From the logits [batch, seq, vocab] to a tensor.

        Returns:
            The model's output, with `loss` what `compute` returned and no logits.

        Raises:
            ModelError: If the model does to its logits what cannot be recorded.
        """
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with self._patched(compute, given) as ran:
            outputs = wrapped(**given, return_dict=True)
        if not ran:
            raise ModelError(
                f"{type(wrapped).__name__} did not call the forward of {self.name} in which the loss is computed, but "
                f"an older one that it keeps: wrap the model without keeping its bound `forward`."
            )
        return outputs

    @contextmanager
    def _patched(self, compute: Compute, inputs: Mapping[str, Any]) -> Iterator[list[bool]]:
        """For the length of a call the model's forward ends with the loss; the list is empty until it has run."""
        forward = self.base.forward
        ran: list[bool] = []

        def forward_with_loss(*args: Any, **kwargs: Any) -> Any:
            with self._stand_in() as (stand_in, head):
                outputs = forward(*args, **kwargs)
            lazy = outputs.logits
            if not isinstance(lazy, LazyLogits):
                raise ModelError(
                    f"{self.name} makes logits in another way than by its output embedding '{self.path}': train it on "
                    f"dense logits, with `compute_loss_func=lossmith.integrations.transformers.compute_loss(loss)` in "
                    "transformers' own Trainer."
                )
            ran.append(True)
            loss = self._loss(head, stand_in, lazy, compute, _length(inputs))
            known = {name: value for name, value in outputs.items() if name not in ("loss", "logits")}
            return type(outputs)(loss=loss, **known)

        with _replaced(self.base, "forward", forward_with_loss):
            yield ran

    @contextmanager
    def _stand_in(self) -> Iterator[tuple[_StandIn, nn.Module]]:
        """The stand-in where the output embedding was, which comes back in the end."""
        parent, _, name = self.path.rpartition(".")
        modules = self.base.get_submodule(parent)._modules
        head = modules[name]
        assert head is not None
        stand_in = _StandIn(head, self.vocab, self.name)
        modules[name] = stand_in
        try:
            yield stand_in, head
        finally:
            modules[name] = head

    def _loss(
        self, head: nn.Module, stand_in: _StandIn, lazy: LazyLogits, compute: Compute, length: int | None
    ) -> Tensor:
        if len(lazy.products) != 1:
            raise lazy.refusal("a sum of two calls of its output embedding")
        softcap = lazy.outer
        scale = lazy.scale if softcap is None else lazy.scale * softcap
        hidden = lazy.products[0].inputs
        if length is not None and hidden.ndim == 3 and hidden.shape[1] > length:
            # Virtual tokens of prompt-learning adapters stand before the real ones.
            hidden = hidden[:, -length:]
        forward = head.forward

        def loss_of(inputs: Tensor) -> Tensor:
            with _lazy_leaves(head, self.vocab, self.name):
                made = head.forward(inputs) if isinstance(head, nn.Linear) else forward(inputs)
            if not isinstance(made, LazyLogits) or made.outer is not None:
                raise ModelError(
                    f"The output embedding '{self.path}' of {self.name} is no linear map: train it on dense logits, "
                    f"with `compute_loss_func=lossmith.integrations.transformers.compute_loss(loss)` in "
                    "transformers' own Trainer."
                )
            return compute(made.linear(scale, softcap))

        assert stand_in.autocast is not None
        device, enabled, dtype = stand_in.autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled), _replaced(head, "forward", loss_of):
            return head(hidden)


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model within a PEFT model, or the model itself."""
    find: Any = getattr(model, "get_base_model", None)
    return find() if find is not None and hasattr(model, "peft_config") else model


@contextmanager
def _lazy_leaves(head: nn.Module, vocab: int, model: str) -> Iterator[None]:
    """For the length of one call, linear layers onto the vocabulary within `head` return what they would compute."""
    leaves = [m for m in head.modules() if isinstance(m, nn.Linear) and m.out_features == vocab]
    before = [(leaf, leaf.__dict__.get("forward")) for leaf in leaves]
    for leaf in leaves:
        leaf.__dict__["forward"] = _lazy_forward(leaf, vocab, model)
    try:
        yield
    finally:
        for leaf, forward in before:
            _restore(leaf, "forward", forward)


def _lazy_forward(leaf: nn.Linear, vocab: int, model: str) -> Callable[[Tensor], LazyLogits]:
    def forward(inputs: Any) -> LazyLogits:
        if isinstance(inputs, LazyLogits):
            raise inputs.refusal("a second linear map")
        return LazyLogits((Product(inputs.to(leaf.weight.device), leaf.weight, leaf.bias),), vocab, model)

    return forward


def _vocabulary(head: nn.Module, name: str) -> int:
    """Size of the vocabulary of an output embedding that is one linear map, alone or within an adapter."""
    leaves = [m for m in head.modules() if isinstance(m, nn.Linear)]
    if not leaves:
        raise ModelError(
            f"The output embedding of {name} must be a linear map (torch.nn.Linear), got {type(head).__name__}: train "
            f"it on dense logits, with `compute_loss_func=lossmith.integrations.transformers.compute_loss(loss)` in "
            "transformers' own Trainer."
        )
    first = leaves[0]
    # ZeRO-3 leaves an empty placeholder where a weight will be.
    whole = first.weight.numel() == 0 or first.weight.shape == (first.out_features, first.in_features)
    if not (first.weight.is_floating_point() and whole):
        raise ModelError(
            f"The output embedding of {name} is quantised ({type(first).__name__}, {first.weight.dtype}): keep it in "
            f"floating point (`llm_int8_skip_modules`, `modules_to_not_convert`), the other layers may stay quantised."
        )
    if type(first).forward is not nn.Linear.forward:
        raise ModelError(
            f"The output embedding of {name} is a {type(first).__name__} with a forward of its own, which may be more "
            f"than a linear map: train it on dense logits, with "
            f"`compute_loss_func=lossmith.integrations.transformers.compute_loss(loss)` in "
            "transformers' own Trainer."
        )
    return first.out_features


def _length(inputs: Mapping[str, Any]) -> int | None:
    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return ids.shape[1] if isinstance(ids, Tensor) and ids.ndim >= 2 else None


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of this one module, for the length of a `with`."""
    before = module.__dict__.get(name)
    module.__dict__[name] = value
    try:
        yield
    finally:
        _restore(module, name, before)


def _restore(module: nn.Module, name: str, before: Any) -> None:
    if before is None:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = before
