"""The mix of losses of the released segmentation-loss code, on built logits: masked rows are zeroed, not removed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Int, Tensor
from lossmith.errors import ConfigurationError, DataError
from lossmith.nn import IGNORE_INDEX, parse_composition
from lossmith.objectives import focal_loss, generalized_dice_loss, lovasz_softmax_loss, self_adjusting_dice_loss

SMOOTH = 1e-5
"""Smoothing of the released generalized dice."""


class ReleasedMix:
    r"""Cross-entropy on all labels plus a second loss on the answers, with the faults of the released code.

    The second loss reads a window of the batch, the same for all its rows: from the earliest first answer token to the
    last but one token, so that it never sees the closing EOS. Rows of the window in front of their own answer, or
    without a label, are not removed: their logits and their label become 0 (`focal`, `self_adjusting_dice`,
    `generalized_dice`: uniform predictions of class 0 that count in every mean) or their probabilities and label
    (`lovasz_softmax`: a class 0 that is wrong for certain). Cross-entropy is torch's mean over the micro-batch.

    Use it to show what those faults do; `lossmith.loss` with `[answer]` is the loss that was meant.

    Args:
        composition: `cross_entropy` without a scope, and released losses with `[answer]`, weighted:
            "0.6*cross_entropy + 0.4*lovasz_softmax[answer]". `generalized_dice` is its released form with smoothing
            1e-5; every other setting is the released one as well and cannot be changed.

    Raises:
        CompositionError: If the string cannot be read.
        ConfigurationError: For a term, scope, setting or schedule that the released code does not have.

    Source:
        Rege Cambrin et al. 2024, https://arxiv.org/abs/2409.13641, code at
        https://github.com/DarthReca/segmentation-losses-nlp. Deviation: Lovász visits present classes only, of equal
        value; sums run in float32 where logits are of half precision.

    Example:
        >>> mix = ReleasedMix("0.6*cross_entropy + 0.4*focal[answer]")
        >>> logits, labels = torch.zeros(1, 4, 7), torch.tensor([[3, 5, 6, 2]])
        >>> mix(logits, labels, torch.tensor([2]))  # 0.6 log 7 + 0.4 (6/7)^2 log 7
        tensor(1.7394)
    """

    def __init__(self, composition: str):
        parsed = parse_composition(composition)
        if parsed.handovers:
            raise ConfigurationError(f"The released mix has no schedule, got '{composition}': give one sum.")
        self.terms = [(term.weight, _released_term(term)) for term in parsed.terms]
        self._text = str(parsed)

    def __str__(self) -> str:
        return self._text

    def __call__(
        self,
        logits: Float[Tensor, "batch seq vocab"],
        labels: Int[Tensor, "batch seq"],
        answer_starts: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The mix on one micro-batch, padded on the left.

        Args:
            logits: Scores of the next token.
            labels: Token ids aligned with the inputs (shifted here), -100 where the collator masks them.
            answer_starts: Place of the first token of each answer in its padded row, >= 1.

        Raises:
            DataError: If an answer begins where nothing can predict it, or the window is empty.
        """
        earliest = int(answer_starts.min())
        if not 1 <= earliest <= labels.shape[1] - 2:
            raise DataError(
                f"The earliest answer of a batch of {labels.shape[1]} tokens must begin at 1 to {labels.shape[1] - 2}, "
                f"got {earliest}: the released mix needs a token before it and two of the answer."
            )
        window = slice(earliest - 1, -1)
        targets = labels[:, 1:]
        answers = targets[:, window]
        places = torch.arange(answers.shape[1], device=labels.device)
        answers = answers.masked_fill(places < (answer_starts - earliest).unsqueeze(1), IGNORE_INDEX)
        scores = logits[:, :-1]
        parts = [
            weight * (_cross_entropy(scores, targets) if second is None else second(scores[:, window], answers))
            for weight, second in self.terms
        ]
        return torch.stack(parts).sum()

    def on_batch(self, logits: Float[Tensor, "batch seq vocab"], batch: Mapping[str, Any]) -> Float[Tensor, ""]:
        """The mix on a batch of `CompletionCollator(..., side="left")`.

        Raises:
            DataError: If the batch is padded on the right, or a row has no token of an answer.
        """
        mask = batch["answer_mask"]
        if not bool(batch["attention_mask"][:, -1].all()):
            raise DataError('The released mix needs batches padded on the left: give the collator `side="left"`.')
        if not bool(mask.any(dim=1).all()):
            raise DataError("A row of the batch has no token in `answer_mask`, so the released mix has no window.")
        return self(logits, batch["labels"], mask.int().argmax(dim=1))


