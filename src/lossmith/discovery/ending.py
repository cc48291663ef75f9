"""The end of a run: a play-off among the best, who of them is a finalist, and the confirmation on fresh ground."""

from dataclasses import dataclass

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.measuring import Measuring
from lossmith.discovery.race.blocks import make_blocks
from lossmith.discovery.race.confirmation import Claim, Ground, confirm
from lossmith.discovery.race.halving import choose_retested
from lossmith.discovery.race.settings import PLAYOFF_LEGS
from lossmith.discovery.store.archive import Archive
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.discovery.store.preflight import Forecast, with_margin

NEARLY = 0.75
"""Share of the confirmation's forecast that must be left for it to begin: forecasts err, and it goes on with more."""


@dataclass(kw_only=True)
class Ending:
    """What follows a closed search; like a round, each part asks the database first whether it is done."""

    measuring: Measuring
    database: Database
    archive: Archive
    decisions: Decisions

    def needs(self, step: int, plan: Forecast) -> Cost:
        """The least that must be left when the search ends after round `step`: nothing where nothing is promising."""
        return NEARLY * plan.confirmation if self._promising(step) else ZERO

    def held_back(self, step: int, plan: Forecast) -> Cost:
        """What the round after `step` leaves for the end.

        Without anything to confirm a search that stopped to keep all of it would be the end of the run; so it goes on
        as long as a confirmation could be begun.
        """
        if step < 0 or self._promising(step):
            return plan.held_back
        return NEARLY * with_margin(plan.confirmation)

    def confirm(self) -> list[Claim]:
        """Confirm the finalists once, on blocks, a split and tasks that the search never saw."""
        if self.archive.find_stage("confirmed") is not None:
            return []
        closed = self.archive.find_stage("closed")
        assert closed is not None
        step, rounds = closed[0], closed[1]["rounds"]
        setup = self.measuring.setup
        self._play_off(step, rounds)
        finalists, grounds = self._finalists(step, rounds), []
        for rung in setup.grounds if finalists else ():
            fresh = make_blocks(setup.seed, rung.name, "confirmation", 0, setup.settings.confirmation_blocks)
            data = self.measuring.measure(step, rung, fresh, finalists, keep_back=ZERO, name="confirmation")
            grounds.append(Ground(name=rung.name, unseen=setup.is_unseen(rung), data=data))
        claims = confirm(finalists, grounds, significance=setup.settings.significance)
        with self.database.transaction():
            self.decisions.save_claims(claims)
            self.archive.set_stage(step, "confirmed", {"finalists": finalists})
        return claims

    def _promising(self, step: int) -> bool:
        return any((each.mean or 0.0) > 0 for each in self.decisions.elites(step))

    def _play_off(self, step: int, rounds: int) -> None:
        """Measure elites and challengers again, without newcomers: the first leg all of them, the second the elites.

        The newest programs have a few blocks, and the luckiest of many would be the finalists. A budget that does not
        carry it beside the confirmation goes without, which is decided once.
        """
        setup = self.measuring.setup
        settings, rung = setup.settings, setup.rungs[-1]
        if not settings.playoff_blocks or self.archive.stage(step, "playoff") is not None:
            return
        again = self.decisions.retested(rounds - 1)
        if self.archive.stage(step, "playoff begun") is None:
            plan = self.measuring.forecast()
            if not again or self.measuring.too_dear(plan.playoff + plan.confirmation):
                self.archive.set_stage(step, "playoff", {"blocks": 0})
                return
            self.archive.set_stage(step, "playoff begun", {})
        # Behind the blocks of a round that was abandoned.
        first, chosen = (rounds + 1) * settings.blocks[-1], again
        for leg in range(PLAYOFF_LEGS):
            blocks = make_blocks(
                setup.seed, rung.name, "search", first + leg * settings.playoff_blocks, settings.playoff_blocks
            )
            programs = [each.program for each in again]
            data = self.measuring.measure(step, rung, blocks, programs, keep_back=ZERO, name=f"play-off {leg + 1}")
            chosen = choose_retested(step, rung.name, data, self.measuring.candidates(data), settings)
            again = [each for each in chosen if each.kind == "elite"]
        with self.database.transaction():
            self.decisions.save(chosen)
            self.archive.set_stage(step, "playoff", {"blocks": PLAYOFF_LEGS * settings.playoff_blocks})

    def _finalists(self, step: int, rounds: int) -> list[str]:
        """Whom the confirmation is about, decided once, before any of it is measured.

        As many of the best as the budget carries, one at least: a verdict on one is worth more than none on three.
        """
        found = self.archive.stage(step, "finalists")
        if found is not None:
            return list(found["finalists"])
        better = [each.program for each in self.decisions.last_elites(step, rounds) if (each.mean or 0.0) > 0]
        finalists = better[: self.measuring.setup.settings.finalists]
        while len(finalists) > 1 and self.measuring.too_dear(self.measuring.forecast(len(finalists)).confirmation):
            finalists.pop()
        self.archive.set_stage(step, "finalists", {"finalists": finalists})
        return finalists
