"""Fixed, versioned probe points, family by family, and what the model's own gradient is at them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lossmith.discovery.program.arrays import Array
from lossmith.engines.statistics import DenseTokenStatistics
from lossmith.objectives import VOCABULARY

VERSION = 1
"""Fingerprints are comparable only at the same version; a changed probe is a new version."""
SPREADS = (1.0, 3.0, 8.0, 15.0, 25.0, 40.0)
"""Standard deviations of the log-ratio margin, one per batch of pairs, in nats: from a fresh policy to a far one."""
PAIRS, TOKENS, CLASSES, ANCHORS, BATCHES = 10, 16, 24, 9, 4
TRAINED: dict[str, tuple[str, ...]] = {
    "preference": ("chosen_logps", "rejected_logps"),
    "token": VOCABULARY["token"],
    "metric": ("similarities", "distances"),
}
"""Family -> inputs through which a loss reaches the model. What flows into the reference or into lengths trains
nothing, so two losses that differ in it alone are one."""


@dataclass(frozen=True)
class Probes:
    """Inputs [batches, items, candidates] of one family, and the map from their gradients to the model's."""

    family: str
    seed: int
    inputs: dict[str, Array]
    jacobians: dict[str, Array]
    """Token family: statistic -> its derivative by every logit, [batches, items, classes]."""
    labels: Array | None = None
    """Token family: one-hot labels, [batches, items, classes]."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Inputs through which a loss reaches the model."""
        return TRAINED[self.family]

    def chained(self, gradients: Mapping[str, Array]) -> Array:
        """Gradients with respect to what the model gives (log-probabilities, logits, similarities), flat."""
        if self.family == "preference":
            parts = [gradients[name].ravel() if name in gradients else self._nothing for name in self.trained]
            return np.concatenate(parts)
        if self.family == "token":
            flows = [gradient * self.jacobians[name] for name, gradient in gradients.items()]
            return np.add.reduce(flows).ravel() if flows else np.zeros(self.jacobians["token_logps"].size)
        return self._by_similarity(gradients)

    @property
    def _nothing(self) -> Array:
        return np.zeros(self.inputs["chosen_logps"].size)

    def _by_similarity(self, gradients: Mapping[str, Array]) -> Array:
        total = np.zeros(self.inputs["similarities"].shape)
        counted = self.inputs["same"] | self.inputs["different"]
        if "similarities" in gradients:
            total = total + np.where(counted, gradients["similarities"], 0.0)
        if "distances" in gradients:
            # d = sqrt(2 - 2 s) of unit vectors.
            total = total - np.where(counted, gradients["distances"], 0.0) / np.where(
                counted, self.inputs["distances"], 1
            )
        # One pair of rows has one similarity, whichever of them is the anchor.
        return (total + np.swapaxes(total, 1, 2)).ravel()

    def tensors(self, batch: int) -> dict[str, torch.Tensor]:
        """One batch as torch has it: one axis for items, two for tables."""
        result = {}
        for name, values in self.inputs.items():
            one = torch.tensor(values[batch])
            table = self.family == "metric"
            result[name] = one if table else one.reshape(()) if name == "reward_shift" else one[:, 0]
        return result

    def joined(self) -> dict[str, torch.Tensor]:
        """All batches as one, for losses of single items."""
        shift = torch.zeros((), dtype=torch.float64)
        return {
            name: shift if name == "reward_shift" else torch.tensor(values.reshape(-1))
            for name, values in self.inputs.items()
        }


@lru_cache(maxsize=16)
def probes(family: str, seed: int = 0) -> Probes:
    """The probe points of a family: seed 0 is public, a run has another set from its secret seed."""
    made: dict[str, Any] = {"preference": _pairs, "token": _tokens, "metric": _anchors}
    return made[family](_random(seed), seed)


def _random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[VERSION, seed]))


def _frozen(
    family: str, seed: int, inputs: dict[str, Array], jacobians: dict[str, Array], labels: Array | None = None
) -> Probes:
    for values in (*inputs.values(), *jacobians.values()):
        values.setflags(write=False)
    return Probes(family, seed, inputs, jacobians, labels)


