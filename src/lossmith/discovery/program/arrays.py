"""Numpy values and vector-Jacobian products of the operators, for fingerprints: thousands of programs a second.

Arrays are [probe batches, items, candidates]; whatever has no such axis has length 1 there, constants are floats. A
`*_vjp(g, out, *args)` returns the gradient of the first argument, before it is summed to the argument's shape.
"""

from typing import Any

import numpy as np
import torch

Array = Any
"""A float64 or bool array, or a plain number: ufuncs take both."""


def total(x: Array, axis: int) -> Array:
    """Sum over an axis that stays."""
    return np.add.reduce(x, axis=axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    """`1 / (1 + e^-x)`; e^-x may overflow, which gives the right 0."""
    return 1.0 / (1.0 + np.exp(-x))


def softplus(x: Array) -> Array:
    """`log(1 + e^x)` at every x."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def erf(x: Array) -> Array:
    """By torch: numpy has none."""
    return torch.erf(torch.tensor(x, dtype=torch.float64)).numpy()


def _axis(mask: Array) -> int:
    return 2 if mask.shape[2] > 1 else 1


def mean_batch(x: Array) -> Array:
    """Mean over the items."""
    return total(x, 1) / x.shape[1]


def mean_batch_vjp(g: Array, out: Array, x: Array) -> Array:
    """The same share for every item."""
    return np.broadcast_to(g / x.shape[1], x.shape)


def var_batch(x: Array) -> Array:
    """Variance over the items, divisor n - 1, 0 for one item."""
    apart = x - total(x, 1) / x.shape[1]
    return total(apart * apart, 1) / max(x.shape[1] - 1, 1)


def var_batch_vjp(g: Array, out: Array, x: Array) -> Array:
    """2 (x - mean) / (n - 1)."""
    return g * (2.0 / max(x.shape[1] - 1, 1)) * (x - total(x, 1) / x.shape[1])


def std_batch(x: Array) -> Array:
    """Root of the variance."""
    return np.sqrt(var_batch(x))


def std_batch_vjp(g: Array, out: Array, x: Array) -> Array:
    """(x - mean) / ((n - 1) std), 0 where nothing varies."""
    scale = np.where(out > 0, g / np.where(out > 0, out, 1.0), 0.0)
    return scale * (1.0 / max(x.shape[1] - 1, 1)) * (x - total(x, 1) / x.shape[1])


def mean_masked(x: Array, mask: Array) -> Array:
    """Mean where the mask is True, over candidates where there are any, else over items."""
    axis = _axis(mask)
    return total(np.where(mask, x, 0.0), axis) / np.maximum(total(mask, axis), 1)


def mean_masked_vjp(g: Array, out: Array, x: Array, mask: Array) -> Array:
    """The same share for everything that the mask keeps."""
    return np.where(mask, g / np.maximum(total(mask, _axis(mask)), 1), 0.0)


def clamp_vjp(g: Array, out: Array, x: Array, low: float, high: float) -> Array:
    """The gradient passes at the bounds; beyond them even an infinite one does not, as in torch."""
    return np.where((x >= low) & (x <= high), g, 0.0)


def pow_vjp(g: Array, out: Array, x: Array, exponent: float) -> Array:
    """`c x^(c-1)`, 0 for c = 0."""
    return g * (exponent * np.power(x, exponent - 1.0)) if exponent != 0 else np.zeros(np.broadcast(g, x).shape)


def power(x: Array, exponent: float) -> Array:
    """`x ** exponent` as floats."""
    return np.power(x, float(exponent))
