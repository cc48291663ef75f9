"""The loop: propose, check, measure on rung after rung, tell, and in the end confirm.

Every part of a round is noted in the database in the same transaction as its rows, and asks the database first whether
it is done. So a run that was killed anywhere goes on by running the same code again. The clock decides when a run
stops, and never what it does next: all that is chosen follows from rows, settings and the run's seed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lossmith._version import __version__
from lossmith.discovery.costs import Cost
from lossmith.discovery.ending import Ending, abandoned_words, shown_at_last
from lossmith.discovery.measuring import Measuring
from lossmith.discovery.proposers.base import ProgramLike, Standing, Untried
from lossmith.discovery.race.blocks import RungData, make_blocks
from lossmith.discovery.race.confirmation import Claim
from lossmith.discovery.race.halving import Decision, choose_retested, cut
from lossmith.discovery.rounds import Desk
from lossmith.discovery.rungs.base import HarnessError, Rung
from lossmith.discovery.setup import Setup
from lossmith.discovery.store.archive import Archive
from lossmith.discovery.store.database import FILE_NAME, Database, now
from lossmith.discovery.store.decisions import Decisions
from lossmith.discovery.store.jobs import Jobs
from lossmith.discovery.store.ledger import BudgetExhausted, Ledger
from lossmith.discovery.store.preflight import Forecast, evaluation_cost, forecast, with_margin
from lossmith.discovery.work import MachineOut, Workshop

_REASONS = {"rounds": "all rounds are done", "budget": "the budget carries no other one"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a session of a run ended."""

    status: Literal["finished", "budget", "machine"]
    """`finished`; or what comes next does not fit in the budget; or the machine, or a proposer's server, failed."""
    sentence: str
    """What happened, and how to go on."""
    announced: tuple[str, ...] = ()
    """Keys of the programs that are better than the control on every ground."""
    claims: tuple[Claim, ...] = ()
    """All that was confirmed or not; empty in a session that found the run finished already."""


