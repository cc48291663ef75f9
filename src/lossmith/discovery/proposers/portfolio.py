"""Several proposers as one: asks those more often that bring more new and good programs for what they cost.

New is not enough: what is drawn blindly is always new, and the children of good programs often lie near known ones. So
a program counts by its novelty where it is among the best third of its round, and not at all elsewhere.

Every arm keeps a floor, and random and best-of-N are always among them: without them nobody can say what the clever
ones are worth. Choices follow from counts and from the run's draws alone.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossmith.discovery.costs import Cost
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal, Proposer, Queue, Thrifty, Untried
from lossmith.errors import ConfigurationError, EvidenceError


@dataclass(frozen=True, kw_only=True)
class PortfolioSettings:
    """How proposals are shared out."""

    floor: float = 0.05
    """Share of all proposals that every arm gets, in (0, 1 / arms]."""
    usd_per_proposal: float = 0.02
    """What checking and racing one proposal is worth, in money: the unit in which costs are compared."""
    tokens_per_proposal: float = 20_000.0
    """The same in tokens."""
    seconds_per_proposal: float = 10.0
    """The same in seconds of a device or of waiting."""
    far: float = 0.05
    """Distance to the closest known loss from which on a program counts as wholly new."""
    promising: float = 1 / 3
    """Best share of a round's measured programs, in (0, 1], that counts at all."""


@dataclass
class Tally:
    """What is known of one arm, in counts."""

    asked: int = 0
    """Proposals that it was asked for."""
    proposed: int = 0
    """Proposals that it made and that were heard of."""
    novelty: float = 0.0
    """Sum over its promising programs of their novelty, in [0, 1] each."""
    cost: float = 0.0
    """What its proposals cost, in proposals."""

    def cost_of_one(self) -> float:
        """Cost of a proposal and of what its admission entails, which is 1; never less than that."""
        return 1.0 + self.cost / max(self.proposed, 1)


