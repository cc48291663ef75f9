"""The atlas: every published loss of the library over grids of its hyper-parameters, as fingerprints."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from lossmith.discovery.identity.fingerprint import NEIGHBOUR, Fingerprint
from lossmith.discovery.identity.known import FIRST, Known
from lossmith.discovery.identity.probes import Probes, probes
from lossmith.discovery.identity.strength import closest_strength, strength_beyond
from lossmith.discovery.program import INPUTS
from lossmith.objectives import ObjectiveRecord, list_losses

TIE = 1e-7
"""Distances this close are one; of losses that coincide (`lrml` in both forms) the simplest setting names them."""
NEARLY = 1.05
REFINED = 3
"""Kinds of losses whose strength is fitted, the closest of the atlas."""
SIMILAR = 0.3
"""Distance above which a fitted strength would say nothing: such losses are named from the grid."""
WORTH_A_WAIT = 0.2
"""Distance from the grid within which a loss that is slow to compute is fitted: that of half a step of the grid."""
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
_DENSE = tuple(float(f"{10 ** (place / 24):.3g}") for place in range(-72, 49))
_DENSE_TEMPERATURES = (0.07, 0.5, *(float(f"{10 ** (place / 12):.3g}") for place in range(-24, 13)))
"""The controls of runs are found at any strength, so their grids are so fine that a fit starts close by."""
OWN_GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "dpo": {"beta": _DENSE},
    "supcon": {"temperature": _DENSE_TEMPERATURES},
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
    known: Known = field(repr=False, compare=False)
    """The loss itself, to be compared elsewhere too."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Fingerprints of the published losses of one family."""

    family: str
    known: tuple[Known, ...]
    vectors: Any
    scales: Any
    names: tuple[str, ...]
    losses: tuple[str, ...]
    ranks: Any
    """Number of settings away from the default; the smaller one names a tie."""

    def nearest(self, print: Fingerprint, *, names: Sequence[str] | None = None) -> Nearest | None:
        """The closest place of the grid, of all or of those named; of nearly as close ones (5% farther) the simplest.

        `closest` fits the strength too, and takes a few milliseconds for it.
        """
        allowed = None if names is None else np.array([name in names for name in self.names])
        return self._nearest(print, allowed)

    def _nearest(self, print: Fingerprint, allowed: Any = None) -> Nearest | None:
        # |a - b|^2 = 2 - 2 a.b loses half of the digits where the two are close: find by it, measure by the difference.
        closeness = self.vectors @ print.vector
        if allowed is not None:
            if not allowed.any():
                return None
            closeness = np.where(allowed, closeness, -2.0)
        squared = np.maximum(2 - 2 * closeness, 0.0)
        candidates = np.flatnonzero(squared <= NEARLY**2 * squared.min() + 1e-12)
        apart = np.linalg.norm(self.vectors[candidates] - print.vector, axis=1)
        close = candidates[apart <= NEARLY * apart.min() + TIE]
        return self._at(int(close[np.argmin(self.ranks[close])]), print)

    def _at(self, place: int, print: Fingerprint) -> Nearest:
        distance = float(np.linalg.norm(self.vectors[place] - print.vector))
        return _named(self.known[place], distance, print, float(self.scales[place]))

    def control(self, print: Fingerprint) -> Nearest:
        """The loss that a run has for its control, at the strength that comes closest and otherwise as it is."""
        allowed = np.array([name == FIRST[self.family] for name in self.names]) & (self.ranks == 0)
        found = self._nearest(print, allowed)
        assert found is not None, "the control of a family is in its atlas"
        return _fitted(found, print) if TIE < found.distance < 2 * NEIGHBOUR else found

    def closest(self, print: Fingerprint, control: Nearest | None = None) -> Nearest:
        """The closest loss, its strength fitted; of nearly as close ones the control, then the simplest.

        Args:
            print: Of the candidate.
            control: What `control` gave for it, if it was asked already.
        """
        control = control or self.control(print)
        first = self._nearest(print)
        assert first is not None, "an atlas is not empty"
        if control.distance <= TIE or first.distance <= TIE:
            return control if control.distance <= TIE else first
        best, found = first.distance, [control, first]
        for place in self._kinds(print, REFINED):
            found.append(_fitted(self._at(place, print), print, worth=best))
            best = min(best, found[-1].distance)
        return min(
            (near for near in found if near.distance <= NEARLY * best + TIE),
            key=lambda near: (near is not control, near.known.rank, near.distance),
        )

    def ranked(self, print: Fingerprint, count: int = 3) -> list[Nearest]:
        """The closest losses of different names, best first, each at the strength that comes closest."""
        best: dict[str, Nearest] = {}
        for place in self._kinds(print, 2 * count):
            fitted = _fitted(self._at(place, print), print)
            if fitted.name not in best or fitted.distance < best[fitted.name].distance:
                best[fitted.name] = fitted
        near = self.closest(print)
        best[near.name] = near
        # What names the candidate stands first, whatever else is as close.
        named = near.name if near.distance < NEIGHBOUR else None
        return sorted(best.values(), key=lambda each: (each.name != named, each.distance))[:count]

    def _kinds(self, print: Fingerprint, count: int) -> list[int]:
        """The closest places of the grid, no two of which differ in strength alone."""
        seen: dict[tuple[Any, ...], int] = {}
        for place in np.argsort(np.linalg.norm(self.vectors - print.vector, axis=1), kind="stable").tolist():
            seen.setdefault(self.known[place].kind, place)
            if len(seen) == count:
                break
        return list(seen.values())


def refitted(near: Nearest, print: Fingerprint, elsewhere: Callable[[Probes], Fingerprint | None]) -> Nearest | None:
    """The same loss at the strength that fits beyond the probes, where those do not tell strengths apart.

    Args:
        near: What the candidate does at the probes.
        print: Of the candidate.
        elsewhere: Its fingerprint at other points.
    """
    known = strength_beyond(near.known, print, elsewhere)
    found = None if known is None else known.fingerprint(probes(print.family, print.seed))
    return None if known is None or found is None else _named(known, print.distance(found), print, found.scale)


def _named(known: Known, distance: float, print: Fingerprint, scale: float) -> Nearest:
    return Nearest(name=known.record.name, distance=distance, loss=known.text, scale=print.scale / scale, known=known)


def _fitted(near: Nearest, print: Fingerprint, *, worth: float = 2.0) -> Nearest:
    """The same loss at a strength that fits better; as it is where none does by far."""
    if near.distance <= TIE or near.distance > (WORTH_A_WAIT if near.known.slow else 1.0):
        return near
    found = closest_strength(near.known, print, worth=min(worth, near.distance, SIMILAR))
    if found is None or (distance := print.distance(found[1])) > near.distance / NEARLY:
        return near
    return _named(found[0], distance, print, found[1].scale)


@lru_cache(maxsize=16)
def atlas(family: str, seed: int = 0) -> Atlas:
    """The atlas of a family at a set of probe points; made in about a second, then kept."""
    points = probes(family, seed)
    places: list[Known] = []
    prints: list[Fingerprint] = []
    for record in list_losses(family):
        if not set(record.reads) <= set(INPUTS[family]):
            # Losses that own proxies or read embeddings are no function of similarities alone.
            continue
        for settings in _settings(record):
            known = Known(record, settings)
            found = known.fingerprint(points)
            if found is not None:
                places.append(known)
                prints.append(found)
    return Atlas(
        family,
        tuple(places),
        np.stack([found.vector for found in prints]),
        np.array([found.scale for found in prints]),
        tuple(known.record.name for known in places),
        tuple(known.text for known in places),
        np.array([known.rank for known in places]),
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
