"""Pieces that metric objectives share."""

import torch
import torch.nn.functional as F

from lossmith._numerics import at_least_float32, masked_logsumexp
from lossmith._typing import Bool, Float, Int, Tensor


def softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(1 + exp(x))` to the last digit at both ends; torch's `softplus` returns x itself above 20.

    With x a log-sum-exp, the 1 stands among the exponentials as a 0 and nothing overflows.

    Example:
        >>> softplus(torch.tensor([-1e30, 0.0, 1e30])).tolist()
        [0.0, 0.6931471824645996, 1.0000000150474662e+30]
    """
    return torch.logaddexp(x, torch.zeros_like(x))


def unit(vectors: Float[Tensor, "*batch dim"], normalize: bool) -> Float[Tensor, "*batch dim"]:
    """The vectors in at least float32, of length 1 where `normalize`."""
    vectors = at_least_float32(vectors)
    return F.normalize(vectors, dim=-1) if normalize else vectors


def own_class(labels: Int[Tensor, " anchors"], classes: int) -> Bool[Tensor, "anchors classes"]:
    """True at each anchor's label."""
    return F.one_hot(labels.long(), classes).bool()


def class_losses(
    scores: Float[Tensor, "anchors classes"], labels: Int[Tensor, " anchors"]
) -> Float[Tensor, " anchors"]:
    """Cross-entropy of each row, to the last digit also where the own class has nearly all the probability."""
    # -log p = log(1 + e^{others - own}); log-softmax rounds p near 1 to 1 and loses loss and gradient.
    others = masked_logsumexp(scores, ~own_class(labels, scores.shape[1]))
    return softplus(others - scores.gather(1, labels.long()[:, None]).squeeze(1))
