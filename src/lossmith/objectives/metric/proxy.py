"""Metric objectives with learnable proxies: one vector, or several centres, stand for each class."""

import torch

from lossmith._checks import check_finite, check_positive
from lossmith._numerics import masked_logsumexp
from lossmith._typing import Float, Int, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.metric._pieces import class_losses, own_class, softplus, unit


def _centre_similarities(
    embeddings: Float[Tensor, "anchors dim"],
    proxies: Float[Tensor, "classes centers dim"],
    gamma: float,
    normalize: bool,
) -> Float[Tensor, "anchors classes"]:
    """Similarity to each class: that to its centres, softly the nearest."""
    similarities = torch.einsum("ad,ckd->ack", unit(embeddings, normalize), unit(proxies, normalize))
    return (torch.softmax(similarities / gamma, dim=-1) * similarities).sum(-1)


def soft_triple_scores(
    embeddings: Float[Tensor, "anchors dim"],
    proxies: Float[Tensor, "classes centers dim"],
    *,
    scale: float,
    gamma: float,
    normalize: bool,
) -> Float[Tensor, "anchors classes"]:
    """What `soft_triple_loss` has a softmax read, without its margin."""
    return scale * _centre_similarities(embeddings, proxies, gamma, normalize)


def proxy_anchor_scores(
    embeddings: Float[Tensor, "anchors dim"], proxies: Float[Tensor, "classes dim"], *, alpha: float, normalize: bool
) -> Float[Tensor, "anchors classes"]:
    """Cosines to the proxies at the steepness of `proxy_anchor_loss`, which is no softmax itself."""
    return alpha * unit(embeddings, normalize) @ unit(proxies, normalize).T


def proxy_nca_scores(
    embeddings: Float[Tensor, "anchors dim"], proxies: Float[Tensor, "classes dim"], *, scale: float, normalize: bool
) -> Float[Tensor, "anchors classes"]:
    """What `proxy_nca_loss` has a softmax read: negative squared distances, up to a constant of each row."""
    embeddings, proxies = unit(embeddings, normalize), unit(proxies, normalize)
    # |x|^2 is the same for every class and leaves the softmax, and with it the cancellation of large lengths.
    return scale * (2 * embeddings @ proxies.T - proxies.square().sum(-1))


