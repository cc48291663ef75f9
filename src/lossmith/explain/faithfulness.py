"""Do attributions say what the model does? Erasure, infidelity, completeness."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lossmith.errors import DataError
from lossmith.explain._forward import (
    EmbeddingInput,
    by_length,
    chosen_rows,
    padded,
    resting,
    target_scores,
    text_logits,
)
from lossmith.explain._runs import check_count, frame_of, measures_figure, numpy
from lossmith.explain.attributions import AttributedText, TokenAttributions, baseline_embedding, content_mask

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the tokens that are erased or kept, as in ERASER."""
RANDOM = "random"
"""Tokens in a random order: what an attribution has to beat."""
MEASURES = {
    "comprehensiveness": "comprehensiveness\n(higher: top tokens mattered)",
    "sufficiency": "sufficiency\n(lower: top tokens suffice)",
    "unexplained": "unexplained change\n(lower: weights add up)",
}
"""Measure -> title of its panel."""


@dataclass(frozen=True, kw_only=True)
class Faithful:
    """How faithful one method is to one run; means over texts."""

    model: str
    """The loss."""
    seed: int
    """The block."""
    method: str
    """Of `attributions.ATTRIBUTION_METHODS`, or `random`."""
    comprehensiveness: float
    """Fall of the class's probability when the top tokens are erased, averaged over shares; in [-1, 1]."""
    sufficiency: float
    """Its fall when only the top tokens are kept, averaged over shares; in [-1, 1]."""
    infidelity: float
    """Mean squared gap between the weights of a random subset and the change it makes, >= 0, in the squared unit of the
    explained number; NaN for `random`."""
    unexplained: float
    """The same after the best common factor, as a share of the squared change, in [0, 1]; NaN for `random`."""
    completeness_error: float
    """Mean absolute gap between the sum of the weights and `value` - `empty_value`; for integrated gradients
    alone, else NaN."""
    relative_completeness_error: float
    """The same over the mean absolute `value` - `empty_value`."""
    texts: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """The faithfulness of methods under several models."""

    rows: tuple[Faithful, ...]
    """Model by model, seed by seed, method by method."""

    @classmethod
    def joined(cls, parts: Iterable["Faithfulness"]) -> "Faithfulness":
        """All rows of several."""
        return cls(rows=tuple(row for part in parts for row in part.rows))

    def frame(self) -> "pd.DataFrame":
        """One row per model, seed and method."""
        return frame_of([asdict(row) for row in self.rows], list(Faithful.__dataclass_fields__))

    def plot(self, *, method: str = "integrated_gradients", baseline: str | None = None) -> "Figure":
        """One panel per measure, a row per model, a point per seed, for one method."""
        own = [asdict(row) for row in self.rows if row.method == method]
        if self.rows and not own:
            known = ", ".join(dict.fromkeys(row.method for row in self.rows))
            raise DataError(f"`method` must be one of {known}, got '{method}'.")
        return measures_figure(own, MEASURES, baseline=baseline)


def measure_faithfulness(
    model: Any,
    tokenizer: Any,
    attributions: TokenAttributions,
    *,
    name: str = "model",
    seed_of_run: int = 0,
    shares: Sequence[float] = SHARES,
    subsets: int = 16,
    seed: int = 0,
    on_text: Callable[[int], None] | None = None,
) -> Faithfulness:
    r"""Test attributions against what the model does when tokens go.

    With $p$ the probability of the explained class, $r_k$ the top tokens (the share $k$ of the content tokens with the
    largest weights, rounded up) and erased tokens taken out of the text:

    $$\text{comprehensiveness} = \operatorname{mean}_k\, p(x) - p(x \setminus r_k), \quad
    \text{sufficiency} = \operatorname{mean}_k\, p(x) - p(r_k).$$

    With $S$ a random subset of the content tokens, its size uniform, and $x_S$ the text with them replaced by the
    baseline of the attributions,

    $$\text{infidelity} = \mathbb{E}_S \Big( \sum_{t \in S} a_t - \big(F(x) - F(x_S)\big) \Big)^2.$$

    Its size grows with that of $F$, so it cannot be compared between models; `unexplained` can: $1 - $ the squared
    cosine of the two sides over the subsets.

    Args:
        model: The classifier that was attributed.
        tokenizer: Its tokenizer.
        attributions: Of `attribute_tokens`.
        name: How the model is called.
        seed_of_run: Its block.
        shares: Shares of tokens to erase and keep, in (0, 1].
        subsets: Random subsets per text, >= 2.
        seed: Of the subsets and of the random order.
        on_text: Called with the number of texts just done.

    Source:
        DeYoung et al. 2020 (ERASER), https://arxiv.org/abs/1911.03429, area over the perturbation curve; Yeh et al.
        2019, https://arxiv.org/abs/1901.09392. Deviation: the perturbation replaces tokens, so that weights in the unit
        of F are added up instead of multiplied by it.
    """
    check_count("subsets", subsets, low=2)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise DataError(f"`shares` must be in (0, 1], got {list(shares)}.")
    ranked = [_orders(one, attributions.methods, seed + place) for place, one in enumerate(attributions.texts)]
    erased = _erasure(model, tokenizer, attributions.texts, ranked, shares)
    drawn = [_subsets(len(one.text.content), subsets, seed + place) for place, one in enumerate(attributions.texts)]
    changes = _changes(model, tokenizer, attributions, drawn, on_text)
    rows = []
    for method in (*attributions.methods, RANDOM):
        gaps = [_infidelity(one, method, *pair) for one, *pair in zip(attributions.texts, drawn, changes, strict=True)]
        error, size = _completeness(attributions, method)
        rows.append(
            Faithful(
                model=name,
                seed=seed_of_run,
                method=method,
                comprehensiveness=_mean(found[method][0] for found in erased),
                sufficiency=_mean(found[method][1] for found in erased),
                infidelity=_mean(gap for gap, _ in gaps),
                unexplained=_mean(share for _, share in gaps),
                completeness_error=error,
                relative_completeness_error=error / size if size else math.nan,
                texts=len(attributions.texts),
            )
        )
    return Faithfulness(rows=tuple(rows))


