"""A loss called on `LinearLogits`: which plan it takes, and carrying it out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from lossmith._debug import debugging
from lossmith._typing import Tensor
from lossmith.engines import (
    ChunkedPass,
    ChunkSource,
    Demand,
    DenseSource,
    GradientInForward,
    LinearLogits,
    LinearSource,
    StatisticsSource,
    chunked_pass,
    counted_places,
    joint_labels,
)
from lossmith.nn.plan import Plan
from lossmith.objectives import ObjectiveRecord

Evaluate = Callable[[StatisticsSource, Callable[[Tensor], Tensor]], Tensor]
"""The loss of some rows: from a source of their statistics, and how to take their entries out of a tensor of the shape
of the labels."""


@dataclass(frozen=True, kw_only=True)
class LinearTerm:
    """One loss on the logits of a call."""

    name: str
    record: ObjectiveRecord
    demand: Demand


class Watch:
    """Token statistics that a call on `LinearLogits` makes on the way, without gradient: what is logged beside a loss.

    Set it as `linear.watch`, call a loss, and `take` what was seen. It costs what the statistics cost beyond those that
    the loss reads, and no pass of its own.

    Args:
        names: Token statistics, such as "token_logps" and "entropy".
        labels: The rows that are watched, in the shape of the loss's labels, -100 elsewhere, beside those that
            count in any term; None for the latter alone.
    """

    def __init__(self, names: tuple[str, ...], labels: Tensor | None = None):
        self.names = names
        self.labels = labels
        self._seen: list[dict[str, Tensor]] | None = []

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Keep the statistics of some more rows; once taken, a second backward pass adds none."""
        if self._seen is not None:
            self._seen.append({name: statistics[name].detach() for name in self.names})

    def take(self) -> dict[str, Tensor]:
        """By name, one entry per row that is watched or counts in any term, in their order; empty where none does."""
        seen, self._seen = self._seen or [], None
        return {name: torch.cat([chunk[name] for chunk in seen]) for name in self.names} if seen else {}


@dataclass(frozen=True, kw_only=True)
class LinearCall:
    """One call of a loss, or of the terms of a sum, on logits that are not built."""

    linear: LinearLogits
    terms: Sequence[LinearTerm]
    numbers: Sequence[object] = ()
    """Weights of the items and divisors, tensors or not."""
    reduction: str = "mean"

    @cached_property
    def _labels(self) -> Tensor:
        demands, watch = [term.demand for term in self.terms], self.linear.watch
        if watch is not None and watch.labels is not None:
            demands.append(Demand(labels=watch.labels, names=watch.names))
        return joint_labels(demands)

    @cached_property
    def _places(self) -> Tensor | None:
        return counted_places(self._labels)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        watched = () if self.linear.watch is None else self.linear.watch.names
        return tuple(dict.fromkeys((*(n for term in self.terms for n in term.demand.token_names), *watched)))

    @cached_property
    def _work(self) -> ChunkedPass:
        return chunked_pass(self.linear, self._labels, self._places, self._names)

    @cached_property
    def choice(self) -> tuple[str, str]:
        """Name of the plan and the reason for it."""
        if self.linear.engine == "dense":
            return "dense", "impl='dense' builds the logits."
        if not (torch.is_grad_enabled() and self.linear.requires_grad):
            return "forward only", "Neither hidden states nor the output matrix ask for a gradient."
        again = self._why_again()
        if again:
            return "recompute", again
        return (
            "gradient in forward",
            "Each row's loss is its own and the sum weighs it by a known number, so its gradient is formed while its "
            "scores are there.",
        )

    def _why_again(self) -> str:
        if self._work.num_rows == 0:
            return "No row counts."
        if self.linear.engine == "triton":
            return "The triton engine makes scores again in the backward pass."
        for term in self.terms:
            if term.demand.region is not None:
                return f"'{term.name}' couples the rows of a {term.demand.region}, so scores are made again."
            if term.record.batch_coupled:
                return f"'{term.name}' couples the rows of the batch, so scores are made again in the backward pass."
        if self.reduction == "none":
            return "Reduction 'none' leaves open what each row's loss will count, so scores are made again."
        if any(isinstance(number, Tensor) and number.requires_grad for number in self.numbers):
            return "Weights or `num_items` want a gradient too, so scores are made again in the backward pass."
        return ""

    @property
    def in_forward(self) -> bool:
        """Whether gradients are formed in the forward pass."""
        return self.choice[0] == "gradient in forward"

    def source(self) -> StatisticsSource:
        """Statistics for all terms, for every plan but that of gradients in the forward pass."""
        watch, demands = self.linear.watch, [term.demand for term in self.terms]
        if watch is not None:
            demands.append(Demand(labels=self._labels, names=watch.names))
        dense = self.linear.engine == "dense"
        source = DenseSource(self.linear.dense()) if dense else LinearSource(self.linear, demands)
        if watch is not None:
            watch.observe(source.tokens(self._labels, watch.names))
        return source

    def run_in_forward(self, evaluate: Evaluate) -> Tensor:
        """The loss, with its gradients formed chunk by chunk in the forward pass."""
        work, places, classes = self._work, self._places, self.linear.vocab
        watch = self.linear.watch
        if debugging():
            with torch.no_grad():
                LinearSource(self.linear, [term.demand for term in self.terms]).check_values()

        def chunk_loss(statistics: dict[str, Tensor], chunk: slice) -> Tensor:
            def take(tensor: Tensor) -> Tensor:
                flat = tensor.flatten()
                return flat[chunk] if places is None else flat.index_select(0, places[chunk])

            if watch is not None:
                watch.observe(statistics)
            return evaluate(ChunkSource(statistics, classes), take)

        linear = work.linear
        return GradientInForward.apply(linear.hidden, linear.weight, linear.bias, work, self._names, chunk_loss)

    def _tile_shape(self) -> tuple[int, int]:
        """Rows and columns of the scores that are held at a time."""
        if self.linear.engine == "dense":
            return max(self.linear.hidden.shape[:-1].numel(), 1), self.linear.vocab
        if self.linear.engine == "triton":
            # Imported here, so that nobody needs Triton who does not ask for it.
            from lossmith.engines import triton

            triton.check_available(self.linear.device)
            return triton.tile_shape(self._work)
        rows, columns = self._work.tile_shape(kept=self.in_forward)
        return rows, self.linear.weight.shape[0] if self.in_forward else columns

    def _table_entries(self) -> int:
        """Entries of the tables of rows x present classes that region losses read."""
        if self.linear.engine == "dense":
            return 0
        tables = LinearSource(self.linear, [term.demand for term in self.terms]).tables
        return sum(len(table.rows) * len(table.columns) for table in tables)

    def plan(self) -> Plan:
        """What this call is going to do."""
        name, reason = self.choice
        rows = self._work.num_rows
        engine = self.linear.engine
        frozen = [not self.linear.hidden.requires_grad, not self.linear.weight.requires_grad]
        backward = 2 - sum(frozen) if torch.is_grad_enabled() else 0
        products = 1 + backward + (name == "recompute")
        chunk_rows, columns = self._tile_shape()
        return Plan(
            engine=engine,
            name=name,
            products=products if rows or name == "dense" else 0,
            items=rows,
            chunks=-(-rows // chunk_rows),
            scratch_bytes=(chunk_rows * columns + self._table_entries()) * self.linear.dtype.itemsize if rows else 0,
            reason=reason,
        )
