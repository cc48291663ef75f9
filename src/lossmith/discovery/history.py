"""A run as it is in its database: all that a report or an export asks of it, read and never written."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.discovery.controls import canaries_of
from lossmith.discovery.costs import RESOURCES, ZERO, Budget, Cost
from lossmith.discovery.program import Program, ProgramError, from_json
from lossmith.discovery.race.audit import RungAudit, audit_rungs
from lossmith.discovery.race.blocks import RungData, table
from lossmith.discovery.race.canaries import CanaryFinding, inspect
from lossmith.discovery.race.estimates import Estimate, estimate
from lossmith.discovery.race.halving import RETESTED, Decision
from lossmith.discovery.race.settings import RaceSettings
from lossmith.discovery.rounds import CHEATS
from lossmith.discovery.rungs.base import Split
from lossmith.discovery.store.archive import Archive, StoredProgram, StoredProposal
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.decisions import Decisions
from lossmith.discovery.store.jobs import Evaluation, Jobs
from lossmith.discovery.store.ledger import PROPOSER, Ledger
from lossmith.errors import ConfigurationError, EvidenceError


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One finalist on one ground of the confirmation."""

    program: str
    ground: str
    unseen: bool
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    blocks: int
    noise_half_width: float | None


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """What may be said of one finalist."""

    program: str
    rank: int
    p_value: float
    p_holm: float
    announced: bool