def normalized_softmax_scores(
    embeddings: Float[Tensor, "anchors dim"],
    proxies: Float[Tensor, "classes dim"],
    *,
    temperature: float,
    normalize: bool,
) -> Float[Tensor, "anchors classes"]:
    """What `normalized_softmax_loss` has a softmax read."""
    return unit(embeddings, normalize) @ unit(proxies, normalize).T / temperature


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1909.05235",
    proxy_shape=("num_classes", "centers_per_class", "embedding_dim"),
    module_hyperparameters={"centers_per_class": 10},
    class_scores=soft_triple_scores,
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

    Use when:
        Classes have several modes (a topic asked in different ways) and batches are too small or uneven for losses that
        need positives in the batch. With one mode per class `cosface` is the same with fewer parameters.

    Relatives:
        Equals `cosface` at the same scale and margin with one centre per class; equals `normalized_softmax` at
        temperature 1/scale where moreover the margin is 0.

    Elsewhere:
        pytorch-metric-learning: same value and defaults; `scale` is called `la` there, its centres are one matrix
        [dim, classes * centers]. Neither TRL nor sentence-transformers has it.

    Example:
        >>> centres = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> soft_triple_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0]), centres, scale=1.0, margin=0.0)
        tensor([0.3133])
    """
    check_positive("scale", scale)
    check_positive("gamma", gamma)
    check_finite("margin", margin)
    class_similarities = _centre_similarities(embeddings, proxies, gamma, normalize)
    own = own_class(labels, proxies.shape[0]).to(class_similarities.dtype)
    return class_losses(scale * (class_similarities - margin * own), labels)


@objective(
    family="metric",
    item="batch",
    source="https://arxiv.org/abs/2003.13911",
    batch_coupled=True,
    proxy_shape=("num_classes", "embedding_dim"),
    class_scores=proxy_anchor_scores,
)
def proxy_anchor_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    proxies: Float[Tensor, "classes dim"],
    *,
    alpha: float = 32.0,
    margin: float = 0.1,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    r"""Let each class's proxy pull its hardest examples of the batch and push away the nearest others.

    With $S_{ic} = x_i^\top w_c$, $C$ the number of classes, and $C^+$ the classes that have a row in the batch,

    $$\ell = \frac{1}{|C^+|}\sum_{c \in C^+} \log\Bigl(1 + \sum_{i: y_i = c} e^{-\alpha(S_{ic} - \delta)}\Bigr)
        + \frac{1}{C}\sum_{c} \log\Bigl(1 + \sum_{i: y_i \ne c} e^{\alpha(S_{ic} + \delta)}\Bigr).$$

    Args:
        embeddings: One vector per anchor.
        labels: Class of each anchor, in [0, classes).
        proxies: One learnable vector per class; `lossmith.loss` makes and owns them.
        alpha: Steepness, > 0: the larger, the more the hardest example of each proxy counts alone.
        margin: Required cosine $\delta$ to the own proxy; to the others at most $-\delta$.
        normalize: Whether embeddings and proxies are L2-normalised first.

    Returns:
        One loss for the batch, in nats, >= 0; 0 for an empty batch. At margin 0, with all cosines 0 and two classes of
        one row each: 2 log 2.

    Raises:
        ObjectiveInputError: If `alpha` is not positive or `margin` is not finite.

    Source:
        Kim et al. 2020, "Proxy Anchor Loss for Deep Metric Learning", eq. 4, https://arxiv.org/abs/2003.13911.
        Deviation: none. Both sums are log-sum-exps with the 1 as a zero among the exponents, so that none overflows.

    Use when:
        Many classes with few examples of each in a batch, and quick convergence matters. Not with gradient
        accumulation: the loss is of the whole batch, and k small batches are not one large one.

    Relatives:
        At margin 0, where every class has a row in the batch, it is alpha times the mean of `multi_similarity` with the
        proxies as anchors, the embeddings as candidates, base 0 and both steepnesses alpha.

    Elsewhere:
        pytorch-metric-learning: same value and defaults. The authors' code adds plain exponentials, which overflow in
        float16. Neither TRL nor sentence-transformers has it.

    Example:
        >>> proxies = torch.eye(2)
        >>> proxy_anchor_loss(torch.tensor([[0.0, 3.0]]), torch.tensor([1]), proxies, alpha=1.0, margin=0.0)
        tensor(0.6598)
    """
    check_positive("alpha", alpha)
    check_finite("margin", margin)
    similarities = unit(proxies, normalize) @ unit(embeddings, normalize).T
    own = own_class(labels, proxies.shape[0]).T
    # A proxy without rows on a side has -1e30 there: loss and gradient 0.
    pulls = softplus(masked_logsumexp(-alpha * (similarities - margin), own))
    pushes = softplus(masked_logsumexp(alpha * (similarities + margin), ~own))
    return pulls.sum() / own.any(-1).sum().clamp(min=1) + pushes.mean()


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1703.07464",
    proxy_shape=("num_classes", "embedding_dim"),
    class_scores=proxy_nca_scores,
)
def proxy_nca_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    proxies: Float[Tensor, "classes dim"],
    *,
    scale: float = 1.0,
    normalize: bool = True,
) -> Float[Tensor, " anchors"]:
    r"""Bring each embedding nearer to its class's proxy than to all others, in squared Euclidean distance.

    $$\ell = -\log \frac{e^{-\lambda \lVert x - w_y \rVert^2}}{\sum_c e^{-\lambda \lVert x - w_c \rVert^2}}.$$

    Args:
        embeddings: One vector per anchor.
        labels: Class of each anchor, in [0, classes).
        proxies: One learnable vector per class; `lossmith.loss` makes and owns them.
        scale: Inverse temperature $\lambda$, > 0. At unit length squared distances reach 4, so 1 is a soft setting.
        normalize: Whether embeddings and proxies are L2-normalised first.

    Returns:
        One loss per anchor, in nats, >= 0. Equal to log classes where all proxies coincide.

    Raises:
        ObjectiveInputError: If `scale` is not positive.

    Source:
        Movshovitz-Attias et al. 2017, "No Fuss Distance Metric Learning using Proxies", section 3,
        https://arxiv.org/abs/1703.07464. Deviation: the sum includes the own proxy, a proper softmax >= 0; the paper's
        runs over the other proxies only and is unbounded below.

    Use when:
        A baseline with proxies and one hyper-parameter, or embeddings whose length means something (`normalize=False`).

    Relatives:
        With normalisation it equals `normalized_softmax` at temperature 1/(2 scale), since $\lVert x-w\rVert^2 =
        2 - 2x^\top w$. `nca` has the batch's rows in the place of proxies.

    Elsewhere:
        pytorch-metric-learning: same value; `scale` is called `softmax_scale` there, default 1, and an anchor whose
        probability underflows to 0 is dropped from the mean. Neither TRL nor sentence-transformers has it.

    Example:
        >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> proxy_nca_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), proxies)
        tensor([0.1269])
    """
    check_positive("scale", scale)
    return class_losses(proxy_nca_scores(embeddings, proxies, scale=scale, normalize=normalize), labels)


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1811.12649",
    proxy_shape=("num_classes", "embedding_dim"),
    class_scores=normalized_softmax_scores,
)
def normalized_softmax_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    proxies: Float[Tensor, "classes dim"],
    *,
    temperature: float = 0.05,
    normalize: bool = True,
) -> Float[Tensor, " anchors"]:
    r"""Classify by cosine to one learnable vector per class: a softmax head without lengths and bias.

    $$\ell = -\log \frac{e^{x^\top w_y / T}}{\sum_c e^{x^\top w_c / T}}.$$

    Args:
        embeddings: One vector per anchor.
        labels: Class of each anchor, in [0, classes).
        proxies: One learnable vector per class; `lossmith.loss` makes and owns them.
        temperature: Divides the cosines, > 0.
        normalize: Whether embeddings and proxies are L2-normalised first.

    Returns:
        One loss per anchor, in nats, >= 0. Equal to log classes where all proxies coincide.

    Raises:
        ObjectiveInputError: If `temperature` is not positive.

    Source:
        Zhai and Wu 2019, "Classification is a Strong Baseline for Deep Metric Learning", section 3,
        https://arxiv.org/abs/1811.12649. Deviation: without the paper's layer normalisation and class-balanced
        sampling, which belong to the model and the data.

    Use when:
        The first loss to try with proxies: no margin, one temperature, any batch.

    Relatives:
        `cosface` and `arcface` equal it where their margin is 0 and scale is 1/temperature; `proxy_nca` where scale is
        1/(2 temperature). Without normalisation, at temperature 1, it is `cross_entropy` of a linear head without bias.

    Elsewhere:
        pytorch-metric-learning: same value and default. Neither TRL nor sentence-transformers has it.

    Example:
        >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> normalized_softmax_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), proxies, temperature=1.0)
        tensor([0.3133])
    """
    check_positive("temperature", temperature)
    scores = normalized_softmax_scores(embeddings, proxies, temperature=temperature, normalize=normalize)
    return class_losses(scores, labels)