def _pairs(random: np.random.Generator, seed: int) -> Probes:
    shape = (len(SPREADS), PAIRS, 1)
    spread = np.array(SPREADS).reshape(-1, 1, 1)
    lengths = {side: random.integers(40, 160, shape).astype(np.float64) for side in ("chosen", "rejected")}
    inputs: dict[str, Array] = {}
    margins = signed_margins(random, shape) * spread
    shared = random.standard_normal(shape) * spread / 2
    for side, sign in (("chosen", 0.5), ("rejected", -0.5)):
        reference = -lengths[side] * random.uniform(0.6, 1.4, shape)
        inputs[f"ref_{side}_logps"] = reference
        # A completion has probability below one: what reads 1 - p must be defined.
        inputs[f"{side}_logps"] = np.minimum(reference + shared + sign * margins, -1.0)
        inputs[f"{side}_lengths"] = lengths[side]
    inputs["reward_shift"] = np.zeros((len(SPREADS), 1, 1))
    return _frozen("preference", seed, inputs, {})


def signed_margins(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers in pairs of opposite sign along the items, a little apart so that nothing cancels."""
    half = random.standard_normal((shape[0], shape[1] // 2, 1))
    return np.concatenate([half, -half * random.uniform(0.9, 1.1, half.shape)], axis=1)


def _tokens(random: np.random.Generator, seed: int) -> Probes:
    return token_points(*_drawn_logits(random), BATCHES, seed)


def token_logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [tokens, classes] and labels of the token family's probe points."""
    return _drawn_logits(_random(seed))


def _drawn_logits(random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    scale = np.exp(random.uniform(np.log(0.3), np.log(5), (BATCHES * TOKENS, 1)))
    logits = torch.as_tensor(random.standard_normal((BATCHES * TOKENS, CLASSES)) * scale)
    labels = torch.as_tensor(random.integers(0, CLASSES, BATCHES * TOKENS))
    # Half of the labels lead, so that confident tokens are among them.
    labels[::2] = logits.argmax(-1)[::2]
    return logits, labels


def token_points(logits: torch.Tensor, labels: torch.Tensor, batches: int, seed: int = 0) -> Probes:
    """Statistics of rows of logits, and how each changes with every logit."""
    leaf = logits.double().requires_grad_()
    statistics = DenseTokenStatistics(leaf, labels)
    shape = (batches, len(labels) // batches)
    inputs: dict[str, Array] = {}
    jacobians: dict[str, Array] = {}
    for name in VOCABULARY["token"]:
        value = getattr(statistics, name)
        # One statistic is held constant by definition, `top_20_entropy`.
        flows = value.requires_grad
        slope = torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0] if flows else torch.zeros_like(leaf)
        inputs[name] = value.detach().numpy().reshape(*shape, 1).copy()
        jacobians[name] = slope.numpy().reshape(*shape, -1).copy()
    own = torch.nn.functional.one_hot(labels, logits.shape[-1]).numpy().reshape(*shape, -1)
    return _frozen("token", seed, inputs, jacobians, own)


def _anchors(random: np.random.Generator, seed: int) -> Probes:
    return anchor_points(*_drawn_rows(random), seed)


def anchor_rows(seed: int = 0) -> tuple[Array, Array]:
    """Rows [batches, anchors, dim] and labels of the metric family's probe points."""
    return _drawn_rows(_random(seed))


def _drawn_rows(random: np.random.Generator) -> tuple[Array, Array]:
    # Three rows of each of three classes: means and sums over positives, and over negatives, are one but for a factor.
    labels = np.repeat(np.arange(3), 3)
    centres = random.standard_normal((BATCHES, 3, 6)) * np.array([0.3, 0.6, 1.0, 1.6]).reshape(-1, 1, 1)
    return centres[:, labels] + random.standard_normal((BATCHES, ANCHORS, 6)), labels


def anchor_points(rows: Array, labels: Array, seed: int = 0) -> Probes:
    """Tables of the unit vectors of rows [batches, anchors, dim]."""
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    similarities = rows @ np.swapaxes(rows, 1, 2)
    same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    different = labels[:, None] != labels
    inputs = {
        "similarities": similarities,
        "distances": np.sqrt(np.maximum(2 - 2 * similarities, 0)),
        "same": np.broadcast_to(same, similarities.shape).copy(),
        "different": np.broadcast_to(different, similarities.shape).copy(),
    }
    return _frozen("metric", seed, inputs, {})
