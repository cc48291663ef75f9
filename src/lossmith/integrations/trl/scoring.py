"""From a batch of completions and unbuilt logits to what preference losses read, once for training and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lossmith._typing import Float, Int, Tensor
from lossmith.engines import Demand, LinearLogits, LinearSource, gather_rows
from lossmith.integrations.batches import aligned_labels
from lossmith.integrations.transformers.items import ItemKind
from lossmith.nn import IGNORE_INDEX, LossModule
from lossmith.nn.base import scatter


@dataclass(frozen=True)
class Completions:
    """Which tokens of a batch count, and for what."""

    labels: Int[Tensor, "rows seq"]
    """Aligned labels of all completions that count."""
    good: Int[Tensor, "rows seq"]
    """Those of the chosen or desirable ones only: what terms on logits see."""

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each completion that count."""
        return (self.labels != IGNORE_INDEX).sum(1)

    def to(self, device: torch.device) -> "Completions":
        """The same on another device."""
        return Completions(self.labels.to(device), self.good.to(device))

    def counts(self, kinds: Sequence[ItemKind]) -> list[float]:
        """How many items of each kind the batch has."""
        tokens = (self.good != IGNORE_INDEX).sum(1)
        rows, sequences = int((self.lengths > 0).sum()), int((tokens > 0).sum())
        counts = {"pair": rows / 2, "completion": rows, "token": int(tokens.sum()), "region": int(sequences > 0)}
        return [float(sequences if kind.region == "sequence" else counts[kind.item]) for kind in kinds]


def pairs(inputs: Mapping[str, Any]) -> Completions:
    """Completions of TRL's batch of pairs, first the chosen, then the rejected ones.

    A pair of which one completion has no token left (an empty answer, truncation) does not count as a whole.
    """
    labels = _labels(inputs)
    chosen, rejected = (labels != IGNORE_INDEX).any(1).chunk(2)
    labels = labels.masked_fill(~(chosen & rejected).repeat(2)[:, None], IGNORE_INDEX)
    good = labels.clone()
    good[len(labels) // 2 :] = IGNORE_INDEX
    return Completions(labels, good)


def singles(inputs: Mapping[str, Any]) -> Completions:
    """Completions of TRL's batch of unpaired ones; the desirable ones are good."""
    labels = _labels(inputs)
    return Completions(labels, labels.masked_fill(~inputs["label"].bool()[:, None], IGNORE_INDEX))


def unshifted_labels(inputs: Mapping[str, Any], prefix: str = "") -> Int[Tensor, "rows seq"]:
    """Token ids of the completions, -100 elsewhere."""
    return inputs[f"{prefix}input_ids"].masked_fill(inputs[f"{prefix}completion_mask"] == 0, IGNORE_INDEX)


def _labels(inputs: Mapping[str, Any]) -> Tensor:
    return aligned_labels(unshifted_labels(inputs), attention_mask=inputs["attention_mask"])


@dataclass(frozen=True)
class Scored:
    """What one pass over unbuilt logits finds of the completions."""

    source: LinearSource
    logps: Float[Tensor, " rows"]
    """Summed over the tokens of each completion, in nats, with gradient; 0 where none counts."""
    entropy: Float[Tensor, " rows"]
    """Summed over the tokens, in nats, without gradient."""

    @classmethod
    def of(cls, linear: LinearLogits, batch: Completions, loss: LossModule) -> "Scored":
        """One pass that serves log-probabilities, entropies and the terms of `loss` on logits."""
        names = ("token_logps", "entropy")
        demands = [Demand(labels=batch.labels, names=names), *loss.demands(batch.good)]
        source = LinearSource(linear, demands)
        found, valid = source.tokens(batch.labels, names), batch.labels != IGNORE_INDEX
        # Sums over a table are the same on every run; additions into places are not, on a GPU.
        logps = scatter(found["token_logps"], valid).sum(1)
        return cls(source, logps, scatter(found["entropy"].detach(), valid).sum(1))


def gathered(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs [rows] of all ranks in rank order, with their gradient."""
    names = [name for name, value in given.items() if value.is_floating_point()]
    everyone = gather_rows(torch.stack([given[name] for name in names], dim=1))
    found = dict(zip(names, everyone.unbind(1), strict=True))
    for name, value in given.items():
        if name not in found:
            # gloo gathers no bools.
            found[name] = gather_rows(value.long()).to(value.dtype)
    return found
