"""The atlas: every published loss of the library over grids of its hyper-parameters, as fingerprints."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lossmith.discovery.identity.fingerprint import Fingerprint, of_gradients
from lossmith.discovery.identity.probes import Probes, probes
from lossmith.discovery.program import INPUTS
from lossmith.errors import ObjectiveInputError
from lossmith.objectives import ObjectiveRecord, list_losses

TIE = 1e-7
"""Distances this close are one; of losses that coincide (`lrml` in both forms) the simplest setting names them."""
NEARLY = 1.05
_BETAS = (0.01, 0.02, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0, 2.5, 5.0)
_SMOOTHING = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3)
GRIDS: dict[str, Sequence[Any]] = {
    "beta": _BETAS,
    "label_smoothing": _SMOOTHING,
    "form": ("released", "discovered"),
    "tau": (0.025, 0.05, 0.1, 0.2, 0.5, 1.0),
    "coefficient": (1e-4, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 50.0),
    "nll_coefficient": (0.0, 0.1, 0.5, 1.0),
    "gamma": (0.0, 0.3, 0.5, 1.0, 1.4, 1.5, 2.0, 3.0, 5.0),
    "average": (False, True),
    "detach_kl": (True, False),
    "truncated": (False, True),
    "alpha": (0.5, 1.0, 2.0),
    "epsilon": (0.5, 1.0, 2.0),
    "q": (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    "normalizer": (1.0, 3.0),
    "min_weight": (0.0, 0.1),
    "temperature": (0.05, 0.07, 0.1, 0.2, 0.5, 1.0),
    "scale": (0.5, 1.0, 4.0, 16.0),
    "margin": (0.0, 0.05, 0.1, 0.2, 0.5, 1.0),
    "pos_margin": (0.0, 0.1),
    "neg_margin": (0.5, 1.0),
}
"""Hyper-parameter -> values that papers and frameworks use; the loss's own default is always among them."""
_FEW_BETAS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
OWN_GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "simpo": {"beta": (0.1, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0), "gamma": (0.0, 0.3, 0.5, 1.0, 1.4, 1.6, 3.0)},
    **{name: {"beta": _FEW_BETAS, "label_smoothing": (0.0, 0.1)} for name in ("aot", "aot_unpaired")},
    **{name: {"beta": _FEW_BETAS} for name in ("aqfl", "aql", "dbaql", "kto_pair")},
    **{name: {"beta": _FEW_BETAS, "label_smoothing": (0.001, 0.01, 0.1)} for name in ("exo_pair", "robust_dpo")},
    **{name: {"form": ("released",)} for name in ("padll", "cell")},
    "dpop": {"coefficient": (5.0, 50.0)},
    "lrml": {"tau": (0.05, 1.0)},
    "multi_similarity": {"beta": (10.0, 40.0, 50.0), "base": (0.5, 1.0)},
    "circle": {"gamma": (32.0, 80.0, 256.0), "margin": (0.25, 0.4)},
    "tailr": {"gamma": (1e-7, 1e-5, 1e-3, 0.1)},
    "z_loss": {"coefficient": ()},
}
"""Loss -> grids that hold for it alone: what is coupled over the batch takes longer, and some settings say the same."""
FIRST = {"preference": "dpo", "token": "cross_entropy", "metric": "supcon"}
"""Family -> the loss that names a tie, and that a run has for its control."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The closest known loss."""

    name: str
    """Name in the registry."""
    distance: float
    """Distance of the fingerprints, in [0, 2]."""
    loss: str
    """Composition string with the hyper-parameters of that place, as `lossmith.loss` takes it."""
    scale: float
    """How many times larger the gradients of the candidate are."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Fingerprints of the published losses of one family."""

    family: str
    names: tuple[str, ...]
    losses: tuple[str, ...]
    ranks: Any
    """Number of settings away from the default; the smaller one names a tie."""
    vectors: Any
    scales: Any

    def nearest(self, print: Fingerprint, *, names: Sequence[str] | None = None) -> Nearest | None:
        """The closest loss, of all or of those named; of nearly as close ones (5% farther) the simplest."""
        # |a - b|^2 = 2 - 2 a.b loses half of the digits where the two are close: find by it, measure by the difference.
        closeness = self.vectors @ print.vector
        if names is not None:
            allowed = np.array([name in names for name in self.names])
            if not allowed.any():
                return None
            closeness = np.where(allowed, closeness, -2.0)
        squared = np.maximum(2 - 2 * closeness, 0.0)
        candidates = np.flatnonzero(squared <= NEARLY**2 * squared.min() + 1e-12)
        apart = np.linalg.norm(self.vectors[candidates] - print.vector, axis=1)
        close = candidates[apart <= NEARLY * apart.min() + TIE]
        best = int(close[np.argmin(self.ranks[close])])
        distance = float(np.linalg.norm(self.vectors[best] - print.vector))
        scale = print.scale / float(self.scales[best])
        return Nearest(name=self.names[best], distance=distance, loss=self.losses[best], scale=scale)

    def ranked(self, print: Fingerprint, count: int = 3) -> list[Nearest]:
        """The closest losses of different names, best first."""
        apart = np.linalg.norm(self.vectors - print.vector, axis=1)
        best: dict[str, float] = {}
        for name, distance in zip(self.names, apart.tolist(), strict=True):
            best[name] = min(distance, best.get(name, distance))
        found = sorted(best.items(), key=lambda pair: pair[1])
        nearest = [self.nearest(print, names=[name]) for name, _ in found[:count]]
        return [entry for entry in nearest if entry is not None]