class Portfolio:
    """Shares every call out among arms.

    Args:
        arms: Proposers with different names, in the order in which they are asked; what an arm does not deliver is
            asked of the arm `random` at the end of the call. `random` and `best-of` must be among them.
        name: Of the whole, in the run's settings.
        settings: Of the sharing.

    Raises:
        ConfigurationError: If an arm is missing, two have one name, or the floor is too high.
    """

    def __init__(self, arms: Sequence[Proposer], *, name: str = "portfolio", settings: PortfolioSettings | None = None):
        names = [arm.name for arm in arms]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"The arms of a portfolio must have different names, got {names}.")
        for needed in ("random", "best-of"):
            if needed not in names:
                raise ConfigurationError(
                    f"A portfolio needs the arm `{needed}`, got {names}: it says what the others are worth."
                )
        self.settings = settings or PortfolioSettings()
        if not 0 < self.settings.floor * len(names) <= 1:
            raise ConfigurationError(
                f"`floor` must be in (0, 1/{len(names)}] for {len(names)} arms, got {self.settings.floor}."
            )
        # Queues first, so that they are measured first too; random last: it takes over what others do not deliver.
        ordered = sorted(arms, key=lambda arm: (arm.name == "random", not isinstance(arm, Queue)))
        self._arms = {arm.name: arm for arm in ordered}
        self.name = name
        self.tallies = {each: Tally() for each in self._arms}

    def expected_cost(self, n: int) -> Cost:
        """No more than if every arm were asked for all of it."""
        total = Cost()
        for arm in self._arms.values():
            total = total + arm.expected_cost(n)
        return total

    def least_cost(self) -> Cost:
        """One request of the thrifty arm that needs least, and whatever the others may take for one proposal."""
        thrifty = [arm.least_cost() for arm in self._arms.values() if isinstance(arm, Thrifty)]
        total = min(thrifty, key=lambda cost: cost.tokens, default=Cost())
        for arm in self._arms.values():
            if not isinstance(arm, Thrifty):
                total = total + arm.expected_cost(1)
        return total

    def propose(self, context: Context, n: int) -> Batch:
        """`n` proposals of all arms: queues first, the rest by shares; random fills up what others leave."""
        first = self._first(n)
        shares = self.shares(context.draw(f"{self.name}/shares"), n - sum(first.values())) | first
        seen, missing, cost = set(context.seen), 0, Cost()
        found: list[Proposal] = []
        by_arm: dict[str, Cost] = {}
        for name, arm in self._arms.items():
            wanted = shares[name] + (missing if name == "random" else 0)
            left = None if context.allowance is None else context.allowance + -1.0 * cost
            # What cannot keep to what is left is not asked; random takes over its part.
            if left is not None and not isinstance(arm, Thrifty) and _exceeds(arm.expected_cost(wanted), left):
                missing, wanted = missing + wanted, 0
            if wanted == 0:
                continue
            begun = time.perf_counter()
            batch = arm.propose(replace(context, seen=frozenset(seen), allowance=left), wanted)
            # For the ledger alone: shares follow from counts and stored costs, never from a clock.
            by_arm[name] = batch.cost + Cost(wall_seconds=time.perf_counter() - begun)
            given = batch.proposals[:wanted]
            missing += wanted - len(given)
            found += given
            cost = cost + batch.cost
            seen |= {each.program.key for each in given if each.program is not None}
            self.tallies[name].asked += wanted
            self.tallies[name].cost += self._in_proposals(batch.cost)
        return Batch(proposals=tuple(found), cost=cost, by_arm=by_arm)

    def untried(self) -> list[str]:
        """What the arms say of that."""
        return [sentence for arm in self._arms.values() if isinstance(arm, Untried) for sentence in arm.untried()]

    def observe(self, events: Sequence[Event]) -> None:
        """Count, and pass everything on: arms learn from each other's programs."""
        ranked = sum(event.rank is not None for event in events)
        places = math.ceil(self.settings.promising * ranked - 1e-9)
        for event in events:
            tally = self.tallies.get(event.proposer)
            if tally is not None:
                tally.proposed += 1
                tally.novelty += self._novelty(event, places)
        told = _by_arm(events)
        for arm in self._arms.values():
            arm.observe(told)

    def state(self) -> dict[str, Any]:
        """The counts, and every arm's own state."""
        return {
            "tallies": {name: vars(tally).copy() for name, tally in self.tallies.items()},
            "arms": {name: arm.state() for name, arm in self._arms.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up.

        Raises:
            EvidenceError: If the state is of other arms.
        """
        if set(state["arms"]) != set(self._arms):
            raise EvidenceError(
                f"The run was begun with the arms {sorted(state['arms'])}, and this portfolio has {sorted(self._arms)}."
            )
        for name, arm in self._arms.items():
            arm.restore(state["arms"][name])
            self.tallies[name] = Tally(**state["tallies"][name])

    def shares(self, generator: np.random.Generator, n: int) -> dict[str, int]:
        """How many proposals each arm is asked for, `n` in all; queues left out.

        An arm below its floor comes first. The others are drawn by their promise: for each place a rate is drawn from
        the Beta distribution that its counts leave, and the highest rate per cost wins (Thompson sampling).
        """
        dealt = {name: tally for name, tally in self.tallies.items() if not isinstance(self._arms[name], Queue)}
        shares = dict.fromkeys(dealt, 0)
        for _ in range(n):
            total = 1 + sum(each.asked for each in self.tallies.values()) + sum(shares.values())
            behind = {name: self.settings.floor * total - tally.asked - shares[name] for name, tally in dealt.items()}
            # Rates are drawn for every place, needed or not: how many draws there are must not depend on the counts.
            promise = {name: _rate(tally, generator) / tally.cost_of_one() for name, tally in dealt.items()}
            late = max(behind, key=behind.__getitem__)
            shares[late if behind[late] > 0 else max(promise, key=promise.__getitem__)] += 1
        return shares

    def _first(self, n: int) -> dict[str, int]:
        """How many proposals each queue is asked for: all that wait, as far as there is room."""
        found: dict[str, int] = {}
        for name, arm in self._arms.items():
            if isinstance(arm, Queue):
                found[name] = min(arm.waiting(), n - sum(found.values()))
        return found

    def report(self) -> Mapping[str, Tally]:
        """Counts by arm."""
        return dict(self.tallies)

    def _novelty(self, event: Event, places: int) -> float:
        """How far a program on the first places is from the closest known loss, 1 from `far` on; else 0."""
        if event.kind != "measured" or event.rank is None or event.rank >= places:
            return 0.0
        return 1.0 if event.distance is None else min(1.0, max(0.0, event.distance / self.settings.far))

    def _in_proposals(self, cost: Cost) -> float:
        settings = self.settings
        parts = (
            cost.money_usd / settings.usd_per_proposal,
            cost.tokens / settings.tokens_per_proposal,
            max(cost.device_seconds, cost.wall_seconds) / settings.seconds_per_proposal,
        )
        return max(parts)


def _by_arm(events: Sequence[Event]) -> list[Event]:
    """The events with the places that proposals had in the answer of their own arm, which is all that an arm knows.

    An arm is asked once in a call, and what it answers stands together.
    """
    first: dict[tuple[int, int, str], int] = {}
    for event in events:
        own = event.step, event.call, event.proposer
        first[own] = min(event.position, first.get(own, event.position))
    return [replace(event, position=event.position - first[event.step, event.call, event.proposer]) for event in events]


def _exceeds(cost: Cost, left: Cost) -> bool:
    return cost.tokens > left.tokens or cost.money_usd > left.money_usd


def _rate(tally: Tally, generator: np.random.Generator) -> float:
    # What it was asked for and did not deliver is not held against an arm: it costs nothing.
    failed = max(tally.proposed - tally.novelty, 0.0)
    return float(generator.beta(1.0 + tally.novelty, 1.0 + failed))