class Engine:
    """One session of one run in one folder."""

    def __init__(
        self,
        folder: str | Path | None,
        setup: Setup,
        *,
        say: Callable[[str], None] = lambda sentence: None,
        moved: Callable[[str, int, int], None] = lambda name, done, of: None,
    ):
        """Open the run.

        Args:
            folder: Results folder; None keeps everything in memory.
            setup: What the run is made of.
            say: Gets a sentence now and then.
            moved: Gets what is measured, how many of its evaluations are done, and of how many.

        Raises:
            ConfigurationError: If the budget cannot pay for the baseline.
            EvidenceError: If the folder holds another run, or another process runs it.
        """
        self.setup = setup
        self._say = say
        if folder is None or not (Path(folder) / FILE_NAME).is_file():
            # Before there is a file: a run that is refused leaves none.
            plan = forecast(setup.settings, setup.rungs, setup.grounds, setup.proposer, workers=setup.workers)
            _check(plan, setup)
        self.database = Database(folder)
        try:
            self.archive, self.decisions = Archive(self.database), Decisions(self.database)
            self.jobs, self.ledger = Jobs(self.database), Ledger(self.database, setup.budget)
            programs: dict[str, ProgramLike] = {}
            self._shop = self._open_shop(programs, moved)
            self._measuring = Measuring(
                setup=setup, jobs=self.jobs, ledger=self.ledger, shop=self._shop, programs=programs
            )
            self._ending = Ending(
                measuring=self._measuring,
                database=self.database,
                jobs=self.jobs,
                archive=self.archive,
                decisions=self.decisions,
            )
            stored = self.database.settings()
            if not stored:
                _check(self.forecast(), setup)
            elif self.archive.find_stage("closed") is None:
                self.forecast().check_end(setup.budget, setup.settings.rounds)
            session = {"started_at": now(), "lossmith": __version__, **setup.provenance}
            settings = setup.to_settings() | {"sessions": [*stored.get("sessions", []), session]}
            self.database.open_run(identity=setup.identity(), settings=settings)
            self.ledger.write_off()
            self.jobs.free_lost()
        except BaseException:
            self.database.close()
            raise
        self.desk = Desk(
            setup=setup,
            database=self.database,
            archive=self.archive,
            ledger=self.ledger,
            programs=programs,
            say=say,
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is still evaluated, and close the database."""
        self._shop.close()
        self.database.close()

    def forecast(self) -> Forecast:
        """What the run costs, as far as is known now."""
        return self._measuring.forecast()

    def run(self) -> Outcome:
        """Go on until the run is finished, or cannot go on in this session.

        Raises:
            HarnessError: If our own code broke or a canary is off; all that was measured is kept.
        """
        self.database.open_session()
        self.desk.open()
        self._say_closed()
        try:
            while self.archive.find_stage("closed") is None:
                self._search()
            claims = self._ending.confirm()
        except BudgetExhausted as error:
            self.database.touch("budget")
            return Outcome(
                status="budget",
                sentence=f"{error} The run goes on where it stopped with the same --out and more --budget.",
            )
        except MachineOut as error:
            self.database.touch("machine")
            return Outcome(status="machine", sentence=f"{error} The run goes on where it stopped with the same --out.")
        except HarnessError:
            self.database.touch("harness")
            raise
        finally:
            proposer = self.setup.proposer
            for sentence in proposer.untried() if isinstance(proposer, Untried) else ():
                self._say(sentence)
        self.database.touch("finished")
        announced = tuple(self.decisions.announced())
        words = (
            f"{len(announced)} confirmed better than the control"
            if announced
            else f"nothing was shown to beat the control{shown_at_last(claims)}"
        )
        return Outcome(
            status="finished",
            sentence=(
                f"Finished: {words}.{self._abandoned()} The search is closed, and more --budget does not open it "
                "again: to search on, begin another run with another seed."
            ),
            announced=announced,
            claims=tuple(claims),
        )

    def standings(self, step: int, rung: str | None = None) -> dict[str, Standing]:
        """Where each program stands on the highest rung that it reached, or on `rung`, after round `step`."""
        found: dict[str, Standing] = {}
        for each in self.decisions.all():
            # By round, and elites are decided on anew in each: later ones replace earlier ones.
            if each.step > step or each.mean is None or each.sd is None or (rung or each.rung) != each.rung:
                continue
            known = found.get(each.program)
            if known is not None and self._height(known.rung) > self._height(each.rung):
                continue
            reach = self.setup.settings.caution * each.sd
            found[each.program] = Standing(
                key=each.program,
                program=self.desk.programs[each.program],
                rung=each.rung,
                mean=each.mean,
                low=each.mean - reach,
                high=each.mean + reach,
                blocks=each.blocks,
            )
        return found

    def _open_shop(self, programs: dict[str, ProgramLike], moved: Callable[[str, int, int], None]) -> Workshop:
        setup = self.setup
        return Workshop(
            database=self.database,
            jobs=self.jobs,
            ledger=self.ledger,
            rungs={rung.name: rung for rung in (*setup.rungs, *setup.unseen)},
            find=programs.__getitem__,
            control=setup.control.key,
            workers=setup.workers,
            moved=moved,
            price=lambda rung: evaluation_cost(rung, self.ledger.measured, setup.workers),
        )

    def _say_closed(self) -> None:
        """Say of a search that was closed in an earlier session that neither rounds nor budget open it again."""
        closed, rounds = self.archive.find_stage("closed"), self.setup.settings.rounds
        if closed is not None:
            more = (
                f"; `--rounds {rounds}` changes nothing" if rounds is not None and rounds > closed[1]["rounds"] else ""
            )
            self._say(f"The search of this run was closed after {closed[1]['rounds']} rounds and stays closed{more}.")

    def _search(self) -> None:
        """Do the next round, or close the search."""
        found = self.archive.find_stage("observed")
        step = 0 if found is None else found[0] + 1
        plan = self.forecast()
        reason = self._end_of_search(step, plan)
        if reason is None:
            try:
                reason = self._round(step, self._ending.held_back(step - 1, plan))
            except BudgetExhausted:
                # What is left pays for a confirmation of what earlier rounds found; a first round finds nothing yet.
                if step == 0 or self._measuring.too_dear(self._ending.needs(step - 1)):
                    raise
                reason = "budget"
        if reason is not None:
            with self.database.transaction():
                detail: dict[str, Any] = {"reason": reason, "rounds": step}
                if reason == "budget" and self.archive.calls(step):
                    candidates = [each for each in self.archive.proposals(step) if each.kind == "admitted"]
                    detail["abandoned"] = {"candidates": len(candidates), "evaluations": self.jobs.abandon(step)}
                self.archive.set_stage(step, "closed", detail)
            many = f"{step} round{'' if step == 1 else 's'}"
            self._say(f"The search ends after {many}: {_REASONS.get(reason, reason)}.{self._abandoned()}")

    def _end_of_search(self, step: int, plan: Forecast) -> str | None:
        if step == 0 or self.archive.calls(step):
            # A round that has begun is not judged again: it was found to fit, and goes as far as the budget does.
            return None
        rounds = self.setup.settings.rounds
        if rounds is not None and step >= rounds:
            return "rounds"
        if not self._measuring.too_dear(with_margin(plan.round) + self._ending.held_back(step - 1, plan)):
            return None
        self._ending.check(step - 1)
        return "budget"

    def _abandoned(self) -> str:
        """A sentence on the round that the budget ended in its middle; empty where there is none."""
        found = self.archive.find_stage("closed")
        lost = None if found is None else found[1].get("abandoned")
        if found is None or lost is None:
            return ""
        begun = f" Round {found[0] + 1} was begun and abandoned, since the budget did not carry it"
        return f"{begun}: {abandoned_words(lost)}."

    def _round(self, step: int, keep_back: Cost) -> str | None:
        """One round; returns why there can be no other one, or None."""
        standings = self.standings(step - 1)
        elites = [each.program for each in self.decisions.elites(step - 1)]
        again = [each.program for each in self.decisions.retested(step - 1)]
        cohort = self.desk.ask(step, [standings[key] for key in elites], keep_back)
        if not cohort:
            return "the proposer has nothing new"
        for rung, blocks in zip(self.setup.rungs, self.setup.settings.blocks, strict=True):
            beside = again if rung is self.setup.rungs[-1] else elites
            cohort = self._climb(step, rung, blocks, cohort, beside, keep_back)
        cheapest = self.standings(step, self.setup.rungs[0].name)
        self.desk.tell(step, self.standings(step), self.decisions.all(step=step), cheapest)
        admitted = Counter(each.proposer for each in self.archive.proposals(step) if each.kind == "admitted")
        new = ", ".join(f"{count} of {arm}" for arm, count in admitted.most_common())
        fixed = 1 + sum(each.program is not None for each in self.setup.canaries)
        many = len(self.desk.programs) - fixed
        self._say(f"Round {step + 1}: {many} candidates so far; new ones: {new}.")
        return None

    def _climb(
        self, step: int, rung: Rung, blocks: int, cohort: Sequence[str], again: Sequence[str], keep_back: Cost
    ) -> list[str]:
        """Measure a cohort on a rung, in new blocks, beside those that are measured again; returns who goes on."""
        if self.archive.stage(step, f"rung/{rung.name}") is None:
            fresh = make_blocks(self.setup.seed, rung.name, "search", step * blocks, blocks)
            data = self._measuring.measure(
                step, rung, fresh, [*again, *cohort], keep_back=keep_back, name=f"round {step + 1}"
            )
            with self.database.transaction():
                self.decisions.save(self._decide(step, rung, data, cohort))
                self.archive.set_stage(step, f"rung/{rung.name}", {"blocks": len(data.control)})
        decided = self.decisions.all(step=step, rung=rung.name)
        return [each.program for each in decided if each.kind in ("promoted", "audited")]

    def _decide(self, step: int, rung: Rung, data: RungData, cohort: Sequence[str]) -> list[Decision]:
        last = rung is self.setup.rungs[-1]
        crowd, settings = self._measuring.candidates(data), self.setup.settings
        found = cut(step, rung.name, data, cohort, crowd, settings, seed=self.setup.seed, last=last)
        return found + (choose_retested(step, rung.name, data, crowd, settings) if last else [])

    def _height(self, rung: str) -> int:
        return [each.name for each in self.setup.rungs].index(rung)


def _check(plan: Forecast, setup: Setup) -> None:
    plan.check(setup.budget)
    plan.check_end(setup.budget, setup.settings.rounds)
