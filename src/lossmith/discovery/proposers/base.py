"""What the engine asks of a proposer, what it tells it, and what a proposal is.

A proposer is asked and told; it never runs anything. All that it remembers must be in `state()`, as plain JSON, and all
that it draws must come from `context.draw`: then a killed run goes on as if nothing had happened.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.draws import draw


class ProgramLike(Protocol):
    """All that the engine needs of a candidate; `lossmith.discovery.Program` is one."""

    @property
    def key(self) -> str:
        """Exact hash of the canonical form: equal keys are the same program."""
        ...

    def to_json(self) -> Any:
        """The program as plain JSON values (or as JSON text), exact on the way back."""
        ...


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One candidate as its proposer hands it over: a program that it built itself, or source text to be compiled."""

    proposer: str
    """Name of the arm that wrote it."""
    program: ProgramLike | None = None
    """The candidate where the proposer works on programs."""
    source: str | None = None
    """The candidate as text where it does not; never executed, always compiled."""
    signature: str = "native"
    """How the text names its inputs: `native` or `discopop`."""
    name: str = ""
    """A short name for people."""
    note: str = ""
    """What the proposer thought; kept in the run's database for people to read, never put into a prompt."""
    parents: tuple[str, ...] = ()
    """Keys of the programs that it was made from."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The answer to one call of `propose`."""

    proposals: tuple[Proposal, ...]
    """At most as many as were asked for; fewer, or none, is allowed."""
    cost: Cost = ZERO
    """Money and tokens that the call took; the engine measures its time."""
    by_arm: Mapping[str, Cost] = field(default_factory=dict)
    """Arm -> what it took of that, with its own time; empty for a proposer that is one arm."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the race knows about one program at the highest rung that it reached."""

    key: str
    program: ProgramLike
    rung: str
    mean: float
    """Posterior mean of the paired difference to the control, in the rung's fitness; above 0 is better."""
    low: float
    """Lower bound on which the race decides."""
    high: float
    """The same distance above the mean."""
    blocks: int
    """Blocks in which it met the control."""
    proposer: str = ""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a proposer may know when it is asked."""

    run_seed: int
    step: int
    """Round of the run, from 0."""
    call: int
    """Call within the round, from 0: a round asks again where too few candidates were admitted."""
    family: str
    """`preference`, `token` or `metric`."""
    rungs: tuple[str, ...]
    """Names of the rungs, cheapest first."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Name of a rung -> name of its fitness: differences on different rungs have different units."""
    control: ProgramLike
    """What every candidate is compared with."""
    elites: tuple[Standing, ...] = ()
    """The best so far, best first; they are re-tested in every new block."""
    seen: Collection[str] = ()
    """Keys of every program of the run; another proposal of one of them is a duplicate."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Category of rejection -> how often it came so far."""
    allowance: Cost | None = None
    """Money and tokens that the call may take at most; None for what `expected_cost` says."""

    def draw(self, purpose: str) -> np.random.Generator:
        """The generator of this call for one purpose; the same again when the call is repeated after a kill."""
        return draw(self.run_seed, self.step, f"propose/{self.call}/{purpose}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of one proposal of this round; told once per round, after its last rung."""

    step: int
    call: int
    position: int
    """Place in the answer of that call; a portfolio tells its arms the place in their own part of it."""
    proposer: str
    kind: Literal["rejected", "duplicate", "measured", "failed"]
    """Refused by the checks; known already; measured on at least one rung; or broke in training."""
    category: str
    """The verdict's category: `ok`, `duplicate-of-<name>`, `wrong-sign`, ..."""
    reason: str = ""
    line: int | None = None
    key: str | None = None
    program: ProgramLike | None = None
    parents: tuple[str, ...] = ()
    standing: Standing | None = None
    """Where it stands, when `kind` is `measured`; that of the original, when it is `duplicate`."""
    cheapest: Standing | None = None
    """The same on the cheapest rung, where everything is measured: one unit for all programs."""
    nearest: str | None = None
    """Closest known loss, where the checks named one."""
    distance: float | None = None
    rank: int | None = None
    """Place among the round's admitted proposals, 0 the best, by rung reached and lower bound there."""
    cost_share: Cost = ZERO
    """This proposal's part of what its call took."""


class Proposer(Protocol):
    """Ask and tell."""

    @property
    def name(self) -> str:
        """Name of the arm, in reports and in the database."""
        ...

    def expected_cost(self, n: int) -> Cost:
        """What a call for `n` proposals will take at most; `ZERO` where it is processor time only."""
        ...

    def propose(self, context: Context, n: int) -> Batch:
        """Up to `n` proposals.

        Raises:
            InfrastructureError: If a server could not be reached: the call is repeated, and the run stops after some.
        """
        ...

    def observe(self, events: Sequence[Event]) -> None:
        """Learn what became of the last round's proposals; also those of other arms."""
        ...

    def state(self) -> dict[str, Any]:
        """All that must survive a kill, as plain JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state that `state()` returned."""
        ...


@runtime_checkable
class Queue(Protocol):
    """A proposer of what somebody put there to be tried: that comes first, whatever the shares."""

    def waiting(self) -> int:
        """How many candidates have not been proposed yet."""
        ...


@runtime_checkable
class Untried(Protocol):
    """A proposer that can say what was put there and not tried."""

    def untried(self) -> list[str]:
        """A sentence for what was not proposed, and for what could not be."""
        ...


@runtime_checkable
class Thrifty(Protocol):
    """A proposer that keeps to `context.allowance`: it asks for less, or nothing, where that is small."""

    def least_cost(self) -> Cost:
        """What must be left for it to do anything that costs money or tokens."""
        ...


def least_cost(proposer: Proposer, n: int) -> Cost:
    """What must be left for a call for `n` proposals: one request of a thrifty proposer, and all of another's."""
    return proposer.least_cost() if isinstance(proposer, Thrifty) else proposer.expected_cost(n)
