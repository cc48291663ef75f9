"""What a configuration will cost, said before anything is spent; one that cannot finish its own baseline is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lossmith.discovery.costs import RESOURCES, ZERO, Budget, Cost, show_amount, show_enough
from lossmith.discovery.proposers.base import Proposer, least_cost
from lossmith.discovery.race.settings import PLAYOFF_LEGS, RaceSettings
from lossmith.discovery.rungs.base import Rung
from lossmith.errors import ConfigurationError

MARGIN = 1.1
"""Times what is forecast that must be left to begin a round and to confirm after it: forecasts err."""
_ASKED = ("money_usd", "tokens")
_WORDS = {
    "money_usd": "money",
    "tokens": "tokens",
    "device_seconds": "device time",
    "wall_seconds": "time",
    "jobs": "jobs",
}
_FIXED = 3  # control, its twin and one canary run in every block


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Costs that are known from the settings and from what one evaluation takes."""

    baseline: Cost
    """Control, twin and canaries of one round and of a whole confirmation: the least that a verdict may need."""
    round: Cost
    """One round of the search, with the least that its proposals can be asked for."""
    confirmation: Cost
    """The confirmation of all finalists on every ground; less where a ground leaves none of them open."""
    playoff: Cost = ZERO
    """The play-off between the search and the confirmation."""
    most: Cost = ZERO
    """What the proposals of a round take beyond that at most; they keep to what is left."""

    @property
    def held_back(self) -> Cost:
        """What a round must leave for the confirmation: a search without it is lost."""
        return with_margin(self.playoff + self.confirmation)

    @property
    def needed(self) -> Cost:
        """What must be left for a round to begin."""
        return with_margin(self.round) + self.held_back

    def rounds(self, budget: Budget, spent: Cost = ZERO) -> float:
        """Rounds that will be done beside the confirmation, where the proposals take no more than they must.

        Infinite where nothing that a round uses is limited.
        """
        return self._rounds(self.round, budget, spent)

    def fewest_rounds(self, budget: Budget, spent: Cost = ZERO) -> float:
        """The same where the proposals take the most that they can: then the last round takes what is left."""
        return min(self.rounds(budget, spent), max(1, self._rounds(self.round + self.most, budget, spent)))

    def _rounds(self, one: Cost, budget: Budget, spent: Cost) -> float:
        left = []
        for name, limit in budget.limits().items():
            if getattr(one, name) > 0:
                free = limit - getattr(spent, name) - getattr(self.needed, name)
                left.append(1 + math.floor(free / getattr(one, name) + 1e-9) if free > -1e-9 else 0)
        return max(0, min(left)) if left else math.inf

    def check(self, budget: Budget) -> None:
        """Refuse a budget that ends before anything could be known.

        Raises:
            ConfigurationError: If the baseline, or one round with its confirmation, does not fit; says what would.
        """
        needs = (
            ("its own baseline (control and canaries)", self.baseline),
            ("one round and its confirmation", self.needed),
        )
        for words, cost in needs:
            short = budget.exceeded_by(cost)
            if short is not None:
                remedy = "" if short in _ASKED else ", or fewer rungs"
                raise ConfigurationError(
                    f"`budget` of {show_amount(short, budget.limits()[short])} cannot finish {words}, which needs "
                    f"{show_amount(short, getattr(cost, short))}: give at least "
                    f"{show_enough(short, getattr(self.needed, short))}{remedy}."
                )

    def check_end(self, budget: Budget, rounds: int | None) -> None:
        """Refuse a search that nothing ends.

        Raises:
            ConfigurationError: If neither `rounds` nor anything that a round uses is limited.
        """
        if rounds is None and math.isinf(self.rounds(budget)):
            limited = ", ".join(show_amount(name, limit) for name, limit in budget.limits().items())
            used = ", ".join(_WORDS[name] for name in (self.round + self.most).to_dict())
            raise ConfigurationError(
                f"`budget` must limit something that a round uses ({used}), got {limited or 'no limit'}, which no "
                "part of this run uses up: the search would have no end. Give --budget in time or jobs, such as 30m, "
                "or --rounds."
            )

    def sentences(self, budget: Budget, rounds: int | None) -> list[str]:
        """The forecast for a person."""
        parts = {"control and canaries alone, within what follows": self.baseline, "one round": self.round}
        parts |= {"play-off": self.playoff} if self.playoff.to_dict() else {}
        parts |= {"confirmation, if every ground is asked": self.confirmation}
        shown = [
            f"{name}: " + ", ".join(show_amount(key, value) for key, value in _once(cost).items())
            for name, cost in parts.items()
        ]
        if self.most.to_dict():
            asked = ", ".join(show_amount(name, getattr(self.round + self.most, name)) for name in self.most.to_dict())
            shown.append(f"proposals of one round: at most {asked}, and never more than is left")
        few, many = (min(each, math.inf if rounds is None else rounds) for each in self._range(budget))
        if few == many:
            return [*shown, f"rounds that fit: {'no limit' if math.isinf(many) else int(many)}"]
        upper = f"at least {int(few)}" if math.isinf(many) else f"{int(few)} to {int(many)}"
        return [*shown, f"rounds that fit: {upper}, by how much the model takes"]

    def _range(self, budget: Budget) -> tuple[float, float]:
        """Fewest and most rounds: what a request takes at most says nothing of how little it may take."""
        others = Budget(**{name: limit for name, limit in budget.limits().items() if name not in self.most.to_dict()})
        return self.fewest_rounds(budget), self.rounds(others)


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

    expected, least = proposer.expected_cost(settings.candidates), least_cost(proposer, settings.candidates)
    most = Cost(money_usd=expected.money_usd - least.money_usd, tokens=expected.tokens - least.tokens)
    cohort, search, baseline = float(settings.candidates), expected + -1.0 * most, ZERO
    for rung, blocks in zip(rungs, settings.blocks, strict=True):
        again = settings.elites + (settings.challengers if rung is rungs[-1] else 0)
        search = search + (blocks * (cohort + again + _FIXED)) * one(rung)
        baseline = baseline + (blocks * _FIXED) * one(rung)
        kept = math.ceil(settings.keep * cohort - 1e-9)
        cohort = kept + settings.audit_share * (cohort - kept)
    retested = settings.elites + settings.challengers
    legs = settings.playoff_blocks * (retested + settings.elites + PLAYOFF_LEGS * _FIXED)
    playoff = legs * one(rungs[-1])
    confirmation = ZERO
    for rung in grounds:
        confirmation = confirmation + (settings.confirmation_blocks * (settings.finalists + _FIXED)) * one(rung)
        baseline = baseline + (settings.confirmation_blocks * _FIXED) * one(rung)
    return Forecast(baseline=baseline, round=search, confirmation=confirmation, playoff=playoff, most=most)


def _once(cost: Cost) -> dict[str, float]:
    """Amounts to be shown, without the device's time where it is that of the clock."""
    return {
        name: value for name, value in cost.to_dict().items() if name != "device_seconds" or value != cost.wall_seconds
    }


def with_margin(cost: Cost) -> Cost:
    """`MARGIN` times what is forecast; money and tokens as they are, since their bounds are kept by who spends them."""
    times = {name: MARGIN * getattr(cost, name) for name in RESOURCES if name not in _ASKED}
    return replace(cost, **times)


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
