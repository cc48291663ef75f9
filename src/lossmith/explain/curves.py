"""The curve of a loss, its gradient and the target it implies, by autograd from the loss that training uses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from lossmith._checks import check_positive
from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.nn import (
    Composition,
    LossModule,
    MetricLoss,
    ObjectiveModule,
    PreferenceLoss,
    UnpairedLoss,
    WeightedSum,
    loss,
    parse_composition,
)

READS = {
    "token": "logits",
    "region": "logits",
    "metric": "embeddings",
    "preference": "pairs of completions",
    "unpaired": "single completions",
}
"""Family -> what the line of its losses runs through."""
LENGTH = 20
"""Tokens of every completion on a line."""
OTHER_MARGINS = (-4.3, 1.1, 6.7)
"""Margins of the pairs beside the moving one, for losses coupled over the batch; odd ones, so that no place ties."""
SHAPE_REACH, DEFAULT_REACH = 5.0, 10.0
"""A line runs to this beta times log-ratio on both sides; without a beta to this log-ratio."""
CERTAIN = 2.0 * LENGTH
"""Margin at which a chosen completion that began at one nat per token has probability one: a line without a reference
ends there."""


class NoCurveError(ObjectiveInputError):
    """The loss is sound, but no single line through its inputs shows it."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a loss asks of a model along one line through its inputs; all sequences are as long as `x`."""

    name: str
    """Canonical composition string of the loss."""
    x_name: str
    """What runs along the line."""
    x: tuple[float, ...]
    """Places on the line, rising."""
    loss: tuple[float, ...]
    """Loss at each place."""
    gradient_name: str
    """What `gradient` is taken with respect to."""
    gradient: tuple[float, ...]
    """Derivative of the loss; gradient descent moves against its sign."""
    implied_target: tuple[float, ...] | None
    """For losses on logits p - dloss/dz of the label: the probability that cross-entropy would have to be given as its
    target to pull as hard. Where it equals p nothing moves."""
    setting: str
    """One sentence on the inputs behind the line."""