def _mean(values: Iterable[float]) -> float:
    """The mean of what is known."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _completeness(attributions: TokenAttributions, method: str) -> tuple[float, float]:
    if method != "integrated_gradients":
        return math.nan, math.nan
    error = _mean(one.completeness_error(method) for one in attributions.texts)
    return error, _mean(abs(one.value - one.empty_value) for one in attributions.texts)


def _orders(one: AttributedText, methods: Sequence[str], seed: int) -> dict[str, list[int]]:
    """Method -> content tokens from the largest weight down; equal weights in reading order."""
    np = numpy()
    found = {method: np.argsort(-one.weights[method], kind="stable").tolist() for method in methods}
    return found | {RANDOM: np.random.default_rng(seed).permutation(len(one.text.content)).tolist()}


def _erasure(
    model: Any,
    tokenizer: Any,
    texts: Sequence[AttributedText],
    ranked: Sequence[Mapping[str, Sequence[int]]],
    shares: Sequence[float],
) -> list[dict[str, tuple[float, float]]]:
    """Of each text: method -> comprehensiveness and sufficiency. Texts that come out alike are read once."""
    asked: dict[tuple[int, tuple[int, ...]], int] = {}

    def place_of(text: int, kept: set[int]) -> int:
        return asked.setdefault((text, _places(texts[text], kept)), len(asked))

    plan = []
    for text, (one, orders) in enumerate(zip(texts, ranked, strict=True)):
        everything = set(range(len(one.text.content)))
        whole = place_of(text, everything)
        cuts = [math.ceil(share * len(everything)) for share in shares]
        own = {}
        for method, order in orders.items():
            tops = [set(order[:cut]) for cut in cuts]
            own[method] = [place_of(text, everything - top) for top in tops], [place_of(text, top) for top in tops]
        plan.append((whole, own))
    with resting(model):
        logits = text_logits(model, tokenizer, [chosen_rows(texts[text].text, places) for text, places in asked])
    probabilities = logits.double().softmax(-1)
    targets = torch.tensor([texts[text].target for text, _ in asked])
    of_class = probabilities.gather(1, targets[:, None])[:, 0].tolist()
    return [
        {
            method: tuple(_mean(of_class[whole] - of_class[place] for place in side) for side in sides)
            for method, sides in own.items()
        }
        for whole, own in plan
    ]  # pyright: ignore[reportReturnType]


def _places(one: AttributedText, kept: set[int]) -> tuple[int, ...]:
    """Tokens that stay: special ones and the kept content; the first token where that is none at all."""
    dropped = {place for position, place in enumerate(one.text.content) if position not in kept}
    return tuple(place for place in range(len(one.text)) if place not in dropped) or (0,)


def _subsets(tokens: int, subsets: int, seed: int) -> "np.ndarray":
    """Random subsets of the content tokens, [subsets, tokens] of 0 and 1, their sizes uniform from 1 to all."""
    np = numpy()
    draw = np.random.default_rng(seed)
    drawn = np.zeros((subsets, tokens))
    for row in drawn:
        if tokens:
            row[draw.permutation(tokens)[: draw.integers(1, tokens + 1)]] = 1.0
    return drawn


@torch.no_grad()
def _changes(
    model: Any,
    tokenizer: Any,
    attributions: TokenAttributions,
    drawn: Sequence["np.ndarray"],
    on_text: Callable[[int], None] | None,
) -> list["np.ndarray"]:
    """Of each text: F(x) - F(x with a subset replaced), [subsets]."""
    texts = attributions.texts
    found: dict[int, Any] = {}
    repeats = len(drawn[0])
    with resting(model), EmbeddingInput(model).open() as network:
        for batch in by_length([len(one.text) for one in texts], rows_each=repeats):
            rows = [texts[place].text for place in batch for _ in range(repeats)]
            fields = padded([row.fields for row in rows], tokenizer, model.device)
            inputs = network.look_up(fields["input_ids"])
            gone = torch.zeros(fields["input_ids"].shape, dtype=torch.bool, device=inputs.device)
            flags = torch.cat([torch.as_tensor(drawn[place]).bool().reshape(-1) for place in batch])
            gone[content_mask(rows, tokenizer, fields["input_ids"])] = flags.to(gone.device)
            empty = baseline_embedding(network, tokenizer, attributions.baseline)
            logits = network.logits(torch.where(gone[..., None], empty, inputs), fields)
            targets = torch.tensor([texts[place].target for place in batch for _ in range(repeats)]).to(inputs.device)
            values = target_scores(logits, targets, attributions.score).double().cpu().numpy().reshape(-1, repeats)
            found |= {place: texts[place].value - own for place, own in zip(batch, values, strict=True)}
            if on_text is not None:
                on_text(len(batch))
    return [found[place] for place in range(len(texts))]


def _infidelity(one: AttributedText, method: str, drawn: "np.ndarray", changes: "np.ndarray") -> tuple[float, float]:
    if method == RANDOM or not drawn.size:
        return math.nan, math.nan
    added = drawn @ one.weights[method]
    gap = float(((added - changes) ** 2).mean())
    sizes = float((added**2).sum() * (changes**2).sum())
    return gap, max(0.0, 1 - float((added * changes).sum()) ** 2 / sizes) if sizes > 0 else math.nan
