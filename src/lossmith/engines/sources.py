"""Where a loss on logits gets its statistics from: one interface over logits that exist and logits that do not."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from lossmith._debug import check_finite_rows, check_possible_labels, debugging
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Int, Tensor
from lossmith.engines.chunked import recomputed_sums
from lossmith.engines.gather import gather_rows
from lossmith.engines.linear_logits import LinearLogits
from lossmith.engines.row_sums import RowSums, SumStatistics, sums_read
from lossmith.engines.statistics import DenseTokenStatistics, region_statistics
from lossmith.engines.tiles import ChunkedPass, ColumnRequest
from lossmith.errors import ObjectiveInputError

IGNORED = -100

Statistics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one loss reads of logits."""

    labels: Tensor
    """-100 where a row does not count."""
    names: tuple[str, ...]
    """Statistics, of the token family or, with a `region`, of the region family."""
    region: str | None = None
    """What is one region, "batch" or "sequence"; None for a token loss."""
    gather: bool = False
    """Whether the region is that of all ranks."""

    @property
    def token_names(self) -> tuple[str, ...]:
        """Statistics of the token family among them."""
        return self.names if self.region is None else ("token_logps",)

    @property
    def counts(self) -> list[int]:
        """Rows that count in each region."""
        valid = self.labels != IGNORED
        return [int(valid.sum())] if self.region == "batch" else valid.flatten(1).sum(1).tolist()


def counted_places(labels: Tensor) -> Int[Tensor, " rows"] | None:
    """Rows that count, as places in the flattened labels; None where all do."""
    flat = labels.flatten()
    places = (flat != IGNORED).nonzero().squeeze(1)
    return None if len(places) == len(flat) else places


class StatisticsSource(ABC):
    """Statistics of the rows that count, by the names that objectives read."""

    shape: torch.Size
    """Shape of the logits, [..., vocab]."""
    device: torch.device
    requires_grad: bool

    @abstractmethod
    def tokens(self, labels: Tensor, names: tuple[str, ...]) -> Statistics:
        """The named token statistics, one entry per label that counts."""

    @abstractmethod
    def regions(self, demand: Demand) -> list[Statistics]:
        """The named region statistics, with `class_ids`, of each region; an empty dict for one without rows."""

    @abstractmethod
    def zero(self) -> Float[Tensor, ""]:
        """A 0 in the graph of whatever the logits are made of."""


