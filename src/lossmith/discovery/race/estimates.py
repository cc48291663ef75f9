r"""How good a program is, given all that was measured: normal-normal shrinkage of paired differences.

The difference of program $i$ to the control in block $b$ is $d_{ib} = \theta_i + c_b + e_{ib}$: what the program is
worth, what the whole block shares (a control that was lucky there puts everybody down), and the program's own noise.
The shared parts are estimated from the programs of a block and from the control's twin, whose worth is 0, as random
effects beside fixed worths (Henderson 1975), and taken off: programs that were measured in different blocks can be
compared then. What is left has the mean $a_i \sim N(\theta_i, v_i)$ with $\theta_i \sim N(\mu, \tau^2)$. $\mu$ has a
flat prior and $\tau$ a half-Cauchy one with the scale of the noise (Gelman 2006), summed over a grid: an estimate of
$\tau$ that may be 0 would make all programs equal and lose their order. A lucky program with few blocks is drawn to the
crowd, which is what keeps the winner's curse small.

**What fails says nothing about what works.** Among candidates many are useless, by far and erratically: their spread is
no prior and their noise no noise for those at the top. So in a large crowd noise and shared parts come from its better
half, and the prior from that half and its mirror image.

Two things are taken to be simpler than they are: the twin's noise is counted as that of a program, and what remains of
a block's part is counted as independent between programs. Both make estimates of a search somewhat too sure; the
confirmation uses neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lossmith.discovery.race.blocks import RungData

_SMALLEST_CROWD = 3  # fewer programs say nothing about where the crowd is: it is put at the control
_LARGE_CROWD = 8  # from here on its better half speaks for it
_FEWEST_DEGREES = 20  # fewer residuals do not tell the blocks' part from the programs' own
_SMALLEST_SHARE = 1e-3  # of the noise that is a program's own: programs that differ by their worth alone are a limit
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

    def upper(self, caution: float) -> float:
        """So many standard deviations above it."""
        return self.mean + caution * self.sd


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What the programs of a rung have in common."""

    noise_variance: float
    """Variance of one paired difference around its program's true one, pooled over all programs."""
    degrees: int
    """Degrees of freedom behind it."""
    own_variance: float
    """The part of it that is a program's own, among the better ones."""
    shared_variance: float
    """The part of it that all programs of a block share; 0 where too little was measured to tell."""
    mean: float
    """Posterior mean of the mean of the true differences."""
    sd: float
    """Posterior mean of the standard deviation of the true differences."""


@dataclass(frozen=True)
class _Table:
    """Differences of programs (rows) in blocks (columns), NaN where there is none, and the twins' differences."""

    values: np.ndarray
    twins: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return np.isfinite(self.values).sum(axis=1)

    @property
    def means(self) -> np.ndarray:
        return np.nanmean(self.values, axis=1)

    def rows(self, kept: np.ndarray) -> "_Table":
        return _Table(self.values[kept], self.twins)


def estimate(data: RungData, programs: Sequence[str]) -> tuple[Crowd, dict[str, Estimate]]:
    """Crowd and posteriors of the programs that were measured and did not fail; the others are left out.

    Example:
        >>> data = RungData(control={0: 0.0, 1: 0.0}, twin={0: 0.1, 1: -0.1},
        ...                 fitness={"a": {0: 1.1, 1: 0.9}, "b": {0: 0.1, 1: -0.1}, "c": {0: -0.9, 1: -1.1}})
        >>> crowd, found = estimate(data, ["a", "b", "c"])
        >>> round(crowd.noise_variance, 3), round(found["a"].raw, 3), found["a"].mean < found["a"].raw
        (0.016, 1.0, True)
    """
    measured = {
        key: {block: value - data.control[block] for block, value in data.fitness[key].items() if block in data.control}
        for key in programs
        if key not in data.failed and key in data.fitness
    }
    measured = {key: differences for key, differences in measured.items() if differences}
    table = _table_of(measured, data)
    raw, counts = table.means, table.counts
    noise, degrees = _noise_variance(table)
    own, shared, adjusted, errors = noise, 0.0, raw, noise / np.maximum(counts, 1)
    if not measured or noise == 0:  # nothing varies: every difference is exact
        middle, spread, means, sds = 0.0, 0.0, raw, np.zeros_like(raw)
    else:
        better = raw >= np.median(raw) if raw.size >= _LARGE_CROWD else np.ones(raw.size, dtype=bool)
        own, shared = _parts_of_noise(table.rows(better))
        # At the end of a bounded metric the better half does not vary at all.
        own = own or _SMALLEST_SHARE * noise
        effects, covariance = _shared_parts(table.rows(better), own, shared)
        inside = np.isfinite(table.values) / counts[:, None]
        adjusted, errors = raw - inside @ effects, own / counts + ((inside @ covariance) * inside).sum(axis=1)
        middle, spread, means, sds = _posteriors(adjusted, errors, own)
    crowd = Crowd(
        noise_variance=noise,
        degrees=degrees,
        own_variance=own,
        shared_variance=shared,
        mean=middle,
        sd=spread,
    )
    found = zip(measured, raw, means, sds, counts, strict=True)
    return crowd, {
        key: Estimate(key=key, blocks=int(count), raw=float(one), mean=float(mean), sd=float(sd))
        for key, one, mean, sd, count in found
    }