def loss_curve(text: str, *, classes: int = 2, points: int = 199, span: float | None = None) -> Curve:
    """Follow a loss along the line that shows what it asks for, in float64.

    Losses on logits (token, region and sums of them) see one row: a batch, and so a region, of a single token. The
    logit of its label rises, the other classes share the rest equally.

    Metric losses see two classes at opposite ends of a half circle. The anchor turns on it from the other class to
    its own, so its cosine similarity to its own class runs from -1 to 1 and that to the other class is the negative.
    Proxies and all centres of a class lie at its end. The batch is the anchor, one row at its own end (its positive)
    and two rows at the other end (so that every row has a positive). The loss is that of the anchor; where a term has
    no loss per anchor it is the mean over the batch.

    Preference losses see one pair of completions of 20 tokens, equally likely under the reference. Its log-ratio margin
    runs as far as beta times it is `span` on both sides (the smallest beta of a sum; divided by 20 where the loss
    averages over tokens): half of it lifts the chosen completion, half lowers the rejected one. Where no loss reads a
    reference the margin is that of the log-probabilities, which begin at -1 per token, and the line ends at 40, where
    the chosen completion has probability one. Losses coupled over the batch see three more pairs, at margins -4.3, 1.1
    and 6.7. The loss is that of the moving pair (the mean of its two completions where those are the items); where the
    values belong to no single pair it is the mean over the batch.

    Unpaired losses see one desirable completion, its log-ratio running as for pairs, at a `kl` of 0.

    Running means that a loss keeps are at 0. What a loss holds constant stays so in the gradient, as in training: it is
    then not the slope of the drawn loss.

    Args:
        text: A name or a composition, hyper-parameters inside, as for `lossmith.loss`.
        classes: Classes of the row of logits, >= 2; no other line depends on it.
        points: Places on the line, evenly spread without its ends, >= 2.
        span: How far the line of a preference or unpaired loss runs on both sides, as beta times log-ratio, > 0; in
            nats where a loss has no beta. None for 5; without a beta 10 nats, or 40 where nothing reads a reference.

    Raises:
        ObjectiveInputError: For what `lossmith.loss` refuses, and for a `span` on a line that has fixed ends.
        NoCurveError: For a schedule, and for a sum whose terms do not all read the same kind of input.

    Example:
        >>> curve = loss_curve("cross_entropy", points=3)
        >>> curve.x, [round(slope, 6) for slope in curve.gradient], [round(t, 6) for t in curve.implied_target]
        ((0.25, 0.5, 0.75), [-0.75, -0.5, -0.25], [1.0, 1.0, 1.0])
    """
    for name, value in (("classes", classes), ("points", points)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ObjectiveInputError(f"`{name}` must be an int >= 2, got {value}.")
    if span is not None:
        check_positive("span", span)
    composition = parse_composition(text)
    if composition.handovers:
        phases = [str(Composition(tuple(replace(term, phase=0) for term in phase))) for phase in composition.phases]
        raise NoCurveError(
            f"'{composition}' changes over training, so no single curve shows it: draw its phases, "
            f"{' and '.join(repr(phase) for phase in phases)}."
        )
    module = _build(composition)
    reads = list(dict.fromkeys(READS[term.record.family] for term in composition.terms))
    if len(reads) > 1:
        raise NoCurveError(
            f"'{composition}' reads {' and '.join(reads)}, so no single line shows it: draw its terms. Sums of token "
            f"and region losses, of metric, of preference or of unpaired losses can be drawn."
        )
    if span is not None and reads[0] in ("logits", "embeddings"):
        raise ObjectiveInputError(
            f"`span` is for preference and unpaired losses: the line of '{composition}', which reads {reads[0]}, has "
            f"fixed ends."
        )
    match reads[0]:
        case "logits":
            return _logits_curve(composition, module, classes, points)
        case "embeddings":
            return _embeddings_curve(composition, module, points)
        case "pairs of completions":
            return _pairs_curve(composition, module, points, span)
        case _:
            return _completions_curve(composition, module, points, span)


def _build(composition: Composition) -> LossModule:
    sizes = {"num_classes": 2, "embedding_dim": 2} if composition.required else {}
    # Proxies are drawn at random before they are placed; the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        module = loss(str(composition), **sizes).double()
    # Running means move in training mode only: on a line each place must see the same ones.
    return module.eval()


def _logits_curve(composition: Composition, module: LossModule, classes: int, points: int) -> Curve:
    probabilities = _inner_grid(0, 1, points)
    # With the other logits at 0, p = e^z / (e^z + classes - 1).
    label_logits = probabilities.logit() + torch.tensor(classes - 1, dtype=torch.float64).log()
    others = torch.zeros(classes - 1, dtype=torch.float64)
    labels = torch.tensor([0])

    def at(label_logit: Float[Tensor, ""]) -> Float[Tensor, ""]:
        logits = torch.cat([label_logit.reshape(1), others])[None]
        return module(logits=logits, labels=labels, **_all_scopes(composition, labels))

    losses, gradient = _follow(at, label_logits)
    rest = "the other one takes" if classes == 2 else f"the other {classes - 1} share"
    return Curve(
        name=str(composition),
        x_name="probability p of the label",
        x=tuple(probabilities.tolist()),
        loss=losses,
        gradient_name="the label's logit z",
        gradient=gradient,
        implied_target=tuple(p - slope for p, slope in zip(probabilities.tolist(), gradient, strict=True)),
        setting=f"One token, {classes} classes: the label has probability p, {rest} the rest.",
    )


def _embeddings_curve(composition: Composition, module: LossModule, points: int) -> Curve:
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    _place_proxies(module, ends)
    labels = torch.tensor([0, 0, 1, 1])
    fixed = ends[[0, 1, 1]]
    per_anchor = module.items == ("anchor",)

    def at(similarity: Float[Tensor, ""]) -> Float[Tensor, ""]:
        angle = similarity.acos()
        anchor = torch.stack([angle.cos(), angle.sin()])[None]
        values = module(
            embeddings=torch.cat([anchor, fixed]),
            labels=labels,
            reduction="none" if per_anchor else "mean",
            **_all_scopes(composition, labels),
        )
        return values[0] if per_anchor else values

    similarities = _inner_grid(-1, 1, points)
    losses, gradient = _follow(at, similarities)
    whose = "the loss is the anchor's" if per_anchor else "the loss is the mean over the batch"
    return Curve(
        name=str(composition),
        x_name="cosine similarity to the own class",
        x=tuple(similarities.tolist()),
        loss=losses,
        gradient_name="the similarity",
        gradient=gradient,
        implied_target=None,
        setting=f"Two opposite classes: an anchor, one row of its own class, two of the other; {whose}.",
    )


def _pairs_curve(composition: Composition, module: LossModule, points: int, span: float | None) -> Curve:
    terms = _terms(composition, module)
    coupled = any(part.record.batch_coupled for _, part in terms)
    referenced = [_reads_reference(part) for _, part in terms]
    reach = max(_reach(part, span) for _, part in terms)
    if not all(referenced):
        reach = min(reach, CERTAIN)
    # Low enough that no completion becomes more likely than certain.
    line = _PairLine(start=-max(float(LENGTH), reach / 2), others=OTHER_MARGINS if coupled else ())
    per_pair = [line.belongs_to_pairs(part, 0.37 * reach) for _, part in terms]

    def at(margin: Float[Tensor, ""]) -> Float[Tensor, ""]:
        values = [
            weight * (line.own(part, margin) if single else part(**line.batch(margin)))
            for (weight, part), single in zip(terms, per_pair, strict=True)
        ]
        return torch.stack(values).sum()

    margins = _symmetric_grid(reach, points)
    losses, gradient = _follow(at, margins)
    if any(referenced):
        x_name, begin = "log-ratio margin of the pair in nats", "The reference"
    else:
        x_name, begin = "chosen minus rejected log-probability in nats", "At 0 the policy"
    beside = f"; other pairs at margins {', '.join(f'{margin:g}' for margin in OTHER_MARGINS)}" if coupled else ""
    averaged = [part.record.name for (_, part), single in zip(terms, per_pair, strict=True) if not single]
    whose = f"; {' and '.join(averaged)}: mean over the batch" if averaged else ""
    if any(part.items == ("completion",) for _, part in terms):
        whose += "; mean over its two completions"
    return Curve(
        name=str(composition),
        x_name=x_name,
        x=tuple(margins.tolist()),
        loss=losses,
        gradient_name="the margin",
        gradient=gradient,
        implied_target=None,
        setting=f"{begin} gives each completion of {LENGTH} tokens a log-probability of {line.start:g}{beside}{whose}.",
    )


@dataclass(frozen=True, kw_only=True)
class _PairLine:
    """A pair that moves along its margin, alone or among pairs that stay."""

    start: float
    """Log-probability of every completion under the reference."""
    others: tuple[float, ...]
    """Margins of the pairs that stay."""

    def batch(self, margin: Float[Tensor, ""], place: int = 0) -> dict[str, Tensor]:
        """What a preference loss reads, the moving pair at `place`."""
        stay = margin.new_tensor(self.others)
        margins = torch.cat([stay[:place], margin.reshape(1), stay[place:]])
        reference = torch.full_like(margins, self.start)
        lengths = torch.full_like(margins, LENGTH)
        return {
            "chosen_logps": reference + margins / 2,
            "rejected_logps": reference - margins / 2,
            "ref_chosen_logps": reference,
            "ref_rejected_logps": reference,
            "chosen_lengths": lengths,
            "rejected_lengths": lengths,
        }

    def own(self, part: ObjectiveModule, margin: Float[Tensor, ""], place: int = 0) -> Float[Tensor, ""]:
        """The loss of the moving pair; where completions are the items, those chosen come before those rejected."""
        values = part(**self.batch(margin, place), reduction="none")
        return values.reshape(-1, len(self.others) + 1)[:, place].mean()

    def belongs_to_pairs(self, part: ObjectiveModule, somewhere: float) -> bool:
        """Whether a pair takes its loss along when it changes its place in the batch (aot gives one per quantile)."""
        margin = torch.tensor(somewhere, dtype=torch.float64)
        seen = torch.stack([self.own(part, margin, place) for place in range(len(self.others) + 1)])
        return bool(torch.isclose(seen, seen[0]).all())


def _completions_curve(composition: Composition, module: LossModule, points: int, span: float | None) -> Curve:
    terms = _terms(composition, module)
    reach = max(_reach(part, span) for _, part in terms)
    reference = torch.full((1,), -max(float(LENGTH), reach), dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    for _, part in terms:
        if isinstance(part, UnpairedLoss) and part.running_kl is not None:
            part.running_kl.observe(zero)

    def at(log_ratio: Float[Tensor, ""]) -> Float[Tensor, ""]:
        desirable = torch.ones(1, dtype=torch.bool)
        inputs = {"logps": reference + log_ratio, "ref_logps": reference, "desirable": desirable, "kl": zero}
        return torch.stack([weight * part(**inputs) for weight, part in terms]).sum()

    log_ratios = _symmetric_grid(reach, points)
    losses, gradient = _follow(at, log_ratios)
    return Curve(
        name=str(composition),
        x_name="log-ratio of the completion in nats",
        x=tuple(log_ratios.tolist()),
        loss=losses,
        gradient_name="the log-ratio",
        gradient=gradient,
        implied_target=None,
        setting="One desirable completion, kl and running means 0; an undesirable one mirrors it, but for its weight.",
    )


def _terms(composition: Composition, module: LossModule) -> list[tuple[float, ObjectiveModule]]:
    """Weight and module of each term."""
    parts = list(module.terms) if isinstance(module, WeightedSum) else [module]
    pairs = zip(composition.terms, parts, strict=True)
    return [(term.weight, part) for term, part in pairs if isinstance(part, ObjectiveModule)]


def _reach(part: ObjectiveModule, span: float | None) -> float:
    """How far the line runs on both sides to show the loss at its own beta."""
    beta = part.hyperparameters.get("beta")
    if beta is None:
        return span or (DEFAULT_REACH if _reads_reference(part) else CERTAIN)
    averages = isinstance(part, PreferenceLoss) and {"chosen_lengths", "rejected_lengths"} <= set(part.needed)
    return (span or SHAPE_REACH) / beta * (LENGTH if averages else 1)


def _reads_reference(part: ObjectiveModule) -> bool:
    return "ref_chosen_logps" in part.needed or "ref_logps" in part.needed


def _place_proxies(module: LossModule, ends: Float[Tensor, "2 2"]) -> None:
    """Put every proxy (and every centre) of a class at the end of its class."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, MetricLoss) and part.record.proxy_shape:
                proxies = part.get_parameter("proxies")
                proxies.copy_(ends.reshape(2, *[1] * (proxies.ndim - 2), 2).expand_as(proxies))


def _all_scopes(composition: Composition, labels: Tensor) -> dict[str, Any]:
    """Call arguments that let every label count in every scope that the composition names."""
    names = {term.scope for term in composition.terms if term.scope is not None}
    return {"scopes": {name: torch.ones_like(labels, dtype=torch.bool) for name in names}} if names else {}


def _inner_grid(low: float, high: float, points: int) -> Float[Tensor, " points"]:
    return torch.linspace(low, high, points + 2, dtype=torch.float64)[1:-1]


def _symmetric_grid(reach: float, points: int) -> Float[Tensor, " points"]:
    """From -reach to reach without the ends; its middle is 0 itself, where some losses jump."""
    places = torch.arange(1, points + 1, dtype=torch.float64)
    return reach * (2 * places - (points + 1)) / (points + 1)


def _follow(
    at: Callable[[Float[Tensor, ""]], Float[Tensor, ""]], places: Float[Tensor, " points"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Value and derivative of `at`, place by place: a loss coupled over its batch must not see the other places."""
    values, slopes = [], []
    with _one_thread():
        for place in places:
            place = place.clone().requires_grad_()
            value = at(place)
            (slope,) = torch.autograd.grad(value, place)
            values.append(value.item())
            slopes.append(slope.item())
    return tuple(values), tuple(slopes)


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other over four rows take 2 to 9 s for a curve of 0.3 s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
