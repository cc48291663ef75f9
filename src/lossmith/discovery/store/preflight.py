"""What a configuration will cost, said before anything is spent; one that cannot finish its own baseline is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lossmith.discovery.costs import ZERO, Budget, Cost, show_amount
from lossmith.discovery.proposers.base import Proposer
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.rungs.base import Rung
from lossmith.errors import ConfigurationError

_FIXED = 3  # control, its twin and one canary run in every block


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Costs that are known from the settings and from what one evaluation takes."""

    baseline: Cost
    """Control, twin and canaries of one round and of the confirmation: what a run needs that finds nothing."""
    round: Cost
    """One round of the search."""
    confirmation: Cost
    """The confirmation of all finalists."""

    def rounds(self, budget: Budget, spent: Cost = ZERO) -> float:
        """Whole rounds that fit beside the confirmation; infinite where nothing that they use is limited."""
        left = []
        for name, limit in budget.limits().items():
            if getattr(self.round, name) > 0:
                free = limit - getattr(spent, name) - getattr(self.confirmation, name)
                left.append(math.floor(free / getattr(self.round, name) + 1e-9))
        return max(0, min(left)) if left else math.inf

    def check(self, budget: Budget) -> None:
        """Refuse a budget that ends before anything could be known.

        Raises:
            ConfigurationError: If the baseline, or one round with its confirmation, does not fit; says what would.
        """
        needs = (
            ("its own baseline (control and canaries)", self.baseline),
            ("one round and its confirmation", self.round + self.confirmation),
        )
        for words, cost in needs:
            short = budget.exceeded_by(cost)
            if short is not None:
                whole = self.round + self.confirmation
                raise ConfigurationError(
                    f"`budget` of {show_amount(short, budget.limits()[short])} cannot finish {words}, which needs "
                    f"{show_amount(short, getattr(cost, short))}: give at least "
                    f"{show_amount(short, getattr(whole, short))}, or fewer candidates, blocks or rungs."
                )

    def sentences(self, budget: Budget, rounds: int | None) -> list[str]:
        """The forecast for a person."""
        parts = {"baseline": self.baseline, "one round": self.round, "confirmation": self.confirmation}
        shown = [
            f"{name}: " + ", ".join(show_amount(key, value) for key, value in cost.to_dict().items())
            for name, cost in parts.items()
        ]
        fits = self.rounds(budget)
        if rounds is not None:
            fits = min(fits, rounds)
        return [*shown, f"rounds that fit: {'no limit' if math.isinf(fits) else int(fits)}"]


def forecast(
    settings: RaceSettings,
    rungs: Sequence[Rung],
    grounds: Sequence[Rung],
    proposer: Proposer,
    *,
    workers: int = 1,
    measured: Callable[[str], Cost | None] | None = None,
) -> Forecast:
    """What a run will cost.

    Args:
        settings: Of the race.
        rungs: Of the search.
        grounds: Of the confirmation.
        proposer: Says what a call takes.
        workers: Evaluations at a time; they share the wall's time.
        measured: Rung name -> mean cost of an evaluation so far, which corrects what the rung declares.
    """
    pace = _pace(rungs[-1], measured)

    def one(rung: Rung) -> Cost:
        cost = evaluation_cost(rung, measured, workers)
        if rung in rungs or (measured is not None and measured(rung.name) is not None):
            return cost
        # The ground beside the last rung trains the same model on the same machine.
        return replace(cost, device_seconds=pace * cost.device_seconds, wall_seconds=pace * cost.wall_seconds)

    cohort, search, baseline = float(settings.candidates), proposer.expected_cost(settings.candidates), ZERO
    for rung, blocks in zip(rungs, settings.blocks, strict=True):
        again = settings.elites + (settings.challengers if rung is rungs[-1] else 0)
        search = search + (blocks * (cohort + again + _FIXED)) * one(rung)
        baseline = baseline + (blocks * _FIXED) * one(rung)
        kept = math.ceil(settings.keep * cohort - 1e-9)
        cohort = kept + settings.audit_share * (cohort - kept)
    confirmation = ZERO
    for rung in grounds:
        confirmation = confirmation + (settings.confirmation_blocks * (settings.finalists + _FIXED)) * one(rung)
        baseline = baseline + (settings.confirmation_blocks * _FIXED) * one(rung)
    return Forecast(baseline=baseline, round=search, confirmation=confirmation)


def _pace(rung: Rung, measured: Callable[[str], Cost | None] | None) -> float:
    """How many times longer than declared an evaluation took; 1 where none is known."""
    known = None if measured is None else measured(rung.name)
    return known.device_seconds / rung.cost.device_seconds if known is not None and rung.cost.device_seconds else 1.0


def evaluation_cost(rung: Rung, measured: Callable[[str], Cost | None] | None, workers: int) -> Cost:
    """What one evaluation is expected to take: as declared, with the times that were measured where there are any."""
    known = None if measured is None else measured(rung.name)
    seen = rung.cost if known is None else known
    return Cost(
        money_usd=rung.cost.money_usd,
        tokens=rung.cost.tokens,
        device_seconds=seen.device_seconds,
        wall_seconds=seen.wall_seconds / max(1, workers),
        jobs=1.0,
    )