@lru_cache(maxsize=16)
def atlas(family: str, seed: int = 0) -> Atlas:
    """The atlas of a family at a set of probe points; made in about a second, then kept."""
    points = probes(family, seed)
    names: list[str] = []
    losses: list[str] = []
    ranks: list[float] = []
    prints: list[Fingerprint] = []
    for record in list_losses(family):
        if not set(record.reads) <= set(INPUTS[family]):
            # Losses that own proxies or read embeddings are no function of similarities alone.
            continue
        for settings in _settings(record):
            found = _known_fingerprint(record, settings, points)
            if found is not None:
                names.append(record.name)
                losses.append(_text(record, settings))
                ranks.append(_rank(record, settings, family))
                prints.append(found)
    return Atlas(
        family,
        tuple(names),
        tuple(losses),
        np.array(ranks),
        np.stack([found.vector for found in prints]),
        np.array([found.scale for found in prints]),
    )


def _settings(record: ObjectiveRecord) -> Iterator[dict[str, Any]]:
    """Every place of the grid, the defaults first."""
    taken = {name: value for name, value in record.hyperparameters.items() if name not in record.module_hyperparameters}
    axes: list[list[Any]] = []
    for name, default in taken.items():
        grid = OWN_GRIDS.get(record.name, {}).get(name, GRIDS.get(name, ()))
        axes.append(list(dict.fromkeys([default, *grid])))
    for values in itertools.product(*axes):
        yield dict(zip(taken, values, strict=True))


def _known_fingerprint(record: ObjectiveRecord, settings: dict[str, Any], points: Probes) -> Fingerprint | None:
    try:
        flows = _known_gradients(record, settings, points)
    except ObjectiveInputError:
        # A contradictory place of the grid: `tau` in the discovered form, smoothing of 0 in `exo_pair`.
        return None
    return of_gradients(points.family, points.seed, points.chained(flows))


def _known_gradients(record: ObjectiveRecord, settings: dict[str, Any], points: Probes) -> dict[str, Any]:
    batches = len(next(iter(points.inputs.values())))
    wanted = [name for name in record.reads if name in points.trained]
    flat = points.family != "metric" and not record.batch_coupled
    parts = [_joined(points)] if flat else [points.tensors(batch) for batch in range(batches)]
    collected: dict[str, list[Any]] = {name: [] for name in wanted}
    for given in parts:
        leaves = {name: given[name].requires_grad_() if name in wanted else given[name] for name in record.reads}
        losses = record.function(**leaves, **settings)
        slopes = torch.autograd.grad(losses.sum(), [leaves[name] for name in wanted], allow_unused=True)
        for name, slope in zip(wanted, slopes, strict=True):
            collected[name].append((torch.zeros_like(leaves[name]) if slope is None else slope).numpy())
    shape = points.inputs[points.trained[0]].shape
    return {name: np.concatenate([part.ravel() for part in parts]).reshape(shape) for name, parts in collected.items()}


def _joined(points: Probes) -> dict[str, torch.Tensor]:
    """All batches as one, for losses of single items."""
    shift = torch.zeros((), dtype=torch.float64)
    return {
        name: shift if name == "reward_shift" else torch.tensor(values.reshape(-1))
        for name, values in points.inputs.items()
    }


def _text(record: ObjectiveRecord, settings: dict[str, Any]) -> str:
    changed = {name: value for name, value in settings.items() if value != record.hyperparameters[name]}
    inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return f"{record.name}({inside})" if inside else record.name


def _rank(record: ObjectiveRecord, settings: dict[str, Any], family: str) -> float:
    # `beta` says how strong, not which: it does not make a setting less simple.
    changed = [name for name, value in settings.items() if name != "beta" and value != record.hyperparameters[name]]
    return len(changed) + (0.0 if record.name == FIRST[family] else 0.5)
