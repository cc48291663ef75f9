"""Which tokens a prediction rests on: integrated gradients, gradient times input, and occlusion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossmith._checks import check_one_of
from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.explain._forward import SCORES, EmbeddingInput, by_length, padded, resting, target_scores
from lossmith.explain._runs import check_count, frame_of, numpy
from lossmith.explain.tokens import TokenizedText, tokenize_texts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

ATTRIBUTION_METHODS = ("integrated_gradients", "gradient_x_input", "occlusion")
BASELINES = ("mask", "unk", "pad", "zero")
"""What a token can be replaced with."""


@dataclass(frozen=True, kw_only=True)
class AttributedText:
    """The attributions of one text."""

    text: TokenizedText
    """Its tokens."""
    target: int
    """The explained class."""
    value: float
    """The explained number: log-probability in nats, or logit, of that class."""
    empty_value: float
    """The same with every content token replaced by the baseline."""
    weights: Mapping[str, "np.ndarray"]
    """Method -> one weight per content token, [tokens], in the unit of `value`; positive speaks for the class."""

    def completeness_error(self, method: str = "integrated_gradients") -> float:
        """How far the weights are from adding up to `value` - `empty_value`, as integrated gradients should; >= 0."""
        return abs(float(self.weights[method].sum()) - (self.value - self.empty_value))

    def highlights(self, method: str) -> tuple[tuple[str, float], ...]:
        """Pieces of the text with their weights, scaled to [-1, 1] by the largest of them."""
        weights = self.weights[method]
        largest = float(abs(weights).max()) if weights.size else 0.0
        scaled = weights / largest if largest > 0 else weights
        return tuple(zip(self.text.pieces, (float(weight) for weight in scaled), strict=True))


@dataclass(frozen=True, kw_only=True)
class TokenAttributions:
    """The attributions of texts under one model."""

    texts: tuple[AttributedText, ...]
    """In the order given."""
    methods: tuple[str, ...]
    """How they were made."""
    score: str
    """What is explained: `log_probability` or `logit`."""
    baseline: str
    """What tokens are replaced with."""

    def frame(self) -> "pd.DataFrame":
        """One row per text and content token, with a column of weights per method."""
        rows = [
            {
                "text": place,
                "position": position,
                "segment": one.text.segments[position],
                "piece": piece,
                "target": one.target,
                **{method: float(one.weights[method][position]) for method in self.methods},
            }
            for place, one in enumerate(self.texts)
            for position, piece in enumerate(one.text.pieces)
        ]
        return frame_of(rows, ["text", "position", "segment", "piece", "target", *self.methods])

    def plot(self, text: int = 0) -> "Figure":
        """The weights of one text: a bar per token, a panel per method."""
        require("matplotlib", extra="explain", purpose="draw attributions")
        if not 0 <= text < len(self.texts):
            raise DataError(f"`text` must be in [0, {len(self.texts)}), got {text}.")
        one = self.texts[text]
        panels = {method.replace("_", " "): one.weights[method] for method in self.methods}
        unit = "nats" if self.score == "log_probability" else "logit"
        return token_bars(one.text.pieces, panels, f"weight ({unit})")


def attribute_tokens(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pairs: Sequence[str] | None = None,
    targets: Sequence[int] | None = None,
    methods: Sequence[str] = ATTRIBUTION_METHODS,
    score: str = "log_probability",
    baseline: str = "mask",
    steps: int = 16,
    max_length: int = 128,
    on_text: Callable[[int], None] | None = None,
) -> TokenAttributions:
    r"""Say how much each token of a text speaks for a class.

    With $F$ the explained number, $x$ the token embeddings and $x'$ those with every token of the text replaced:

    - integrated gradients: $\sum_d (x - x')_d \int_0^1 \partial_d F(x' + \alpha (x - x'))\, d\alpha$;
    - gradient times input: $\sum_d x_d\, \partial_d F(x)$;
    - occlusion: $F(x) - F(x$ with this token replaced$)$.

    Special tokens and padding keep their embeddings in $x'$ and get no weight.

    Args:
        model: transformers' sequence classifier.
        tokenizer: Its tokenizer.
        texts: What to explain.
        pairs: Second texts, where the model reads pairs.
        targets: Class to explain of each text; None for the one that the model predicts.
        methods: Of `ATTRIBUTION_METHODS`.
        score: "log_probability" (in nats) or "logit" of the class.
        baseline: What replaces a token: "mask", "unk" or "pad", the embedding of that token (of the next of them where
            the tokenizer has none), or "zero".
        steps: Places on the path of integrated gradients, >= 2, those of Gauss and Legendre.
        max_length: Tokens per text, special ones included.
        on_text: Called with the number of texts just done.

    Raises:
        DataError: For texts, targets or methods that do not fit.
        ModelError: If the model does not say its token embeddings.
        MissingExtraError: If captum is not installed.

    Source:
        Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365; Shrikumar et al. 2016,
        https://arxiv.org/abs/1605.01713; Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901. By captum.
    """
    check_one_of("score", score, SCORES)
    check_one_of("baseline", baseline, BASELINES)
    check_count("steps", steps, low=2)
    for method in methods:
        check_one_of("methods", method, ATTRIBUTION_METHODS)
    rows = tokenize_texts(tokenizer, texts, pairs=pairs, max_length=max_length)
    if targets is not None and len(targets) != len(rows):
        raise DataError(f"`targets` must name one class per text, {len(rows)}, got {len(targets)}.")
    found: dict[int, AttributedText] = {}
    with resting(model), EmbeddingInput(model).open() as network:
        for batch in by_length([len(row) for row in rows], rows_each=steps):
            part = _Batch(network, tokenizer, [rows[place] for place in batch], baseline, score)
            part.choose(None if targets is None else [int(targets[place]) for place in batch])
            found |= dict(zip(batch, part.attributed(methods, steps), strict=True))
            if on_text is not None:
                on_text(len(batch))
    return TokenAttributions(
        texts=tuple(found[place] for place in range(len(rows))), methods=tuple(methods), score=score, baseline=baseline
    )


class _Batch:
    """Texts of about one length, and the explained number as a function of their embeddings."""

    def __init__(
        self, network: EmbeddingInput, tokenizer: Any, rows: Sequence[TokenizedText], baseline: str, score: str
    ):
        self.network, self.rows, self.score = network, rows, score
        self.fields = padded([row.fields for row in rows], tokenizer, network.model.device)
        self.content = content_mask(rows, tokenizer, self.fields["input_ids"])
        self.inputs = network.look_up(self.fields["input_ids"])
        self.empty = torch.where(self.content[..., None], baseline_embedding(network, tokenizer, baseline), self.inputs)
        self.targets = torch.zeros(len(rows), dtype=torch.long, device=self.inputs.device)

    @torch.no_grad()
    def choose(self, targets: Sequence[int] | None) -> None:
        """Take these classes, or the predicted ones."""
        logits = self.network.logits(self.inputs, self.fields)
        if targets is None:
            self.targets = logits.argmax(-1)
            return
        wrong = [target for target in targets if not 0 <= target < logits.shape[-1]]
        if wrong:
            raise DataError(f"`targets` must be class ids below {logits.shape[-1]}, got {wrong[0]}.")
        self.targets = torch.tensor(targets, device=self.inputs.device)

    def value(self, embeddings: Tensor, targets: Tensor, *fields: Tensor) -> Tensor:
        """The explained number of each row, as captum calls it."""
        named = dict(zip(self.fields, fields, strict=True))
        return target_scores(self.network.logits(embeddings, named), targets, self.score)

    def attributed(self, methods: Sequence[str], steps: int) -> list[AttributedText]:
        """The attributions of these texts."""
        given = (self.targets, *self.fields.values())
        with torch.no_grad():
            values, empty = self.value(self.inputs, *given), self.value(self.empty, *given)
        weights = {method: getattr(self, f"_{method}")(given, steps).cpu() for method in methods}
        return [
            AttributedText(
                text=row,
                target=int(self.targets[place]),
                value=float(values[place]),
                empty_value=float(empty[place]),
                weights={
                    name: table[place][self.content[place].cpu()].double().numpy() for name, table in weights.items()
                },
            )
            for place, row in enumerate(self.rows)
        ]

    def _integrated_gradients(self, given: tuple[Tensor, ...], steps: int) -> Tensor:
        attr = require("captum.attr", extra="explain", purpose="attribute predictions to tokens")
        method = attr.IntegratedGradients(self.value)
        inputs = self.inputs.clone().requires_grad_()
        found = method.attribute(inputs, baselines=self.empty, additional_forward_args=given, n_steps=steps)
        return found.detach().sum(-1)

    def _gradient_x_input(self, given: tuple[Tensor, ...], steps: int) -> Tensor:
        attr = require("captum.attr", extra="explain", purpose="attribute predictions to tokens")
        inputs = self.inputs.clone().requires_grad_()
        return attr.InputXGradient(self.value).attribute(inputs, additional_forward_args=given).detach().sum(-1)

    @torch.no_grad()
    def _occlusion(self, given: tuple[Tensor, ...], steps: int) -> Tensor:
        attr = require("captum.attr", extra="explain", purpose="attribute predictions to tokens")
        # A feature begins at each content token; special tokens and padding within it are their own baseline.
        features = self.content.long().cumsum(1)
        found = attr.FeatureAblation(self.value).attribute(
            self.inputs,
            baselines=self.empty,
            additional_forward_args=given,
            feature_mask=features[..., None].expand_as(self.inputs).contiguous(),
            perturbations_per_eval=max(1, min(steps, int(features.max()))),
        )
        return found[..., 0]


def content_mask(rows: Sequence[TokenizedText], tokenizer: Any, ids: Tensor) -> Tensor:
    """True where a padded batch holds tokens of its texts, [rows, seq]."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    left = getattr(tokenizer, "padding_side", "right") == "left"
    for place, row in enumerate(rows):
        shift = ids.shape[1] - len(row) if left else 0
        mask[place, [shift + position for position in row.content]] = True
    return mask


def baseline_embedding(network: EmbeddingInput, tokenizer: Any, baseline: str) -> Tensor:
    """The embedding [dim] that stands for no token."""
    weight = network.layer.weight
    if baseline == "zero":
        return torch.zeros(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    wanted = BASELINES[BASELINES.index(baseline) : -1]
    known = [getattr(tokenizer, f"{name}_token_id", None) for name in wanted]
    identifier = next((known_id for known_id in known if known_id is not None), None)
    if identifier is None:
        raise DataError(f"`baseline` is '{baseline}', and the tokenizer has no such token: take 'zero'.")
    return network.look_up(torch.tensor([identifier], device=weight.device))[0]


def token_bars(pieces: Sequence[str], panels: Mapping[str, "np.ndarray"], label: str) -> "Figure":
    """Weights of the tokens of one text: a bar per token, a panel per title.

    Args:
        pieces: What each token stands for.
        panels: Title -> one weight per token.
        label: What the weights are.
    """
    from matplotlib.figure import Figure

    from lossmith.explain.canvas import HUES, INK, WIDTH_IN, figure_label, house_style

    np = numpy()
    count = max(len(pieces), 1)
    with house_style():
        figure = Figure(figsize=(WIDTH_IN, 1.0 + 0.2 * count), layout="constrained")
        heights = np.arange(len(pieces))[::-1]
        for place, (title, weights) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), place + 1)
            colours = [HUES[0] if weight >= 0 else HUES[1] for weight in weights]
            axes.barh(heights, weights, color=colours, height=0.75)
            axes.axvline(0, color=INK, linewidth=0.8)
            names = [figure_label(piece, width=18, lines=1) for piece in pieces]
            axes.set_yticks(heights, names if place == 0 else [""] * len(names), fontsize=8)
            axes.tick_params(axis="y", length=0)
            axes.set_title(figure_label(title, width=26), loc="left", fontsize=9.5)
            axes.set_xlabel(label, fontsize=8.5)
            axes.set_ylim(-0.7, count - 0.3)
    return figure
