"""How hard a loss pulls at each example: the gradient that it puts on its logits and on its embedding."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossmith._extras import require
from lossmith.errors import DataError, LossmithWarning
from lossmith.explain._runs import check_count, frame_of, numpy
from lossmith.explain.deciles import decile_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from lossmith.nn import LossModule

PLACES = ("logits", "embeddings")
"""Where a gradient is taken."""


@dataclass(frozen=True, kw_only=True)
class ExampleWeights:
    """The pull of one loss at each example, under one model."""

    norms: Mapping[str, "np.ndarray"]
    """Place (`logits`, `embeddings`) -> gradient norm of each example, [examples], >= 0; only what the loss reads."""
    difficulty: "np.ndarray"
    """1 - probability of the label, [examples], in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class WeightCurves:
    """The share of the whole pull that goes to each decile of difficulty, model by model."""

    rows: tuple[Mapping[str, Any], ...]
    """`model`, `seed`, `place`, `decile` (1 is easiest), `count`, `difficulty` (mean), `share` (sums to 1 over deciles;
    NaN where the loss pulls at nothing)."""
    bins: int
    """Parts; ten are deciles."""
    weights: Mapping[str, Mapping[int, ExampleWeights]]
    """Model -> seed -> what the shares were made of."""

    def examples_frame(self) -> "pd.DataFrame":
        """One row per model, seed, place and example: norm of the gradient times the rows of its batch, difficulty."""
        rows = [
            {
                "model": model,
                "seed": seed,
                "place": place,
                "example": example,
                "norm": float(norm),
                "difficulty": float(difficulty),
            }
            for model, seeds in self.weights.items()
            for seed, one in seeds.items()
            for place, norms in one.norms.items()
            for example, (norm, difficulty) in enumerate(zip(norms, one.difficulty, strict=True))
        ]
        return frame_of(rows, ["model", "seed", "place", "example", "norm", "difficulty"])

    def frame(self) -> "pd.DataFrame":
        """One row per model, seed, place and decile."""
        return frame_of(self.rows, ["model", "seed", "place", "decile", "count", "difficulty", "share"])

    def plot(self, *, place: str = "logits", baseline: str | None = None) -> "Figure":
        """One line per model: percent of the pull by decile; dotted: every example pulled alike."""
        require("matplotlib", extra="explain", purpose="draw example weights")
        if place not in PLACES:
            raise DataError(f"`place` must be one of {', '.join(PLACES)}, got '{place}'.")
        from lossmith.explain._lines import lines_figure

        return lines_figure(
            [
                (row["model"], row["seed"], row["decile"], 100 * row["share"])
                for row in self.rows
                if row["place"] == place
            ],
            x_label="decile of difficulty: 1 - the model's probability of the label, easy to hard",
            y_label=f"share of the gradient on the {place} (%)",
            baseline=baseline,
            level=100 / self.bins,
        )


def weigh_examples(
    loss: "LossModule",
    *,
    logits: "np.ndarray",
    labels: "np.ndarray",
    embeddings: "np.ndarray | None" = None,
    head: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 32,
    samples_per_class: int | None = None,
    seed: int = 0,
) -> ExampleWeights:
    """The gradient norm of a loss at each example.

    Every example is dealt into one batch, made as training makes them; the gradient of the batch's mean loss at a row,
    times the rows of the batch, is that of the example's own loss where losses are per example, and its share in the
    batch where they are coupled.

    Args:
        loss: From `lossmith.loss`; reads logits, embeddings or both.
        logits: Of a trained or untrained model, [examples, classes].
        labels: True class ids, [examples].
        embeddings: As the loss is given them, [examples, dim]; needed where it reads them.
        head: Maps embeddings to logits, where the model does so; then the gradient at an embedding holds what comes
            through the logits as well. Without it the two inputs count apart, as the loss reads them.
        batch_size: Rows per batch, >= 2: coupled losses depend on it.
        samples_per_class: None for shuffled batches; >= 2 for batches that hold at least so many rows of each class in
            them, as far as the rows of a class go.
        seed: Of the shuffle.

    Returns:
        Norms in the unit of the loss over that of the input. An example without any positive in its batch may have 0.

    Raises:
        DataError: For shapes that do not match, or a loss that reads something else.
    """
    check_count("batch_size", batch_size, low=2)
    if samples_per_class is not None:
        check_count("samples_per_class", samples_per_class, low=2)
    np = numpy()
    scores, classes = _checked(loss, logits, labels, embeddings)
    batches = _dealt(classes, batch_size, samples_per_class, np.random.default_rng(seed))
    norms: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Rows without a positive in their batch are said in the docstring; a warning for every call would be noise.
        warnings.simplefilter("ignore", LossmithWarning)
        training = loss.training
        loss.eval()
        try:
            for rows in batches:
                vectors = None if embeddings is None else np.asarray(embeddings)[rows]
                for place, found in _norms(loss, scores[rows], vectors, classes[rows], head).items():
                    norms.setdefault(place, np.zeros(len(classes)))[rows] = found
        finally:
            loss.train(training)
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    probability = np.exp(shifted[np.arange(len(classes)), classes]) / np.exp(shifted).sum(axis=1)
    return ExampleWeights(norms=norms, difficulty=1 - probability)


