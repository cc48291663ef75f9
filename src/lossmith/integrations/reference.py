"""Reference log-probabilities: computed once, in memory linear in tokens, and kept on disk under a fingerprint.

A trainer needs four lines:

```python
head = HeadLoss(model)
fingerprint = Fingerprint.of(model, tokenizer, dataset, columns=["prompt_ids", "chosen_ids", "rejected_ids"],
                             settings={"max_length": 512, "dtype": model.dtype, "autocast": None})

def compute(rows: list[int]) -> dict[str, Tensor]:
    batch = collate([dataset[row] for row in rows])          # chosen rows, then rejected rows
    with adapter_off(model):
        chosen, rejected = completion_logps(head, model, batch).chunk(2)
    return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

found = ReferenceCache().load_or_compute("train", fingerprint, len(dataset), compute, rows_per_call=8)
```

`found["ref_chosen_logps"][i]` belongs to row i. With several ranks every rank makes the same calls, and each computes
its share of the rows. A run that was killed goes on where it last saved. Fingerprint the model before it is trained,
wrapped or sharded.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossmith._typing import Float
from lossmith.engines import Demand, LinearLogits, LinearSource
from lossmith.errors import ModelError, ObjectiveInputError
from lossmith.integrations.batches import AlignedBatch, align
from lossmith.integrations.fingerprints import Fingerprint
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.reference_cache import ReferenceCache, StaleReferenceError
from lossmith.nn import IGNORE_INDEX

__all__ = ["Fingerprint", "ReferenceCache", "StaleReferenceError", "adapter_off", "completion_logps"]

MOVES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations of LoRA that take what they put into the adapter out of the base's weights."""


def completion_logps(
    head: HeadLoss, wrapped: nn.Module, inputs: Mapping[str, Any], *, labels_key: str = "labels"
) -> Float[Tensor, " batch"]:
    """Log-probability of each row's completion, summed over its tokens, in nats; nothing of size tokens x vocabulary.

    The model runs without gradient and without dropout, under the caller's autocast; its modes come back afterwards.

    Args:
        head: `HeadLoss` of the unwrapped model.
        wrapped: The model as it is called: itself, PEFT, DDP, FSDP2.
        inputs: Keyword arguments of the model, with labels.
        labels_key: Which entry holds the labels, [batch, seq]: the token ids of the completion, -100 elsewhere. They
            are not shifted yet.

    Returns:
        [batch], float32 or better, <= 0; 0 for a row of which no token counts.

    Raises:
        ObjectiveInputError: If labels are missing, or completions of two packed sequences stand in one row.
        ModelError: If the model's head is no linear map.
    """
    if not isinstance(inputs.get(labels_key), Tensor):
        raise ObjectiveInputError(f"`inputs` must hold the tensor `{labels_key}`, got {', '.join(inputs)}.")
    given = {name: value for name, value in inputs.items() if name != labels_key}
    aligned = align({**given, "labels": inputs[labels_key]}, shift=True)
    _check_one_completion(aligned)

    def summed(linear: LinearLogits) -> Tensor:
        here, names = aligned.labels.to(linear.device), ("token_logps",)
        found = LinearSource(linear, [Demand(labels=here, names=names)]).tokens(here, names)["token_logps"]
        # A sum over a table is the same on every run; an addition into places is not, on a GPU.
        table = found.new_zeros(here.shape)
        table[here != IGNORE_INDEX] = found
        return table.sum(1)

    with torch.no_grad(), _evaluating(wrapped):
        return head(wrapped, {"use_cache": False, **given}, summed).loss


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[nn.Module]:
    """The reference policy within a PEFT model, for the length of a `with`.

    That is the model with its adapter "ref", where it has one (TRL makes it as a copy of a trained adapter); otherwise
    the base model, `modules_to_save` included. A model without adapters stays as it is: before training it is its own
    reference. Afterwards, and after an exception, adapter and `requires_grad` are what they were.

    Args:
        model: Not wrapped for several devices.

    Raises:
        ModelError: If the base is no fixed reference (biases trained, adapters merged), or the model is wrapped.
    """
    if not hasattr(model, "peft_config"):
        if any(hasattr(module, "peft_config") for module in model.modules()):
            raise ModelError(f"`model` must be the PEFT model itself, got it wrapped in {type(model).__name__}.")
        yield model
        return
    name = "ref" if "ref" in model.peft_config else None  # pyright: ignore[reportOperatorIssue]
    _check_fixed(model, name)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with _disabled(model) if name is None else _switched(model, name):
            yield model
    finally:
        # PEFT makes the adapter that it turns on trainable, and the others not.
        for parameter, trains in before:
            parameter.requires_grad_(trains)


def _check_one_completion(aligned: AlignedBatch) -> None:
    if aligned.sequences is None:
        return
    counts, numbers = aligned.labels != IGNORE_INDEX, aligned.sequences
    first = numbers.masked_fill(~counts, numbers.numel()).amin(1)
    last = numbers.masked_fill(~counts, -1).amax(1)
    if bool((last > first).any()):
        raise ObjectiveInputError(
            "`inputs` must hold one sequence per row, got a packed row with tokens of several that count: leave "
            "packing and padding-free batches off where completions are compared."
        )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and so without gradient checkpointing; each module's mode comes back."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _check_fixed(model: Any, reference: str | None) -> None:
    """Raise `ModelError` where no adapter or the adapter `reference` does not give the policy before training."""
    if not hasattr(model, "disable_adapter"):
        raise ModelError("`model` got its adapters by `add_adapter`: make a PEFT model of it with peft.get_peft_model.")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ModelError("The adapters of `model` are merged into its weights: call `unmerge_adapter()` first.")
    for name, config in model.peft_config.items():
        if getattr(config, "bias", "none") != "none":
            raise ModelError(
                f"The adapter '{name}' trains biases of the base model (bias='{config.bias}'), so the base is no fixed "
                f"reference: use bias='none', or give a reference model of its own."
            )
        start = str(getattr(config, "init_lora_weights", ""))
        if reference is None and start.lower().startswith(MOVES_BASE):
            raise ModelError(
                f"The adapter '{name}' takes its first weights out of the base model (init_lora_weights='{start}'), so "
                f"the base alone is no reference: use another initialisation, or give a reference model of its own."
            )


@contextlib.contextmanager
def _disabled(model: Any) -> Iterator[None]:
    with model.disable_adapter():
        if model.peft_config[model.active_adapter].is_prompt_learning:
            # PEFT has put the base's `forward` of this moment here, so `HeadLoss`, which replaces that of the base for
            # one call, would never be asked.
            model.forward = lambda *args, **kwargs: model.base_model(*args, **kwargs)
        yield


@contextlib.contextmanager
def _switched(model: Any, name: str) -> Iterator[None]:
    before, active = model.active_adapter, list(model.active_adapters)
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)
        if len(active) > 1:
            # Several adapters at once are known to the tuner only.
            model.base_model.set_adapter(active)
