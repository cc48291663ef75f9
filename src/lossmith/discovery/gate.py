"""What the engine asks of compiler, checks and identity: one verdict per proposal."""

from typing import Any, Protocol

from lossmith.discovery.proposers.base import ProgramLike, Proposal


class NearestLike(Protocol):
    """The closest known loss."""

    @property
    def name(self) -> str:
        """Its name in the atlas."""
        ...

    @property
    def distance(self) -> float:
        """Distance of fingerprints."""
        ...


class VerdictLike(Protocol):
    """What `lossmith.discovery.check` returns."""

    @property
    def accepted(self) -> bool: ...  # noqa: D102

    @property
    def category(self) -> str: ...  # noqa: D102

    @property
    def reason(self) -> str: ...  # noqa: D102

    @property
    def line(self) -> int | None: ...  # noqa: D102

    @property
    def flags(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def nearest(self) -> NearestLike | None: ...  # noqa: D102

    @property
    def program(self) -> ProgramLike | None: ...  # noqa: D102


class Gate(Protocol):
    """Decides what is admitted, and knows how a program is read from the database."""

    @property
    def family(self) -> str:
        """`preference`, `token` or `metric`."""
        ...

    def check(self, proposal: Proposal) -> VerdictLike:
        """The verdict on one proposal; never raises. `program` is set where it is accepted or a duplicate."""
        ...

    def remember(self, name: str, program: ProgramLike) -> None:
        """Take a program among those of which others may be duplicates; called in order of admission, and on resume."""
        ...

    def from_json(self, payload: Any) -> ProgramLike:
        """The program that `to_json` wrote."""
        ...