def weight_curves(
    weights: Mapping[str, Mapping[int, ExampleWeights] | ExampleWeights], *, bins: int = 10
) -> WeightCurves:
    """Share of each model's whole pull by decile of difficulty.

    Args:
        weights: Model -> its weights, or model -> seed -> weights.
        bins: Parts, >= 2; equally difficult examples share one.
    """
    check_count("bins", bins, low=2)
    if not weights:
        raise DataError("`weights` must hold at least one model, got none.")
    rows: list[Mapping[str, Any]] = []
    runs = {model: dict(given) if isinstance(given, Mapping) else {0: given} for model, given in weights.items()}
    for model, seeds in runs.items():
        for seed, one in seeds.items():
            places = decile_of(one.difficulty, bins)
            for place, norms in one.norms.items():
                total = float(norms.sum())
                for decile in range(bins):
                    here = places == decile
                    rows.append(
                        {
                            "model": model,
                            "seed": seed,
                            "place": place,
                            "decile": decile + 1,
                            "count": int(here.sum()),
                            "difficulty": float(one.difficulty[here].mean()) if here.any() else float("nan"),
                            "share": float(norms[here].sum()) / total if total > 0 else float("nan"),
                        }
                    )
    return WeightCurves(rows=tuple(rows), bins=bins, weights=runs)


def _dealt(labels: Any, batch_size: int, samples_per_class: int | None, draw: Any) -> list[Any]:
    """The rows of each batch; every row stands in one."""
    np = numpy()
    order = draw.permutation(len(labels))
    if samples_per_class is None:
        # Of about equal size: in a last batch of one row a loss that compares rows would have nothing to compare.
        return np.array_split(order, max(round(len(order) / batch_size), 1))
    names = draw.permutation(np.unique(labels))
    classes = max(min(batch_size // samples_per_class, len(names)), 1)
    each = batch_size // classes
    own = [order[labels[order] == name] for name in names]
    # The first rows of every class, then the next of every class: neighbours are of different classes.
    parts = [rows[start : start + each] for start in range(0, len(order), each) for rows in own if start < len(rows)]
    batches = [np.concatenate(parts[start : start + classes]) for start in range(0, len(parts), classes)]
    if len(batches) > 1 and len(batches[-1]) < 2 * samples_per_class:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _checked(loss: Any, logits: Any, labels: Any, embeddings: Any) -> tuple[Any, Any]:
    np = numpy()
    scores, classes = np.asarray(logits), np.asarray(labels)
    if scores.ndim != 2 or len(scores) < 2 or classes.shape != scores.shape[:1]:
        raise DataError(
            f"`logits` must be [examples, classes] of at least 2 examples with a label each, got {scores.shape} and "
            f"{classes.shape}."
        )
    unread = [name for name in loss.required if name not in (*PLACES, "labels")]
    if unread:
        raise DataError(f"'{loss}' reads `{unread[0]}`: only losses on logits and embeddings weigh examples.")
    if "embeddings" in loss.required and embeddings is None:
        raise DataError(f"'{loss}' reads embeddings: give `embeddings`.")
    if embeddings is not None and (np.ndim(embeddings) != 2 or len(embeddings) != len(scores)):
        raise DataError(f"`embeddings` must have {len(scores)} rows, got {np.shape(embeddings)}.")
    return scores, classes


def _norms(loss: Any, logits: Any, embeddings: Any, labels: Any, head: Any) -> dict[str, Any]:
    """Place -> gradient norm of each row of one batch."""
    device = next(iter((*loss.parameters(), *loss.buffers())), torch.empty(0)).device
    given = {"labels": torch.as_tensor(labels, dtype=torch.long, device=device)}
    leaves: dict[str, Tensor] = {}
    if embeddings is not None and ("embeddings" in loss.inputs or head is not None):
        leaves["embeddings"] = torch.as_tensor(embeddings, dtype=torch.float32, device=device).requires_grad_()
    if "logits" in loss.inputs:
        if head is not None and "embeddings" in leaves:
            leaves["logits"] = head(leaves["embeddings"])
        else:
            leaves["logits"] = torch.as_tensor(logits, dtype=torch.float32, device=device).requires_grad_()
    value = loss(**{name: leaf for name, leaf in leaves.items() if name in loss.inputs}, **given)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: (len(labels) * gradient).norm(dim=1).double().cpu().numpy()
        for name, gradient in zip(leaves, gradients, strict=True)
        if gradient is not None
    }