Second = Callable[[Tensor, Tensor], Tensor]
"""From logits [batch, window, vocab] and labels [batch, window], -100 where masked, to a scalar."""


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)


def _focal(logits: Tensor, labels: Tensor) -> Tensor:
    return focal_loss(_zeroed_logps(logits, labels)[1].flatten(), gamma=2.0).mean()


def _self_adjusting_dice(logits: Tensor, labels: Tensor) -> Tensor:
    return self_adjusting_dice_loss(_zeroed_logps(logits, labels)[1].flatten(), alpha=1.0, gamma=1.0).mean()


def _generalized_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """One region per sequence; the mean over sequences."""
    # The probability of absent classes, which decides this loss, is what the present ones leave: float32 rounds it to
    # 0 where a model is sure. MPS has no float64.
    wide = logits if logits.device.type == "mps" else logits.double()
    everything, token_logps = _zeroed_logps(wide, labels)
    values = []
    for logps, own, ids in zip(everything, token_logps, _zeroed(labels), strict=True):
        present, columns = torch.unique(ids, return_inverse=True)
        mass = logps[:, present].exp().sum(0)
        values.append(generalized_dice_loss(own, columns, mass, smooth=SMOOTH, form="released"))
    return torch.stack(values).mean().to(at_least_float32(logits).dtype)


def _lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """One region, the batch."""
    logits, labels = at_least_float32(logits).flatten(0, 1), labels.flatten()
    present, columns = torch.unique(_zeroed(labels), return_inverse=True)
    probs = logits.softmax(dim=-1)[:, present] * (labels != IGNORE_INDEX).unsqueeze(1)
    return lovasz_softmax_loss(probs, columns)


def _zeroed(labels: Tensor) -> Tensor:
    return labels.masked_fill(labels == IGNORE_INDEX, 0)


def _zeroed_logps(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all classes and of the labels, masked rows uniform and labelled 0."""
    kept = (labels != IGNORE_INDEX).unsqueeze(-1)
    logps = (at_least_float32(logits) * kept).log_softmax(dim=-1)
    return logps, logps.gather(-1, _zeroed(labels).unsqueeze(-1)).squeeze(-1)


SECONDS: dict[str, tuple[Second, dict[str, object]]] = {
    "focal": (_focal, {"gamma": 2.0}),
    "generalized_dice": (_generalized_dice, {"smooth": SMOOTH, "form": "released"}),
    "lovasz_softmax": (_lovasz_softmax, {}),
    "self_adjusting_dice": (_self_adjusting_dice, {"alpha": 1.0, "gamma": 1.0}),
}
"""The released second losses, each with the settings that a composition may write out."""


def _released_term(term: Any) -> Second | None:
    """The second loss that a term names; None for the cross-entropy."""
    name, second = term.record.name, None
    allowed: dict[str, object] = {}
    if name == "cross_entropy" and term.scope is None:
        pass
    elif name in SECONDS and term.scope == "answer":
        second, allowed = SECONDS[name]
    else:
        known = ", ".join(f"{one}[answer]" for one in SECONDS)
        raise ConfigurationError(
            f"The released mix has no term '{term}', only cross_entropy without a scope and {known}."
        )
    for setting, value in term.hyperparameters.items():
        if allowed.get(setting) != value:
            fixed = ", ".join(f"{key}={kept!r}" for key, kept in allowed.items()) or "no settings"
            raise ConfigurationError(f"The released mix fixes '{name}' to {fixed}, got {setting}={value!r}.")
    return second
