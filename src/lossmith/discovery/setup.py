"""What a run is made of, and whether its parts fit together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lossmith.discovery.costs import Budget
from lossmith.discovery.gate import Gate
from lossmith.discovery.proposers.base import ProgramLike, Proposer
from lossmith.discovery.race.canaries import Canary
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.rungs.base import Rung
from lossmith.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One run. `budget`, `workers` and `provenance` may differ when it goes on; everything else must not."""

    seed: int
    """Every draw of the run follows from it."""
    gate: Gate
    """Compiler, checks and identity."""
    proposer: Proposer
    """One arm, or a portfolio of them."""
    rungs: Sequence[Rung]
    """Of the search, cheapest first; the last one decides who is an elite."""
    unseen: Sequence[Rung]
    """Other tasks or models, for the confirmation only."""
    control: ProgramLike
    """What is to be beaten: DPO, or the task's baseline."""
    canaries: Sequence[Canary] = ()
    """Programs of known worth."""
    settings: RaceSettings = field(default_factory=RaceSettings)
    budget: Budget = field(default_factory=Budget)
    workers: int = 1
    """Evaluations at a time, in threads; 0 evaluates in the engine's own thread."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    """Where proposals come from beyond the proposer's name: the language model, folders of candidates."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What is kept of each session: its command, address and prices of a model, commit; never a key."""

    def __post_init__(self):
        names = [rung.name for rung in (*self.rungs, *self.unseen)]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"Rungs must have different names, got {names}.")
        if len(self.rungs) != len(self.settings.blocks):
            raise ConfigurationError(
                f"`blocks` must hold one number per rung, got {len(self.settings.blocks)} numbers and "
                f"{len(self.rungs)} rungs."
            )
        if not any(self.is_unseen(rung) for rung in self.unseen):
            known = sorted({rung.ground for rung in self.rungs})
            raise ConfigurationError(
                f"`unseen` must hold a rung on a task or model that the search never sees, and it sees {known}."
            )
        if self.settings.rounds is None and not self.budget.limits():
            raise ConfigurationError("Give a `budget` or a number of `rounds`: the search has no other end.")
        if self.workers < 0:
            raise ConfigurationError(f"`workers` must be >= 0, got {self.workers}.")
        keys = [self.control.key, *(each.program.key for each in self.canaries if each.program is not None)]
        if len(set(keys)) < len(keys):
            raise ConfigurationError(
                "Control and canaries must be different programs, and two of them have the same canonical form: "
                "disguise the control in a way that the canonical form keeps."
            )

    @property
    def grounds(self) -> list[Rung]:
        """Where finalists are confirmed: the last rung on its fresh split, and the unseen ones."""
        return [self.rungs[-1], *self.unseen]

    def is_unseen(self, rung: Rung) -> bool:
        """Whether the search never saw its task and model."""
        return place_of(rung.ground) not in {place_of(each.ground) for each in self.rungs}

    def identity(self) -> dict[str, Any]:
        """All on which a row of the database depends."""
        # Runs without sources keep the identity that they had before there were any.
        sources = {"sources": dict(self.sources)} if self.sources else {}
        return sources | {
            "seed": self.seed,
            "family": self.gate.family,
            "proposer": self.proposer.name,
            "control": self.control.key,
            "canaries": {each.name: _canary_key(each) for each in self.canaries},
            "ladder": [rung.name for rung in self.rungs],
            "grounds": [rung.name for rung in self.grounds],
            "rungs": {rung.name: _rung_identity(rung) for rung in self.rungs},
            "unseen": {rung.name: _rung_identity(rung) for rung in self.unseen},
            "race": self.settings.identity(),
        }

    def to_settings(self) -> dict[str, Any]:
        """All settings, for the report."""
        changeable = {"budget": self.budget.limits(), "rounds": self.settings.rounds, "workers": self.workers}
        return self.identity() | changeable


def place_of(ground: Sequence[str]) -> tuple[str, ...]:
    """A task and its model, with one spelling for files and folders that have several."""
    return tuple(os.path.realpath(part) if os.path.exists(part) else part for part in ground)


def _canary_key(canary: Canary) -> str:
    return canary.kind if canary.program is None else canary.program.key


def _rung_identity(rung: Rung) -> Mapping[str, Any]:
    return {"environment": rung.environment, "ground": list(rung.ground), "fitness": rung.fitness_name}
