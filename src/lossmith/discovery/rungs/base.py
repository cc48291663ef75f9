"""What the engine asks of a rung, and the three ways in which an evaluation can fail."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lossmith.discovery.costs import Cost
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.errors import LossmithError

Split = Literal["search", "confirmation"]
Status = Literal["ok", "candidate_error", "infrastructure_error", "harness"]


class EvaluationError(LossmithError, RuntimeError):
    """An evaluation that ended without a fitness; the class says whose fault it is."""

    status: Status = "harness"


class CandidateError(EvaluationError):
    """The candidate broke: its loss or gradient was not finite, or training diverged. Scored, as a failure."""

    status: Status = "candidate_error"


class InfrastructureError(EvaluationError):
    """The machine broke: out of memory or of time, a lost server, a full disk. Not scored; done again.

    What takes too much of the machine by its own fault cannot be told from it: the control is tried too, and a
    candidate that fails where it does not is given up without a score.
    """

    status: Status = "infrastructure_error"


class HarnessError(EvaluationError):
    """Our own code broke, or a canary says that it does not measure what it should: the run stops."""

    status: Status = "harness"


@dataclass(frozen=True, kw_only=True)
class Block:
    """What is held equal for all programs that are compared: a row of paired measurements."""

    index: int
    """Place in the rung's sequence of blocks, from 0, per split."""
    seed: int
    """Fixes initial weights, data order, dropout and evaluation subset."""
    split: Split = "search"
    """Which examples train and score: `confirmation` shares none with `search`."""
    twin: bool = False
    """True for the control's second run in its block: same initial weights and evaluation subset, another data order
    and dropout. Control against twin is the noise of a paired difference where there is no effect."""

    @property
    def training_seed(self) -> int:
        """Seed of data order and dropout: the block's own, or another one for the twin.

        Example:
            >>> Block(index=0, seed=7).training_seed, Block(index=0, seed=7, twin=True).training_seed
            (7, 1000000014)
        """
        return (self.seed + 1_000_000_007) % 2**31 if self.twin else self.seed


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What an evaluation measured."""

    fitness: float
    """The one number that is compared; higher is better, so a rung negates a loss."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Anything else worth a column in the report; must repeat exactly when the evaluation is repeated."""
    device_seconds: float | None = None
    """Device time taken, where it is not the time of the call."""
    money_usd: float = 0.0
    """Money paid, such as for a judge."""
    tokens: float = 0.0
    """Tokens read and written by models that somebody is paid for."""


class Rung(Protocol):
    """One place of measurement. Equal `(program, block, environment)` must give equal metrics.

    A rung with the attribute `apart = True` is pickled and measured in a process of its own, where an evaluation that
    hangs or dies ends alone; for evaluations of milliseconds that is too dear.
    """

    @property
    def name(self) -> str:
        """Name in the database: `toy`, `tiny`, `small`, ...; different for different tasks and models."""
        ...

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model. A claim needs at least one ground that the search never saw."""
        ...

    @property
    def environment(self) -> str:
        """What else the numbers depend on: a short hash of configuration, library versions, device kind and threads."""
        ...

    @property
    def fitness_name(self) -> str:
        """What `fitness` is: `win_rate`, `preference_accuracy`, `negative_nll`, ..."""
        ...

    @property
    def cost(self) -> Cost:
        """What one evaluation is expected to take; the preflight multiplies it, the ledger corrects it."""
        ...

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """Train with the program in the block and measure.

        Raises:
            CandidateError: If the candidate broke; the control must not.
            InfrastructureError: If the machine broke.
            HarnessError: If our own code broke. Anything else that is raised counts as this, but for memory, disks,
                connections and databases that fail.
        """
        ...
