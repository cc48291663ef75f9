"""Metric objectives with proxies and a margin on the angle or cosine to the own class, as in face recognition."""

import math

import torch

from lossmith._checks import check_finite, check_not_negative, check_positive
from lossmith._typing import Float, Int, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.objectives._registry import objective
from lossmith.objectives.metric._pieces import class_losses, own_class, unit


def cosine_scores(
    embeddings: Float[Tensor, "anchors dim"], proxies: Float[Tensor, "classes dim"], *, scale: float, normalize: bool
) -> Float[Tensor, "anchors classes"]:
    """What `arcface_loss` and `cosface_loss` have a softmax read, without their margins."""
    return scale * (unit(embeddings, normalize) @ unit(proxies, normalize).T)


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1801.07698",
    proxy_shape=("num_classes", "embedding_dim"),
    class_scores=cosine_scores,
)
def arcface_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    proxies: Float[Tensor, "classes dim"],
    *,
    margin: float = 28.6,
    scale: float = 64.0,
    normalize: bool = True,
) -> Float[Tensor, " anchors"]:
    r"""Classify by angle, with the own class's proxy seen `margin` degrees further away than it is.

    With $\theta_c$ the angle between the embedding and proxy $c$ and $m$ the margin,

    $$\ell = -\log \frac{e^{s\,\psi(\theta_y)}}{e^{s\,\psi(\theta_y)} + \sum_{c \ne y} e^{s \cos\theta_c}},\qquad
    \psi(\theta) = \begin{cases}\cos(\theta + m) & \theta \le \pi - m\\
    \cos\theta - m \sin m & \text{beyond.}\end{cases}$$

    Beyond $\pi - m$ the cosine of $\theta + m$ would rise again and push an anchor away from its own proxy; the second
    case keeps falling (with a step down at $\pi - m$). Where anchor and proxy point the same way the loss has a cone's
    tip: the gradient there is the one of $\cos m \cos\theta$, finite; $\arccos$ itself has an infinite slope.

    Args:
        embeddings: One vector per anchor.
        labels: Class of each anchor, in [0, classes).
        proxies: One learnable vector per class; `lossmith.loss` makes and owns them.
        margin: Added angle $m$, in degrees, in [0, 90].
        scale: Inverse temperature $s$, > 0.
        normalize: Whether embeddings and proxies are L2-normalised first. If not, every cosine is multiplied by the two
            lengths.

    Returns:
        One loss per anchor, in nats, >= 0. Equal to log classes where all proxies coincide and margin is 0.

    Raises:
        ObjectiveInputError: If `scale` is not positive or `margin` is outside [0, 90].

    Source:
        Deng et al. 2019, "ArcFace", eq. 3, https://arxiv.org/abs/1801.07698. Deviation: the margin is in degrees (28.6
        are the paper's 0.5 radians, rounded); beyond $\pi - m$ the continuation of the authors' released code, which
        the paper does not print.

    Use when:
        Many classes, clean labels and enough steps: the margin at scale 64 is hard on noisy labels and on a short
        fine-tuning, for which `soft_triple` or a lower scale is milder.

    Relatives:
        Equals `normalized_softmax` at temperature 1/scale where the margin is 0; `cosface` takes the margin off the
        cosine instead of adding it to the angle.

    Elsewhere:
        pytorch-metric-learning: same value and defaults, the margin in degrees and the same continuation; at cosines of
        1 and -1 its gradient goes through arccos. The authors' code takes radians (0.5). Neither TRL nor
        sentence-transformers has it.

    Example:
        >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> arcface_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), proxies, margin=60.0, scale=1.0)
        tensor([0.4741])
    """
    check_positive("scale", scale)
    check_not_negative("margin", margin)
    if margin > 90:
        raise ObjectiveInputError(f"`margin` must be an angle of at most 90 degrees, got {margin}.")
    embeddings, proxies = unit(embeddings, normalize), unit(proxies, normalize)
    own_scores = _turned_cosines(
        unit(embeddings, not normalize), unit(proxies, not normalize)[labels.long()], math.radians(margin)
    )
    if not normalize:
        lengths = torch.linalg.vector_norm(proxies, dim=-1)[labels.long()]
        own_scores = own_scores * torch.linalg.vector_norm(embeddings, dim=-1) * lengths
    scores = (embeddings @ proxies.T).scatter(1, labels.long()[:, None], own_scores[:, None])
    return class_losses(scale * scores, labels)


def _turned_cosines(
    embeddings: Float[Tensor, "anchors dim"], own_proxies: Float[Tensor, "anchors dim"], turn: float
) -> Float[Tensor, " anchors"]:
    """Cosine of the angle between each pair of unit vectors plus `turn` (radians), falling on beyond 180 degrees."""
    cosines = (embeddings * own_proxies).sum(-1)
    # The sine as the length of the part across the proxy: exact near 0 and 180 degrees, with slope 0 at length 0;
    # sqrt(1 - cos^2) has lost its digits there and its slope is infinite.
    sines = torch.linalg.vector_norm(embeddings - cosines[:, None] * own_proxies, dim=-1)
    turned = cosines * math.cos(turn) - sines * math.sin(turn)
    return torch.where(cosines >= -math.cos(turn), turned, cosines - turn * math.sin(turn))


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1801.09414",
    proxy_shape=("num_classes", "embedding_dim"),
    class_scores=cosine_scores,
)
def cosface_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    proxies: Float[Tensor, "classes dim"],
    *,
    margin: float = 0.35,
    scale: float = 64.0,
    normalize: bool = True,
) -> Float[Tensor, " anchors"]:
    r"""Classify by cosine, with a fixed margin taken off the own class's cosine.

    $$\ell = -\log \frac{e^{s (x^\top w_y - m)}}{e^{s (x^\top w_y - m)} + \sum_{c \ne y} e^{s\, x^\top w_c}}.$$

    Args:
        embeddings: One vector per anchor.
        labels: Class of each anchor, in [0, classes).
        proxies: One learnable vector per class; `lossmith.loss` makes and owns them.
        margin: Required gap $m$ of the own class, in units of cosine similarity.
        scale: Inverse temperature $s$, > 0.
        normalize: Whether embeddings and proxies are L2-normalised first.

    Returns:
        One loss per anchor, in nats, >= 0. With two coinciding proxies log(1 + exp(scale * margin)).

    Raises:
        ObjectiveInputError: If `scale` is not positive or `margin` is not finite.

    Source:
        Wang et al. 2018, "CosFace", eq. 4, https://arxiv.org/abs/1801.09414. Deviation: none.

    Use when:
        As `arcface`, where a margin that is the same at every angle is easier to train; no trigonometry near the ends.

    Relatives:
        Equals `normalized_softmax` at temperature 1/scale where the margin is 0; equals `soft_triple` with one centre
        per class at the same scale and margin.

    Elsewhere:
        pytorch-metric-learning: same value and defaults. Neither TRL nor sentence-transformers has it.

    Example:
        >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> cosface_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), proxies, margin=1.0, scale=1.0)
        tensor([0.6931])
    """
    check_positive("scale", scale)
    check_finite("margin", margin)
    cosines = unit(embeddings, normalize) @ unit(proxies, normalize).T
    own = own_class(labels, proxies.shape[0]).to(cosines.dtype)
    return class_losses(scale * (cosines - margin * own), labels)
