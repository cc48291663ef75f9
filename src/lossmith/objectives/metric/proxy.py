"""Metric objectives with learnable proxies: one vector, or several centres, stand for each class."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_finite, check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Int, Tensor
from lossmith.objectives._registry import objective


def _unit(vectors: Float[Tensor, "*batch dim"], normalize: bool) -> Float[Tensor, "*batch dim"]:
    vectors = at_least_float32(vectors)
    return F.normalize(vectors, dim=-1) if normalize else vectors


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1909.05235",
    proxy_shape=("num_classes", "centers_per_class", "embedding_dim"),
    module_hyperparameters={"centers_per_class": 10},
)
def soft_triple_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    proxies: Float[Tensor, "classes centers dim"],
    *,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    normalize: bool = True,
) -> Float[Tensor, " anchors"]:
    r"""Draw each embedding to the nearest of several learnable centres of its class and away from other classes'.

    With $x$ the embedding, $w_{ck}$ centre $k$ of class $c$, and the soft assignment

    $$S_c = \sum_k \mathrm{softmax}_k(x^\top w_{ck} / \gamma)\; x^\top w_{ck},$$

    $$\ell = -\log \frac{e^{\lambda (S_y - \delta)}}{e^{\lambda (S_y - \delta)} + \sum_{c \ne y} e^{\lambda S_c}}.$$

    Args:
        embeddings: One vector per anchor.
        labels: Class of each anchor, in [0, classes).
        proxies: Learnable centres; `lossmith.loss` makes and owns them, `centers_per_class` of them per class.
        scale: Inverse temperature $\lambda$ of the softmax over classes, > 0.
        gamma: Temperature of the soft assignment to centres, > 0.
        margin: Required gap $\delta$ of the own class, in units of cosine similarity.
        normalize: Whether embeddings and centres are L2-normalised first.

    Returns:
        One loss per anchor, in nats, >= 0. Equal to log classes where all centres coincide and margin is 0.

    Raises:
        ObjectiveInputError: If `scale` or `gamma` is not positive or `margin` is not finite.

    Source:
        Qian et al. 2019, "SoftTriple Loss", eq. 7 to 9, https://arxiv.org/abs/1909.05235. Deviation: without the
        regulariser that merges centres (its weight is 0 here).

    Example:
        >>> centres = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> soft_triple_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0]), centres, scale=1.0, margin=0.0)
        tensor([0.3133])
    """
    check_positive("scale", scale)
    check_positive("gamma", gamma)
    check_finite("margin", margin)
    similarities = torch.einsum("ad,ckd->ack", _unit(embeddings, normalize), _unit(proxies, normalize))
    class_similarities = (torch.softmax(similarities / gamma, dim=-1) * similarities).sum(-1)
    own = F.one_hot(labels, proxies.shape[0]).to(class_similarities.dtype)
    return F.cross_entropy(scale * (class_similarities - margin * own), labels, reduction="none")