@dataclass(frozen=True, kw_only=True)
class History:
    """One run."""

    folder: Path
    settings: Mapping[str, Any]
    stored: Mapping[str, StoredProgram]
    """Key -> program as it was admitted, in order."""
    programs: Mapping[str, Program]
    proposals: Sequence[StoredProposal]
    decisions: Sequence[Decision]
    claims: Sequence[ClaimRow]
    verdicts: Sequence[VerdictRow]
    evaluations: Mapping[tuple[str, Split], Sequence[Evaluation]]
    """Rung and split -> evaluations: the search from the cheapest rung on, then the confirmation."""
    device_seconds: Mapping[str, float]
    """Program -> seconds that its evaluations took, on all rungs."""
    spend: Mapping[str, Cost]
    """Kind of entry in the ledger -> what was settled; `proposer` is all arms together."""
    asked: Mapping[tuple[int, int, str], Cost]
    """Round, call and arm -> what its proposals took, and its own time; empty for runs that did not measure it."""
    wall_seconds: float
    closed: Mapping[str, Any] | None
    """Why the search ended; None where it goes on."""
    cheats: Mapping[str, Mapping[str, str]] | None
    """Name of a cheating canary -> category and reason of its refusal; None in runs that did not keep them."""
    playoff_blocks: int
    """Blocks of the play-off between search and confirmation."""
    confirmed: bool
    """Whether the confirmation is done, of all finalists or because there are none."""
    ended: str | None
    """How the last session ended; None where it was killed."""

    @property
    def commands(self) -> list[str]:
        """Command lines of the sessions, each once, with the run's seed; none for runs made from Python or before."""
        given = [self.settings.get("command"), *(each.get("command") for each in self.sessions)]
        return [_with_seed(command, self.settings["seed"]) for command in dict.fromkeys(given) if command]

    @property
    def family(self) -> str:
        """`preference`, `token` or `metric`."""
        return str(self.settings["family"])

    @property
    def control(self) -> str:
        """Key of what is to be beaten."""
        return str(self.settings["control"])

    @property
    def sources(self) -> Mapping[str, Any]:
        """The model and the folders that proposals came from; empty where there were none."""
        return self.settings.get("sources", {})

    @property
    def sessions(self) -> Sequence[Mapping[str, Any]]:
        """Date, version, commit and command of each session, and host and prices of a model; newest last."""
        return self.settings.get("sessions", [])

    @property
    def rungs(self) -> list[str]:
        """Names of the search's rungs, cheapest first."""
        return _ladder(self.settings)

    @property
    def scope(self) -> str:
        """How far what was found may be carried, in a sentence; empty where a task of the user's was trained on."""
        if not set(self.rungs) <= {"toy", "tiny"}:
            return ""
        return (
            "It was trained on lossmith's own small worlds alone, where a share of the labels is wrong: what bears "
            "wrong labels wins there, and need not on your task (--task, or a file of yours)."
        )

    def not_asked(self, key: str) -> list[str]:
        """Grounds that a finalist was not asked on, since they could not have changed its verdict."""
        asked = {each.ground for each in self.claims if each.program == key}
        return [name for name in self.settings["grounds"] if name not in asked]

    @property
    def race(self) -> RaceSettings:
        """How it was raced."""
        stored: dict[str, Any] = dict(self.settings["race"])
        stored["blocks"] = tuple(stored["blocks"])
        return RaceSettings(**stored)

    @property
    def rounds(self) -> int:
        """Rounds of which something was decided; neither the play-off nor a round that was abandoned is one."""
        if self.closed is not None:
            return int(self.closed["rounds"])
        return 1 + max((each.step for each in self.decisions if each.kind not in RETESTED), default=-1)

    @cached_property
    def candidates(self) -> list[str]:
        """Keys of the admitted candidates, in order."""
        return [key for key, each in self.stored.items() if each.role == "candidate"]

    def name_of(self, key: str) -> str:
        """What to call a program: the first letters of its key, with its name where it has one."""
        each = self.stored.get(key)
        if each is None:
            return key[:8]
        label = "control" if each.role == "control" else each.name
        return f"{key[:8]} {label}".strip() if each.role == "candidate" else label or key[:8]

    def data(self, rung: str, split: Split = "search") -> RungData:
        """The evaluations of a rung as a table."""
        return table(self.evaluations.get((rung, split), ()), self.control)

    def estimates(self, rung: str) -> dict[str, Estimate]:
        """Posteriors of all candidates that a rung measured."""
        data = self.data(rung)
        return estimate(data, [key for key in self.candidates if key in data.fitness])[1]

    def elites(self) -> list[Decision]:
        """The elites of the last round that has any, best first."""
        found = [each for each in self.decisions if each.kind == "elite"]
        last = max((each.step for each in found), default=-1)
        return sorted((each for each in found if each.step == last), key=lambda each: each.rank)

    def announced(self) -> list[str]:
        """Keys of the programs that the run claims to be better than the control, best first."""
        return [each.program for each in self.verdicts if each.announced]

    def audits(self) -> list[RungAudit]:
        """Every rung against the next."""
        return audit_rungs(self.decisions, self.rungs, self.race)

    def canaries(self) -> list[CanaryFinding]:
        """What the canaries say on every rung, search and confirmation."""
        known = canaries_of(self.family, synthetic=True)
        wanted = [each for each in known if each.program is not None and each.program.key in self.stored]
        found = []
        for (rung, split), rows in self.evaluations.items():
            data = table(rows, self.control)
            noise, _ = estimate(data, list(data.fitness))
            place = rung if split == "search" else f"{rung}, confirmation"
            found += inspect(place, data, wanted, noise)
        return found

    def find(self, word: str) -> str:
        """The key of a program from a few letters of it, or from `winner` or `best`.

        Raises:
            ConfigurationError: If none or several fit.
        """
        if word in ("winner", "best"):
            best = [*self.announced(), *(each.program for each in self.elites())]
            if word == "winner" and not self.announced():
                raise ConfigurationError(
                    f"The run in `{self.folder}` announced no winner: `best` exports its first elite all the same."
                )
            if not best:
                raise ConfigurationError(f"The run in `{self.folder}` has no elite yet.")
            return best[0]
        found = [key for key in self.programs if key.startswith(word)] if word else []
        if len(found) != 1:
            many = f"fits {len(found)} programs" if found else "is none of them"
            raise ConfigurationError(
                f"`WINNER` must be the first letters of one program's key, `winner` or `best`, and '{word}' {many}."
                f"{did_you_mean(word, [key[:8] for key in self.programs])}"
            )
        return found[0]


