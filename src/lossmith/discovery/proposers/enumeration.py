"""Every program up to a size, smallest first: what the search misses here does not exist.

Size counts operators and leaves, with the scaled margin as one leaf. Of programs with the same canonical form the first
one stands for all: the canonical form of an operator depends on those of its arguments only, so nothing is lost when a
larger program is built from representatives.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import Node, Program, ProgramError, canonical_form, const, make
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal
from lossmith.discovery.proposers.programs import proposal
from lossmith.discovery.proposers.vocabulary import vocabulary
from lossmith.errors import ConfigurationError, EvidenceError

UNARY = ("neg", "softplus", "sigmoid", "exp", "tanh", "relu", "square", "abs")
BINARY = ("add", "sub", "mul", "max")
CONSTANTS = (1.0, 0.5)
MARGIN_SCALE = {"preference": 0.1, "token": 1.0, "metric": 10.0}
"""Factor before the margin: sizes are too small to tune it, which is what `constants` is for."""


class EnumerationProposer:
    """Hands out the sequence from where it stands; its place is all its state.

    Args:
        max_size: Largest size, >= 1. The number of programs grows about tenfold with each.
        name: Of the arm.
        unary: Operators of one number.
        binary: Operators of two.
        constants: Leaves beside the natural variables.
    """

    def __init__(
        self,
        *,
        max_size: int = 5,
        name: str = "enumeration",
        unary: Sequence[str] = UNARY,
        binary: Sequence[str] = BINARY,
        constants: Sequence[float] = CONSTANTS,
    ):
        if max_size < 1:
            raise ConfigurationError(f"`max_size` must be >= 1, got {max_size}.")
        self.name, self.max_size = name, max_size
        self._unary, self._binary, self._constants = tuple(unary), tuple(binary), tuple(constants)
        self._index = 0
        self._stream: Iterator[Program] | None = None
        self._family = ""

    def expected_cost(self, n: int) -> Cost:
        """Processor time only."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """The next `n` that the run does not know; nothing after the last one."""
        if self._family and self._family != context.family:
            raise EvidenceError("The stored state of a proposer is of another family: it is of another run.")
        if self._stream is None:
            self._family = context.family
            self._stream = self._from(self._index)
        found: list[Proposal] = []
        while len(found) < n:
            program = next(self._stream, None)
            if program is None:
                break
            self._index += 1
            if program.key not in context.seen:
                found.append(proposal(self.name, program))
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """Nothing is learnt."""

    def state(self) -> dict[str, Any]:
        """The place in the sequence."""
        return {"index": self._index, "family": self._family}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a place."""
        self._index, self._family, self._stream = int(state["index"]), str(state["family"]), None

    def _from(self, index: int) -> Iterator[Program]:
        stream = enumerate_programs(
            self._family, self.max_size, unary=self._unary, binary=self._binary, constants=self._constants
        )
        for _ in range(index):
            next(stream, None)
        return stream


def leaves_of(family: str) -> tuple[Node, ...]:
    """The scaled margin, and for tokens what their losses are written in besides."""
    words = vocabulary(family)
    scale = MARGIN_SCALE[family]
    margin = words.margin if scale == 1 else make("mul", const(scale), words.margin)
    return (margin, *(atom for atom, _, _ in words.atoms[:3])) if family == "token" else (margin,)


def enumerate_programs(
    family: str,
    max_size: int,
    *,
    unary: Sequence[str] = UNARY,
    binary: Sequence[str] = BINARY,
    constants: Sequence[float] = CONSTANTS,
) -> Iterator[Program]:
    """Programs with a number per item, smallest first, one for each canonical form.

    Example:
        >>> [program.root.op for program in enumerate_programs("preference", 2, unary=("neg", "exp"), constants=())]
        ['mul', 'neg', 'exp']
    """
    by_size: dict[int, list[Node]] = {}
    known: set[Node] = set()
    for size in range(1, max_size + 1):
        level: list[Node] = []
        for node in _of_size(size, by_size, leaves_of(family), unary, binary, constants):
            # Forms are nodes, and equal nodes are one object.
            form = canonical_form(node)
            if form in known:
                continue
            known.add(form)
            level.append(node)
            # What has folded to a number (x - x) may serve in a larger program and is none itself.
            if node.type == "item" and form.op != "const":
                yield Program(family, node)
        by_size[size] = level


def _of_size(
    size: int,
    by_size: dict[int, list[Node]],
    leaves: Sequence[Node],
    unary: Sequence[str],
    binary: Sequence[str],
    constants: Sequence[float],
) -> Iterator[Node]:
    if size == 1:
        yield from leaves
        yield from (const(value) for value in constants)
        return
    for op in unary:
        yield from _made(op, ((part,) for part in by_size[size - 1]))
    for op in binary:
        for left in range(1, size - 1):
            yield from _made(op, product(by_size[left], by_size[size - 1 - left]))


def _made(op: str, arguments: Iterable[tuple[Node, ...]]) -> Iterator[Node]:
    for each in arguments:
        try:
            yield make(op, *each)
        except ProgramError:
            continue
