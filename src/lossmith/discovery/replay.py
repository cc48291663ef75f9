"""Make every decision of a run again, from its rows alone: what a reader can check without trusting the engine."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lossmith.discovery.race.blocks import RungData, make_blocks, playoff_blocks, table, twin_of
from lossmith.discovery.race.confirmation import Claim, Ground, confirm, still_open
from lossmith.discovery.race.halving import Decision, choose_retested, cut, promising
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.rungs.base import Block, Split
from lossmith.discovery.setup import place_of
from lossmith.discovery.store.archive import Archive
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.discovery.store.jobs import Jobs
from lossmith.errors import EvidenceError

_NUMBERS = ("lower", "mean", "sd")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of making all decisions again."""

    decisions: int
    """Decisions that were made again."""
    claims: int
    """Verdicts that were made again."""
    mismatches: tuple[str, ...]
    """One sentence for each that is not what the database says; empty for a run that was not tampered with."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """What came of it, and then every mismatch."""
        verdicts = f"{self.claims} verdict{'' if self.claims == 1 else 's'}"
        many, wrong = len(self.mismatches), f"{self.decisions} decisions and {verdicts} were made again"
        if not many:
            return (f"{wrong} from the rows of the database: all are as they stand there.",)
        return (f"{wrong}, and {many} thing{'s are' if many > 1 else ' is'} not as the rows say.", *self.mismatches)


def replay_run(folder: str | Path) -> Replay:
    """Replay the run in a folder, as far as it has come; nothing in it is changed.

    Raises:
        EvidenceError: If the folder holds no run, or one that has not begun.
    """
    with Database(folder, read_only=True) as database:
        if not database.settings():
            raise EvidenceError(f"The run in `{folder}` has not begun: there is nothing in its database.")
        return replay(database)


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
        self._grounds = database.rows("SELECT program, ground, difference, low, high FROM claim")
        self._wrong: list[str] = []

    def replay(self) -> Replay:
        """Round by round, and then the claims."""
        count, step = 0, 0
        while self._archive.stage(step, "proposed") is not None:
            count += self._round(step)
            step += 1
        count += self._play_off()
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

    def _play_off(self) -> int:
        found = self._archive.find_stage("playoff")
        if found is None or not found[1]["blocks"]:
            return 0
        step, rung = found[0], self._identity["ladder"][-1]
        closed = self._archive.stage(step, "closed")
        assert closed is not None
        rounds = closed["rounds"]
        legs, left_out = playoff_blocks(self._identity["seed"], rung, rounds, self._settings)
        again = chosen = self._decisions.retested(rounds - 1)
        for blocks in legs[: found[1]["blocks"] // self._settings.playoff_blocks]:
            self._compare_runners("The play-off", rung, blocks, [each.program for each in again])
            data = self._data(rung, "search", before=blocks[-1].index + 1, left_out=left_out)
            crowd = [key for key in self._candidates if key in data.fitness]
            chosen = choose_retested(step, rung, data, crowd, self._settings)
            again = [each for each in chosen if each.kind == "elite"]
        self._compare(chosen, self._decisions.all(step=step, rung=rung))
        return len(chosen)

    def _compare_runners(self, what: str, rung: str, blocks: Sequence[Block], programs: Sequence[str]) -> None:
        """Who was measured in a leg of the play-off or on a ground, against who was to be."""
        wanted = {(rung, block.split, block.index) for block in blocks}
        ran = {each[0] for each in self._jobs.places() if each[1:4] in wanted}
        for key in sorted((ran & set(self._candidates)) ^ set(programs)):
            was = "was" if key in ran else "was not"
            self._wrong.append(f"{what} on rung `{rung}`: `{key[:8]}` {was} measured in it.")

    def _claims(self) -> int:
        found = self._archive.find_stage("confirmed")
        closed = self._archive.find_stage("closed")
        if found is None or closed is None:
            return 0
        elites = self._decisions.last_elites(closed[0], closed[1]["rounds"])
        better = promising(elites)
        # How many of them the budget carried was decided by the clock; which they are, is not.
        finalists = better[: max(1, len(found[1]["finalists"]))]
        if finalists != found[1]["finalists"] or len(finalists) > self._settings.finalists:
            self._wrong.append(f"The finalists are {found[1]['finalists']} and replayed they are {finalists}.")
        known = {place_of(each["ground"]) for each in self._identity["rungs"].values()}
        seed, grounds = self._identity["seed"], list[Ground]()
        for name in self._identity["grounds"]:
            left = still_open(finalists, grounds, significance=self._settings.significance)
            blocks = make_blocks(seed, name, "confirmation", 0, self._settings.confirmation_blocks)
            self._compare_runners("The confirmation", name, blocks, left)
            if left:
                data = self._data(name, "confirmation")
                grounds.append(Ground(name=name, unseen=self._ground(name) not in known, data=data))
        claims = confirm(finalists, grounds, significance=self._settings.significance)
        again = [(each.program, each.rank, each.p_value, each.p_holm, int(each.announced)) for each in claims]
        for before, after in zip_longest(self._verdicts, again):
            if before is None or after is None or not _same(before, after):
                self._wrong.append(f"A verdict is {_verdict(before)} and replayed it is {_verdict(after)}.")
        self._compare_grounds(claims)
        return len(again)

    def _compare_grounds(self, claims: Sequence[Claim]) -> None:
        """The differences that the page shows beside a verdict."""
        after = {
            (claim.program, each.ground): (each.comparison.difference, each.comparison.low, each.comparison.high)
            for claim in claims
            for each in claim.grounds
            if each.comparison is not None
        }
        before = {row[:2]: row[2:] for row in self._grounds if row[2] is not None}
        for place in sorted(before.keys() | after.keys()):
            if place not in before or place not in after or not _same(before[place], after[place]):
                program, ground = place
                self._wrong.append(
                    f"The difference of `{program[:8]}` on `{ground}` is {_interval(before.get(place))} and replayed "
                    f"it is {_interval(after.get(place))}."
                )

    def _compare(self, again: list[Decision], stored: list[Decision]) -> None:
        before = {(each.program, each.kind): each for each in stored}
        after = {(each.program, each.kind): each for each in again}
        for place in sorted(before.keys() | after.keys()):
            old, new = before.get(place), after.get(place)
            if old is None or new is None or not _same(astuple(old), astuple(new)):
                self._wrong.append(_mismatch(old, new))

    def _unknown_blocks(self) -> list[str]:
        """Evaluations whose seed is not the one that the run's seed gives to their block."""
        wrong = []
        for program, rung, split, block, seed, twin in self._jobs.places():
            expected = make_blocks(self._identity["seed"], rung, split, block, 1)[0]
            if seed != (twin_of(expected) if twin else expected).training_seed:
                wrong.append(f"Block {block} of rung `{rung}` was run with seed {seed} for `{program}`.")
        return wrong

    def _data(self, rung: str, split: Split, *, before: int | None = None, left_out: range = range(0)) -> RungData:
        environment = (self._identity["rungs"] | self._identity["unseen"])[rung]["environment"]
        rows = self._jobs.evaluations(rung, environment, split, before=before, left_out=left_out)
        return table(rows, self._identity["control"])

    def _ground(self, name: str) -> tuple[str, ...]:
        return place_of((self._identity["rungs"] | self._identity["unseen"])[name]["ground"])