def open_history(folder: str | Path) -> History:
    """Read the run in a folder.

    Raises:
        EvidenceError: If there is none, or one whose candidates are no programs.
    """
    folder = Path(folder)
    with Database(folder, read_only=True) as database:
        settings = database.settings()
        if not settings:
            raise EvidenceError(f"The run in `{folder}` has not begun: there is nothing in its database.")
        archive, jobs = Archive(database), Jobs(database)
        stored = {each.key: each for each in archive.programs()}
        described = {**settings["rungs"], **settings["unseen"]}
        grounds = list(dict.fromkeys([*_ladder(settings), *described]))
        evaluations: dict[tuple[str, Split], list[Evaluation]] = {}
        for split in ("search", "confirmation"):
            for name in grounds:
                rows = jobs.evaluations(name, described[name]["environment"], split)
                if rows:
                    evaluations[name, split] = rows
        found = archive.find_stage("closed")
        sessions = database.rows("SELECT seconds, ended FROM session ORDER BY id")
        played = archive.find_stage("playoff")
        return History(
            folder=folder,
            settings=settings,
            stored=stored,
            programs=_programs(stored, folder),
            proposals=archive.proposals(),
            decisions=Decisions(database).all(),
            claims=_claims(database),
            verdicts=_verdicts(database),
            evaluations=evaluations,
            device_seconds=dict(
                database.rows(
                    "SELECT program, SUM(device_seconds) FROM evaluation WHERE split = 'search' GROUP BY program"
                )
            ),
            spend=_spend(database, grounds),
            asked=_asked(database),
            wall_seconds=sum(row[0] for row in sessions),
            closed=None if found is None else found[1],
            cheats=archive.stage(-1, CHEATS),
            playoff_blocks=0 if played is None else int(played[1]["blocks"]),
            confirmed=archive.find_stage("confirmed") is not None,
            ended=sessions[-1][1] if sessions else None,
        )


def _with_seed(command: str, seed: int) -> str:
    """The command with `--seed` where it relied on the default.

    Example:
        >>> _with_seed("lossmith discover token", 0), _with_seed("lossmith discover token --seed=3", 3)
        ('lossmith discover token --seed 0', 'lossmith discover token --seed=3')
    """
    told = any(word == "--seed" or word.startswith("--seed=") for word in shlex.split(command))
    return command if told else f"{command} --seed {seed}"


def _ladder(settings: Mapping[str, Any]) -> list[str]:
    return list(settings.get("ladder") or settings["rungs"])


def _programs(stored: Mapping[str, StoredProgram], folder: Path) -> dict[str, Program]:
    try:
        return {
            key: from_json(each.payload if isinstance(each.payload, str) else json.dumps(each.payload))
            for key, each in stored.items()
        }
    except ProgramError as error:
        raise EvidenceError(f"The run in `{folder}` holds something that is no program: {error}") from error


def _claims(database: Database) -> list[ClaimRow]:
    names = list(ClaimRow.__dataclass_fields__)
    rows = database.rows(f"SELECT {', '.join(names)} FROM claim ORDER BY program, unseen, ground")
    found: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
    for each in found:
        each["unseen"] = bool(each["unseen"])
    return [ClaimRow(**each) for each in found]


def _verdicts(database: Database) -> list[VerdictRow]:
    names = list(VerdictRow.__dataclass_fields__)
    rows = database.rows(f"SELECT {', '.join(names)} FROM verdict ORDER BY rank")
    found: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
    for each in found:
        each["announced"] = bool(each["announced"])
    return [VerdictRow(**each) for each in found]


def _asked(database: Database) -> dict[tuple[int, int, str], Cost]:
    columns = ", ".join(f"{name}_settled + {name}_lost" for name in RESOURCES)
    rows = database.rows(f"SELECT entry, {columns} FROM ledger WHERE kind LIKE '{PROPOSER}/%' ORDER BY entry")
    found = {}
    for row in rows:
        _, step, call, arm = row[0].split("/", 3)
        found[int(step), int(call), arm] = Cost(**dict(zip(RESOURCES, row[1:], strict=True)))
    return found


def _spend(database: Database, grounds: Sequence[str]) -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    for kind, cost in Ledger(database, Budget()).by_kind().items():
        whole = PROPOSER if kind.startswith(f"{PROPOSER}/") else kind
        found[whole] = found.get(whole, ZERO) + cost
    order = [PROPOSER, *(f"rung/{name}/{split}" for split in ("search", "confirmation") for name in grounds)]
    return {kind: found[kind] for kind in dict.fromkeys([*order, *found]) if kind in found}
