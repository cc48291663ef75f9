"""Make every decision of a run again, from its rows alone: what a reader can check without trusting the engine."""

from dataclasses import dataclass
from typing import Any

from lossmith.discovery.race.blocks import RungData, make_blocks, table, twin_of
from lossmith.discovery.race.confirmation import Ground, confirm
from lossmith.discovery.race.halving import Decision, choose_retested, cut
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.rungs.base import Split
from lossmith.discovery.store.archive import Archive
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.discovery.store.jobs import Jobs


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of making all decisions again."""

    decisions: int
    """Decisions that were made again."""
    claims: int
    """Verdicts that were made again."""
    mismatches: tuple[str, ...]
    """One sentence for each that is not what the database says; empty for a run that was not tampered with."""


def replay(database: Database) -> Replay:
    """Replay the run in a database."""
    return _Replayer(database).replay()


class _Replayer:
    def __init__(self, database: Database):
        self._identity = database.settings()
        race: dict[str, Any] = dict(self._identity["race"])
        race["blocks"] = tuple(race["blocks"])
        self._settings = RaceSettings(**race)
        self._archive, self._decisions, self._jobs = Archive(database), Decisions(database), Jobs(database)
        self._candidates = [each.key for each in self._archive.programs() if each.role == "candidate"]
        self._verdicts = database.rows("SELECT program, rank, p_value, p_holm, announced FROM verdict ORDER BY rank")
        self._wrong: list[str] = []

    def replay(self) -> Replay:
        """Round by round, and then the claims."""
        count, step = 0, 0
        while self._archive.stage(step, "proposed") is not None:
            count += self._round(step)
            step += 1
        self._wrong += self._unknown_blocks()
        return Replay(decisions=count, claims=self._claims(), mismatches=tuple(self._wrong))

    def _round(self, step: int) -> int:
        cohort = [each.key for each in self._archive.proposals(step) if each.kind == "admitted" and each.key]
        count = 0
        for rung, blocks in zip(self._identity["ladder"], self._settings.blocks, strict=True):
            if self._archive.stage(step, f"rung/{rung}") is None:
                break
            data = self._data(rung, "search", before=(step + 1) * blocks)
            crowd = [key for key in self._candidates if key in data.fitness]
            last = rung == self._identity["ladder"][-1]
            seed = self._identity["seed"]
            again = cut(step, rung, data, cohort, crowd, self._settings, seed=seed, last=last)
            if last:
                again += choose_retested(step, rung, data, crowd, self._settings)
            self._compare(again, self._decisions.all(step=step, rung=rung))
            cohort = [each.program for each in again if each.kind in ("promoted", "audited")]
            count += len(again)
        return count

    def _claims(self) -> int:
        found = self._archive.find_stage("confirmed")
        closed = self._archive.find_stage("closed")
        if found is None or closed is None:
            return 0
        elites = self._decisions.elites(closed[1]["rounds"] - 1)
        finalists = [each.program for each in elites if (each.mean or 0.0) > 0][: self._settings.finalists]
        known = {tuple(each["ground"]) for each in self._identity["rungs"].values()}
        grounds = [
            Ground(name=name, unseen=self._ground(name) not in known, data=self._data(name, "confirmation"))
            for name in (self._identity["grounds"] if finalists else ())
        ]
        claims = confirm(finalists, grounds, significance=self._settings.significance)
        again = [(each.program, each.rank, each.p_value, each.p_holm, int(each.announced)) for each in claims]
        if again != self._verdicts:
            self._wrong.append(f"The verdicts are {self._verdicts} and replayed they are {again}.")
        return len(again)

    def _compare(self, again: list[Decision], stored: list[Decision]) -> None:
        before = {(each.program, each.kind): each for each in stored}
        after = {(each.program, each.kind): each for each in again}
        for place in sorted(before.keys() | after.keys()):
            if before.get(place) != after.get(place):
                self._wrong.append(f"A decision is {before.get(place)} and replayed it is {after.get(place)}.")

    def _unknown_blocks(self) -> list[str]:
        """Evaluations whose seed is not the one that the run's seed gives to their block."""
        wrong = []
        for program, rung, split, block, seed, twin in self._jobs.places():
            expected = make_blocks(self._identity["seed"], rung, split, block, 1)[0]
            if seed != (twin_of(expected) if twin else expected).training_seed:
                wrong.append(f"Block {block} of rung `{rung}` was run with seed {seed} for `{program}`.")
        return wrong

    def _data(self, rung: str, split: Split, *, before: int | None = None) -> RungData:
        environment = (self._identity["rungs"] | self._identity["unseen"])[rung]["environment"]
        return table(self._jobs.evaluations(rung, environment, split, before=before), self._identity["control"])

    def _ground(self, name: str) -> tuple[str, ...]:
        return tuple((self._identity["rungs"] | self._identity["unseen"])[name]["ground"])
