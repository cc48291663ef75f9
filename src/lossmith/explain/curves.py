"""The curve of a loss, its gradient and the target it implies, by autograd from the loss that training uses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.nn import Composition, LossModule, MetricLoss, loss, parse_composition

LOGITS_FAMILIES = ("token", "region")
EMBEDDINGS_FAMILIES = ("metric",)
DRAWABLE = (
    "Curves exist for token and region losses and their sums (over the probability of the label), and for metric "
    "losses and their sums (over the cosine similarity to the own class)."
)


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


def loss_curve(text: str, *, classes: int = 2, points: int = 199) -> Curve:
    """Follow a loss along the line that shows what it asks for, in float64.

    Losses on logits (token, region and sums of them) see one row: a batch, and so a region, of a single token. The
    logit of its label rises, the other classes share the rest equally.

    Metric losses see two classes at opposite ends of a half circle. The anchor turns on it from the other class to
    its own, so its cosine similarity to its own class runs from -1 to 1 and that to the other class is the negative.
    Proxies and all centres of a class lie at its end. The batch is the anchor, one row at its own end (its positive)
    and two rows at the other end (so that every row has a positive). The loss is that of the anchor; where a term has
    no loss per anchor it is the mean over the batch.

    Args:
        text: A name or a composition, hyper-parameters inside, as for `lossmith.loss`.
        classes: Classes of the row of logits, >= 2; a metric loss always has two.
        points: Places on the line, evenly spread without its ends, >= 2.

    Raises:
        ObjectiveInputError: For what `lossmith.loss` refuses.
        NoCurveError: For a sum that reads logits and embeddings, or a family that has no such line.

    Example:
        >>> curve = loss_curve("cross_entropy", points=3)
        >>> curve.x, [round(slope, 6) for slope in curve.gradient], [round(t, 6) for t in curve.implied_target]
        ((0.25, 0.5, 0.75), [-0.75, -0.5, -0.25], [1.0, 1.0, 1.0])
    """
    for name, value in (("classes", classes), ("points", points)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ObjectiveInputError(f"`{name}` must be an int >= 2, got {value}.")
    composition = parse_composition(text)
    families = {term.record.family for term in composition.terms}
    for term in composition.terms:
        if term.record.family not in LOGITS_FAMILIES + EMBEDDINGS_FAMILIES:
            raise NoCurveError(
                f"'{term.record.name}' is of family '{term.record.family}', which has no curve. {DRAWABLE}"
            )
    module = _build(composition)
    if families <= set(LOGITS_FAMILIES):
        return _logits_curve(composition, module, classes, points)
    if families <= set(EMBEDDINGS_FAMILIES):
        return _embeddings_curve(composition, module, points)
    raise NoCurveError(
        f"'{composition}' reads logits and embeddings, so no single line shows it: draw its terms. {DRAWABLE}"
    )


def _build(composition: Composition) -> LossModule:
    sizes = {"num_classes": 2, "embedding_dim": 2} if composition.required else {}
    # Proxies are drawn at random before they are placed; the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        return loss(str(composition), **sizes).double()


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
