"""The end of a run: a play-off among the best, who of them is a finalist, and the confirmation on fresh ground."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.measuring import Measuring
from lossmith.discovery.race.blocks import make_blocks, playoff_blocks
from lossmith.discovery.race.confirmation import Claim, Ground, confirm, still_open
from lossmith.discovery.race.halving import Decision, choose_retested, promising
from lossmith.discovery.store.archive import Archive
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.discovery.store.jobs import Jobs
from lossmith.discovery.store.ledger import BudgetExhausted
from lossmith.discovery.store.preflight import Forecast

NEARLY = 0.75
"""Share of what the confirmation of one finalist is forecast to take that must be left for it to begin: forecasts err,
and it goes on with more."""


def abandoned_words(lost: Mapping[str, int]) -> str:
    """What became of the round that the budget ended in its middle, as its stage `closed` counts it.

    Example:
        >>> abandoned_words({"candidates": 6, "evaluations": 21})
        'its 6 candidates take no part in the end, and its 21 evaluations are left out of it'
    """
    return (
        f"its {lost['candidates']} candidates take no part in the end, and its {lost['evaluations']} evaluations are "
        "left out of it"
    )


def shown_at_last(claims: Sequence[Claim]) -> str:
    """What the finalists have shown on the last ground that each was asked on, to be put behind a verdict."""
    told = []
    for claim in claims:
        last = claim.grounds[-1]
        shown = "not measured"
        if last.comparison is not None:
            found = last.comparison
            shown = f"{found.difference:+.2g} [{found.low:+.2g}, {found.high:+.2g}]"
        told.append(f"{claim.program[:8]} on {last.ground} {shown}")
    return f" ({'; '.join(told)})" if told else ""


@dataclass(kw_only=True)
class Ending:
    """What follows a closed search; like a round, each part asks the database first whether it is done."""

    measuring: Measuring
    database: Database
    jobs: Jobs
    archive: Archive
    decisions: Decisions

    def needs(self, step: int) -> Cost:
        """The least that must be left when the search ends after round `step`: nothing where nothing is promising."""
        return self._verdict_on_one() if self._promising(step) else ZERO

    def check(self, step: int) -> None:
        """Say no where something is promising after round `step` and its confirmation could not be begun.

        Raises:
            BudgetExhausted: Says what it takes.
        """
        if self._promising(step) and self.measuring.too_dear(self.needs(step)):
            self.measuring.ledger.check(
                self.measuring.forecast(1).confirmation, "the confirmation of the most promising candidate"
            )

    def held_back(self, step: int, plan: Forecast) -> Cost:
        """What the round after `step` leaves for the end: nothing while there is nothing to confirm.

        A search that stopped to keep it would be the end of the run. What is found too late waits for more budget.
        """
        return plan.held_back if step < 0 or self._promising(step) else ZERO

    def confirm(self) -> list[Claim]:
        """Confirm the finalists once, on blocks, a split and tasks that the search never saw.

        A ground is asked about those alone that the ones before have left open.
        """
        if self.archive.find_stage("confirmed") is not None:
            return []
        closed = self.archive.find_stage("closed")
        assert closed is not None
        step, rounds = closed[0], closed[1]["rounds"]
        setup = self.measuring.setup
        self._play_off(step, rounds)
        finalists, level = self._finalists(step, rounds), setup.settings.significance
        grounds: list[Ground] = []
        for rung in setup.grounds:
            left = still_open(finalists, grounds, significance=level)
            if not left:
                break
            fresh = make_blocks(setup.seed, rung.name, "confirmation", 0, setup.settings.confirmation_blocks)
            data = self.measuring.measure(step, rung, fresh, left, keep_back=ZERO, name="confirmation")
            grounds.append(Ground(name=rung.name, unseen=setup.is_unseen(rung), data=data))
        claims = confirm(finalists, grounds, significance=level)
        with self.database.transaction():
            self.decisions.save_claims(claims)
            self.archive.set_stage(step, "confirmed", {"finalists": finalists})
        return claims

    def _promising(self, step: int) -> bool:
        return bool(promising(self.decisions.elites(step)))

    def _verdict_on_one(self) -> Cost:
        return NEARLY * self.measuring.forecast(1).confirmation

    def _play_off(self, step: int, rounds: int) -> None:
        """Measure elites and challengers again, without newcomers: the first leg all of them, the second the elites.

        The newest programs have a few blocks, and the luckiest of many would be the finalists. A budget that does not
        carry it beside the confirmation goes without, or without the leg that it does not carry, which is decided once.
        """
        settings = self.measuring.setup.settings
        if not settings.playoff_blocks or self.archive.stage(step, "playoff") is not None:
            return
        again = self.decisions.retested(rounds - 1)
        if self.archive.stage(step, "playoff begun") is None:
            plan = self.measuring.forecast()
            if not again or self.measuring.too_dear(plan.playoff + plan.confirmation):
                self.archive.set_stage(step, "playoff", {"blocks": 0})
                return
            self.archive.set_stage(step, "playoff begun", {})
        chosen, blocks = self._legs(step, rounds, again)
        with self.database.transaction():
            self.jobs.abandon(step)
            self.decisions.save(chosen)
            self.archive.set_stage(step, "playoff", {"blocks": blocks})

    def _legs(self, step: int, rounds: int, again: list[Decision]) -> tuple[list[Decision], int]:
        """Who is ahead after the legs that the budget carries, and over how many blocks."""
        setup = self.measuring.setup
        rung, settings = setup.rungs[-1], setup.settings
        legs, left_out = playoff_blocks(setup.seed, rung.name, rounds, settings)
        chosen: list[Decision] = []
        for leg, blocks in enumerate(legs):
            try:
                data = self.measuring.measure(
                    step,
                    rung,
                    blocks,
                    [each.program for each in again],
                    keep_back=self._verdict_on_one(),
                    name=f"play-off {leg + 1}",
                    left_out=left_out,
                )
            except BudgetExhausted:
                return chosen, leg * settings.playoff_blocks
            chosen = choose_retested(step, rung.name, data, self.measuring.candidates(data), settings)
            again = [each for each in chosen if each.kind == "elite"]
        return chosen, len(legs) * settings.playoff_blocks

    def _finalists(self, step: int, rounds: int) -> list[str]:
        """Whom the confirmation is about, decided once, before any of it is measured.

        As many of the best as the budget carries, one at least: a verdict on one is worth more than none on three.
        """
        found = self.archive.stage(step, "finalists")
        if found is not None:
            return list(found["finalists"])
        better = promising(self.decisions.last_elites(step, rounds))
        finalists = better[: self.measuring.setup.settings.finalists]
        while len(finalists) > 1 and self.measuring.too_dear(self.measuring.forecast(len(finalists)).confirmation):
            finalists.pop()
        self.archive.set_stage(step, "finalists", {"finalists": finalists})
        return finalists