def _table_of(measured: Mapping[str, Mapping[int, float]], data: RungData) -> _Table:
    blocks = {block: place for place, block in enumerate(sorted(data.control))}
    values = np.full((len(measured), len(blocks)), np.nan)
    for row, differences in enumerate(measured.values()):
        for block, value in differences.items():
            values[row, blocks[block]] = value
    twins = np.full(len(blocks), np.nan)
    for block, place in blocks.items():
        if block in data.twin:
            twins[place] = data.twin[block] - data.control[block]
    return _Table(values, twins)


def _noise_variance(table: _Table) -> tuple[float, int]:
    """Pooled variance of a difference around its mean; that of the twins is known to be 0."""
    squares, degrees = float(np.nansum(np.square(table.twins))), int(np.isfinite(table.twins).sum())
    if table.values.size:
        squares += float(np.nansum(np.square(table.values - table.means[:, None])))
        degrees += int((table.counts - 1).sum())
    return (squares / degrees if degrees else 0.0), degrees


def _equations(table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of the blocks' parts, the programs' worths eliminated: matrix and right-hand side."""
    there = np.isfinite(table.values).astype(float)
    centred = np.nan_to_num(table.values - table.means[:, None])
    matrix = np.diag(there.sum(axis=0) + np.isfinite(table.twins)) - there.T @ (there / table.counts[:, None])
    return matrix, centred.sum(axis=0) + np.nan_to_num(table.twins)


def _parts_of_noise(table: _Table) -> tuple[float, float]:
    """Variance of a program's own noise and of the blocks' parts, by the residuals of rows and columns."""
    noise, _ = _noise_variance(table)
    matrix, right = _equations(table)
    rank = int(np.linalg.matrix_rank(matrix, hermitian=True))
    twins = np.isfinite(table.twins)
    degrees = int(table.counts.sum() + twins.sum()) - len(table.values) - rank
    if degrees < _FEWEST_DEGREES:
        return noise, 0.0
    effects = np.linalg.pinv(matrix, hermitian=True) @ right
    left = table.values - effects
    squares = np.nansum(np.square(left - np.nanmean(left, axis=1)[:, None]))
    squares += np.square((table.twins - effects)[twins]).sum()
    own = max(float(squares) / degrees, _SMALLEST_SHARE * noise)
    return own, max(noise - own, 0.0)


def _shared_parts(table: _Table, own: float, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """What each block shares, drawn to 0 as far as it is uncertain, and how uncertain it remains."""
    matrix, right = _equations(table)
    if shared == 0:
        return np.zeros(right.size), np.zeros(matrix.shape)
    covariance = np.linalg.inv(matrix / own + np.eye(right.size) / shared)
    return covariance @ right / own, covariance


def _posteriors(raw: np.ndarray, errors: np.ndarray, noise: float) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Crowd's mean and sd, programs' means and sds, summed over the grid of spreads; axes: spread, program."""
    variance = noise * np.square(_SPREADS)[:, None]
    seen, seen_errors = _mirrored(raw, errors)
    weights = 1 / (seen_errors + variance)
    if raw.size < _SMALLEST_CROWD:
        middle, middle_variance = np.zeros((_SPREADS.size, 1)), np.zeros((_SPREADS.size, 1))
        flat = 0.0
    else:
        total = weights.sum(axis=1, keepdims=True)
        middle, middle_variance = (weights * seen).sum(axis=1, keepdims=True) / total, 1 / total
        flat = 0.5 * np.log(middle_variance[:, 0])  # what the flat prior of the mean leaves behind
    logs = 0.5 * (np.log(weights) - weights * np.square(seen - middle)).sum(axis=1) + flat
    share = np.exp(logs - logs.max())[:, None]
    share = share / share.sum()
    pull = errors / (errors + variance)  # towards the crowd
    means = pull * middle + (1 - pull) * raw
    variances = (1 - pull) * errors + np.square(pull) * middle_variance
    mean = (share * means).sum(axis=0)
    sd = np.sqrt((share * (variances + np.square(means - mean))).sum(axis=0))
    spread = float((share[:, 0] * _SPREADS).sum()) * math.sqrt(noise)
    return float((share * middle).sum()), spread, mean, sd


def _mirrored(raw: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The better half of a large crowd and its mirror image below the median; a small one as it is."""
    if raw.size < _LARGE_CROWD:
        return raw, errors
    middle = float(np.median(raw))
    better = raw >= middle
    return np.concatenate([raw[better], 2 * middle - raw[better]]), np.tile(errors[better], 2)
