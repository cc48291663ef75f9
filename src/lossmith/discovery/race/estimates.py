r"""How good a program is, given all that was measured: normal-normal shrinkage of paired differences.

Program $i$ has the mean difference $\bar d_i$ over $n_i$ blocks, $\bar d_i \sim N(\theta_i, \sigma^2 / n_i)$ with
$\theta_i \sim N(\mu, \tau^2)$. The noise $\sigma^2$ is pooled from control against twin and from the spread of each
program's own differences. $\mu$ has a flat prior and $\tau$ a half-Cauchy one with the scale of the noise (Gelman
2006), summed over a grid: an estimate of $\tau$ that may be 0 would make all programs equal and lose their order. A
lucky program with few blocks is drawn to the crowd, which is what keeps the winner's curse small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lossmith.discovery.race.blocks import RungData

_SMALLEST_CROWD = 3  # fewer programs say nothing about where the crowd is: it is put at the control
_SPREADS = np.tan(np.linspace(0.0, np.pi / 2, 65)[:-1] + np.pi / 256)  # equal shares of a half-Cauchy


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Posterior of one program's true difference to the control."""

    key: str
    blocks: int
    raw: float
    """Mean of the paired differences, without shrinkage."""
    mean: float
    sd: float

    def lower(self, caution: float) -> float:
        """So many standard deviations below the mean."""
        return self.mean - caution * self.sd


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What the programs of a rung have in common."""

    noise_variance: float
    """Variance of one paired difference around its program's true one."""
    degrees: int
    """Degrees of freedom behind it."""
    mean: float
    """Posterior mean of the mean of the true differences."""
    sd: float
    """Posterior mean of the standard deviation of the true differences."""


def estimate(data: RungData, programs: Sequence[str]) -> tuple[Crowd, dict[str, Estimate]]:
    """Crowd and posteriors of the programs that were measured and did not fail; the others are left out.

    Example:
        >>> data = RungData(control={0: 0.0, 1: 0.0}, twin={0: 0.1, 1: -0.1},
        ...                 fitness={"a": {0: 1.1, 1: 0.9}, "b": {0: 0.1, 1: -0.1}, "c": {0: -0.9, 1: -1.1}})
        >>> crowd, found = estimate(data, ["a", "b", "c"])
        >>> round(crowd.noise_variance, 3), round(found["a"].raw, 3), found["a"].mean < found["a"].raw
        (0.016, 1.0, True)
    """
    samples = {
        key: np.asarray(differences)
        for key in programs
        if key not in data.failed and (differences := data.differences(key))
    }
    noise, degrees = _noise_variance(data.twin_differences(), list(samples.values()))
    raw = np.array([values.mean() for values in samples.values()])
    counts = np.array([values.size for values in samples.values()])
    if not samples or noise == 0:  # nothing varies: every difference is exact
        crowd = Crowd(noise_variance=noise, degrees=degrees, mean=0.0, sd=0.0)
        means, sds = raw, np.zeros_like(raw)
    else:
        crowd, means, sds = _posteriors(raw, noise / counts, noise, degrees)
    found = zip(samples, raw, means, sds, counts, strict=True)
    return crowd, {
        key: Estimate(key=key, blocks=int(count), raw=float(one), mean=float(mean), sd=float(sd))
        for key, one, mean, sd, count in found
    }


def _noise_variance(twins: Sequence[float], samples: Sequence[np.ndarray]) -> tuple[float, int]:
    """Pooled variance of a difference around its mean; that of the twins is known to be 0."""
    squares = float(np.square(twins).sum()) if twins else 0.0
    degrees = len(twins)
    for values in samples:
        squares += float(np.square(values - values.mean()).sum())
        degrees += values.size - 1
    return (squares / degrees if degrees else 0.0), degrees


def _posteriors(
    raw: np.ndarray, errors: np.ndarray, noise: float, degrees: int
) -> tuple[Crowd, np.ndarray, np.ndarray]:
    """Crowd, means and standard deviations, summed over the grid of spreads; axes: spread, program."""
    variance = noise * np.square(_SPREADS)[:, None]
    weights = 1 / (errors + variance)
    if raw.size < _SMALLEST_CROWD:
        middle, middle_variance = np.zeros((_SPREADS.size, 1)), np.zeros((_SPREADS.size, 1))
        flat = 0.0
    else:
        total = weights.sum(axis=1, keepdims=True)
        middle, middle_variance = (weights * raw).sum(axis=1, keepdims=True) / total, 1 / total
        flat = 0.5 * np.log(middle_variance[:, 0])  # what the flat prior of the mean leaves behind
    logs = 0.5 * (np.log(weights) - weights * np.square(raw - middle)).sum(axis=1) + flat
    share = np.exp(logs - logs.max())[:, None]
    share = share / share.sum()
    pull = weights * errors  # towards the crowd
    means = pull * middle + (1 - pull) * raw
    variances = (1 - pull) * errors + np.square(pull) * middle_variance
    mean = (share * means).sum(axis=0)
    sd = np.sqrt((share * (variances + np.square(means - mean))).sum(axis=0))
    spread = float((share[:, 0] * _SPREADS).sum()) * math.sqrt(noise)
    crowd = Crowd(noise_variance=noise, degrees=degrees, mean=float((share * middle).sum()), sd=spread)
    return crowd, mean, sd