def _same(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Equal, but for the last digits of numbers: another version of a library may sum in another order."""
    return len(before) == len(after) and all(
        math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12)
        if isinstance(old, float) and isinstance(new, float)
        else old == new
        for old, new in zip(before, after, strict=True)
    )


def _mismatch(old: Decision | None, new: Decision | None) -> str:
    known = old or new
    assert known is not None
    where = f"Round {known.step + 1}, rung `{known.rung}`: `{known.program[:8]}`"
    if old is None:
        return f"{where} is not {known.kind} in the database and replayed it is, {_decided(known)}."
    if new is None:
        return f"{where} is {known.kind} in the database, {_decided(known)}, and replayed it is not."
    return f"{where} is {old.kind}, {_decided(old)}, and replayed it is {new.kind}, {_decided(new)}."


def _decided(each: Decision) -> str:
    numbers = ", ".join(
        f"{name} {'none' if value is None else format(value, '.6g')}"
        for name, value in zip(_NUMBERS, (each.lower, each.mean, each.sd), strict=True)
    )
    return f"place {each.rank + 1} with {numbers} over {each.blocks} blocks"


def _verdict(row: Sequence[Any] | None) -> str:
    if row is None:
        return "missing"
    program, rank, p_value, p_holm, announced = row
    said = "announced" if announced else "not announced"
    return f"`{program[:8]}`, finalist {rank + 1}, p {p_value:.4g}, p of all {p_holm:.4g}, {said}"


def _interval(row: Sequence[float] | None) -> str:
    return "missing" if row is None else f"{row[0]:+.6g} [{row[1]:+.6g}, {row[2]:+.6g}]"