class DenseSource(StatisticsSource):
    """Logits that exist.

    Args:
        logits: Unnormalised scores, [..., vocab].
    """

    def __init__(self, logits: Float[Tensor, "*batch vocab"]):
        self._logits = logits
        self.shape, self.device, self.requires_grad = logits.shape, logits.device, logits.requires_grad

    def _counted(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Taken out before anything is computed: an ignored NaN must not reach a gradient as 0 * NaN. By index the
        # gradient is an addition of rows, several times faster than that of a mask.
        places = counted_places(labels)
        rows = _taken(self._logits.reshape(-1, self.shape[-1]), places)
        classes = _taken(labels.flatten(), places).long()
        check_finite_rows("logits", rows, labels != IGNORED, masked=True)
        check_possible_labels(lambda: rows.gather(1, classes[:, None]).squeeze(1), classes, labels != IGNORED)
        return rows, classes

    def tokens(self, labels: Tensor, names: tuple[str, ...]) -> Statistics:
        """See `StatisticsSource`."""
        return DenseTokenStatistics(*self._counted(labels)).get(names)

    def regions(self, demand: Demand) -> list[Statistics]:
        """See `StatisticsSource`."""
        rows, classes = self._counted(demand.labels)
        return region_statistics(rows, classes, demand.counts, demand.names, gather=demand.gather)

    def zero(self) -> Float[Tensor, ""]:
        """See `StatisticsSource`."""
        return at_least_float32(self._logits.reshape(-1)[:0]).sum()


class LinearSource(StatisticsSource):
    """Logits that are not built, by the plan that makes scores again in the backward pass.

    All demands are served by one pass over the rows that count in any of them.

    Args:
        linear: The logits.
        demands: What the losses on these logits read.
    """

    def __init__(self, linear: LinearLogits, demands: Sequence[Demand]):
        if linear.group is not None and any(demand.gather for demand in demands):
            raise ObjectiveInputError(
                "`gather=True` would count the rows of ranks that share the vocabulary (`group`) once per rank: leave "
                "one of them out."
            )
        self._linear = linear
        self.shape, self.device, self.requires_grad = linear.shape, linear.device, linear.requires_grad
        self._labels = joint_labels(demands)
        self._places = counted_places(self._labels)
        names = {name for demand in demands for name in demand.token_names}
        self.work = chunked_pass(linear, self._labels, self._places, names)
        self._regions: dict[tuple[int, str | None, bool], list[LinearRegion]] = {}
        self._announced: dict[tuple[int, str | None, bool], Tensor] = {}
        for key in dict.fromkeys(_key(demand) for demand in demands if demand.region is not None):
            sharing = [demand for demand in demands if _key(demand) == key]
            wanted = {name for demand in sharing for name in demand.names}
            self._regions[key] = self._split(sharing[0], wanted)
            self._announced[key] = sharing[0].labels

    @property
    def tables(self) -> list[ColumnRequest]:
        """Regions of which a table of rows x present classes is made."""
        found = [region.request for group in self._regions.values() for region in group]
        return [request for request in found if request is not None and not request.mass]

    def _split(self, demand: Demand, names: set[str]) -> list["LinearRegion"]:
        rows = self._rows(demand.labels)
        rows = torch.arange(self.work.num_rows, device=self.device) if rows is None else rows
        return [
            LinearRegion(part, self.work.classes[part], names, gather=demand.gather)
            for part in rows.split(demand.counts)
        ]

    def _rows(self, labels: Tensor) -> Tensor | None:
        """Rows of the pass that count in `labels`; None where all do."""
        if labels is self._labels:
            return None
        here = _taken(labels.flatten(), self._places) != IGNORED
        return None if bool(here.all()) else here.nonzero().squeeze(1)

    @cached_property
    def _pass(self) -> tuple[RowSums, dict[int, Tensor]]:
        asking = [region for group in self._regions.values() for region in group if region.request is not None]
        requests = tuple(region.request for region in asking if region.request is not None)
        sums, values = recomputed_sums(replace(self.work, requests=requests))
        if debugging():
            self._check_values(sums)
        return sums, {id(region): value for region, value in zip(asking, values, strict=True)}

    def check_values(self) -> None:
        """Under `debug()`, raise `ObjectiveInputError` for values that cannot be; a pass of its own, for no plan."""
        _ = self._pass

    def _check_values(self, sums: RowSums) -> None:
        linear, valid = self._linear, self._labels != IGNORED
        check_finite_rows("hidden", _taken(self.work.linear.hidden, self._places), valid)
        every = torch.ones(len(linear.weight), dtype=torch.bool, device=self.device)
        check_finite_rows("weight", linear.weight, every)
        if linear.bias is not None:
            check_finite_rows("bias", linear.bias, every, masked=True)
        check_possible_labels(lambda: sums.label_scores, self.work.classes, valid)

    def tokens(self, labels: Tensor, names: tuple[str, ...]) -> Statistics:
        """See `StatisticsSource`."""
        sums, rows = self._pass[0], self._rows(labels)
        return SumStatistics(sums if rows is None else sums.rows(rows), self._linear.vocab).get(names)

    def regions(self, demand: Demand) -> list[Statistics]:
        """See `StatisticsSource`."""
        sums, values = self._pass
        return [
            region.statistics(demand.names, sums, values.get(id(region)), self._linear.vocab)
            for region in self._asked(demand)
        ]

    def _asked(self, demand: Demand) -> list["LinearRegion"]:
        """The regions that this demand announced, itself or by an equal copy of its labels."""
        if _key(demand) in self._regions:
            return self._regions[_key(demand)]
        for key, regions in self._regions.items():
            serves = key[1:] == _key(demand)[1:] and all(region.serves(demand.names) for region in regions)
            if serves and torch.equal(self._announced[key], demand.labels):
                return regions
        raise AssertionError("a region that no demand announced")

    def zero(self) -> Float[Tensor, ""]:
        """See `StatisticsSource`."""
        return self._linear.zero()


class LinearRegion:
    """One region of unbuilt logits: the classes present in it, and statistics from what a pass found of them.

    Args:
        rows: Its rows among those of the pass, ascending.
        classes: Their labels.
        names: Statistics that are wanted of it.
        gather: Whether it holds the rows of all ranks.
    """

    def __init__(self, rows: Int[Tensor, " rows"], classes: Int[Tensor, " rows"], names: set[str], *, gather: bool):
        self._rows = rows
        self._names = names
        self._gather = gather_rows if gather else _own_rows
        self._present, self._class_ids = torch.unique(self._gather(classes), return_inverse=True)
        self.request: ColumnRequest | None = None
        if len(self._class_ids) and names & {"class_probs", "class_mass"}:
            mass = "class_probs" not in names
            self.request = ColumnRequest(rows=rows, columns=self._present, mass=mass)

    def serves(self, names: Iterable[str]) -> bool:
        """Whether all of these were wanted of it."""
        return self._names.issuperset(names)

    def statistics(self, names: tuple[str, ...], sums: RowSums, value: Tensor | None, classes: int) -> Statistics:
        """The named region statistics, and `class_ids`; none where the region has no row."""
        if len(self._class_ids) == 0:
            return {}
        known = SumStatistics(sums.rows(self._rows), classes)
        found: Statistics = {"class_ids": self._class_ids}
        if "token_logps" in names:
            found["token_logps"] = self._gather(known.token_logps)
        if value is not None and self.request is not None:
            mass = value
            if not self.request.mass:
                probs = (value - known.log_normalizer_above_maximum[:, None]).exp()
                found["class_probs"] = self._gather(probs)
                mass = probs.sum(0)
            found["class_mass"] = self._gather(mass[None]).sum(0)
        return {name: found[name] for name in dict.fromkeys((*names, "class_ids"))}


class ChunkSource(StatisticsSource):
    """Token statistics of a chunk of rows, known already, for the plan that forms gradients in the forward pass.

    Args:
        statistics: By name, one entry per row of the chunk.
        classes: Size of the vocabulary.
    """

    def __init__(self, statistics: Statistics, classes: int):
        self._statistics = statistics
        first = next(iter(statistics.values()))
        self.shape, self.device, self.requires_grad = torch.Size((len(first), classes)), first.device, True

    def tokens(self, labels: Tensor, names: tuple[str, ...]) -> Statistics:
        """See `StatisticsSource`."""
        places = counted_places(labels)
        return {name: _taken(self._statistics[name], places) for name in names}

    def regions(self, demand: Demand) -> list[Statistics]:
        """See `StatisticsSource`."""
        raise AssertionError("a region never comes in chunks of rows")

    def zero(self) -> Float[Tensor, ""]:
        """See `StatisticsSource`."""
        return torch.stack([value[:0].sum() for value in self._statistics.values()]).sum()


def joint_labels(demands: Sequence[Demand]) -> Tensor:
    """Labels of the rows that count in any demand; the demands share labels and differ in what they ignore."""
    joint = demands[0].labels
    for demand in demands[1:]:
        if demand.labels is not joint:
            joint = torch.where(joint == IGNORED, demand.labels, joint)
    return joint


def chunked_pass(
    linear: LinearLogits, labels: Tensor, places: Int[Tensor, " rows"] | None, names: Iterable[str]
) -> ChunkedPass:
    """A pass over the rows at `places` for the named token statistics."""
    # A copy: the labels may be written over before the backward pass, and autograd does not watch integers.
    classes = labels.flatten().long().clone() if places is None else _taken(labels.flatten(), places).long()
    return ChunkedPass(linear=linear.flattened(), places=places, classes=classes, reads=sums_read(names))


def _key(demand: Demand) -> tuple[int, str | None, bool]:
    return id(demand.labels), demand.region, demand.gather


def _own_rows(rows: Tensor) -> Tensor:
    return rows


def _taken(rows: Tensor, places: Tensor | None) -> Tensor:
    return rows if places is None else rows.index_select(0, places)
