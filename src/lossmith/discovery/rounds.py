"""One round of proposals: ask, check, admit, and later tell what became of them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lossmith.discovery.costs import Cost
from lossmith.discovery.gate import VerdictLike
from lossmith.discovery.proposers.base import Batch, Context, Event, ProgramLike, Proposal, Standing, Thrifty
from lossmith.discovery.race.halving import RETESTED, Decision
from lossmith.discovery.rungs.base import HarnessError, InfrastructureError
from lossmith.discovery.setup import Setup
from lossmith.discovery.store.archive import Archive, StoredProgram, StoredProposal
from lossmith.discovery.store.database import Database
from lossmith.discovery.store.ledger import PROPOSER, Ledger
from lossmith.discovery.work import MachineOut

_TRIES = 3
HUMAN = "human"
"""Name of the arms that take people's files, before a number where there are several: their fates are said."""
CHEATS = "cheats"
"""Stage before the first round that holds what the checks said of the cheating canaries."""


@dataclass(kw_only=True)
class Desk:
    """Where proposals come in and verdicts go out."""

    setup: Setup
    database: Database
    archive: Archive
    ledger: Ledger
    programs: dict[str, ProgramLike]
    """Every program of the run by key, in order of admission."""
    say: Callable[[str], None] = lambda sentence: None

    def open(self) -> None:
        """Take up where an earlier session ended, or admit the control and the canaries of a new run."""
        stored = self.archive.programs()
        if not stored:
            refused = self._refuse_cheats()
            with self.database.transaction():
                self.archive.set_stage(-1, CHEATS, refused)
                self._admit(self.setup.control, "control", "control", "", (-1, 0, 0))
                for place, canary in enumerate(self.setup.canaries):
                    if canary.program is not None:
                        self._admit(canary.program, "canary", canary.name, "", (-1, 1, place))
            return
        for each in stored:
            program = self.setup.gate.from_json(each.payload)
            if program.key != each.key:
                raise HarnessError(f"Program `{each.key}` is read back as `{program.key}`.")
            self.programs[each.key] = program
            self._remember(each.role, each.name, program)
        state = self.archive.last_state()
        if state is not None:
            self.setup.proposer.restore(state)

    def ask(self, step: int, elites: Sequence[Standing], keep_back: Cost) -> list[str]:
        """Ask until a round has enough candidates; returns the keys of those that are admitted, in order."""
        settings = self.setup.settings
        if self.archive.stage(step, "proposed") is None:
            for call in range(len(self.archive.calls(step)), settings.calls):
                missing = settings.candidates - len(self._admitted(step))
                if missing <= 0:
                    break
                self._call(step, call, missing, elites, keep_back)
            with self.database.transaction():
                self.archive.set_stage(step, "proposed", {"admitted": len(self._admitted(step))})
        return self._admitted(step)

    def tell(
        self,
        step: int,
        standings: dict[str, Standing],
        decisions: Sequence[Decision],
        cheapest: dict[str, Standing],
    ) -> None:
        """Tell the proposer what became of the round's proposals, and keep its state.

        Args:
            step: The round.
            standings: Of all programs, on the highest rung that each reached.
            decisions: Of the round.
            cheapest: Of all programs, on the cheapest rung.
        """
        if self.archive.stage(step, "observed") is not None:
            return
        order = _places(decisions, [rung.name for rung in self.setup.rungs])
        calls = self.archive.calls(step)
        broken = {each.program for each in decisions if each.kind in ("failed", "unmeasured")}
        events = []
        for each in self.archive.proposals(step):
            returned, cost = calls[each.call]
            kind = each.kind if each.kind != "admitted" else "failed" if each.key in broken else "measured"
            events.append(
                Event(
                    step=step,
                    call=each.call,
                    position=each.position,
                    proposer=each.proposer,
                    kind=kind,  # pyright: ignore[reportArgumentType]
                    category=each.category,
                    reason=each.reason,
                    line=each.line,
                    key=each.key,
                    program=self.programs.get(each.key or ""),
                    parents=each.parents,
                    standing=standings.get(each.key or ""),
                    cheapest=cheapest.get(each.key or ""),
                    nearest=each.nearest,
                    distance=each.distance,
                    rank=order.get(each.key or "") if each.kind == "admitted" else None,
                    cost_share=cost * (1 / returned),
                )
            )
        self.setup.proposer.observe(events)
        self.archive.set_stage(step, "observed", {"events": len(events)}, _plain(self.setup.proposer.state()))

    def _call(self, step: int, call: int, n: int, elites: Sequence[Standing], keep_back: Cost) -> None:
        proposer = self.setup.proposer
        context = Context(
            run_seed=self.setup.seed,
            step=step,
            call=call,
            family=self.setup.gate.family,
            rungs=tuple(rung.name for rung in self.setup.rungs),
            metrics={rung.name: rung.fitness_name for rung in self.setup.rungs},
            control=self.setup.control,
            elites=tuple(elites),
            seen=frozenset(self.programs),
            failures=self.archive.failures(),
        )
        reserved, entry = self._reservation(n, keep_back), f"propose/{step}/{call}"
        self.ledger.check(reserved + keep_back)
        self.ledger.reserve(entry, PROPOSER, reserved)
        begun = time.perf_counter()
        batch = self._answer(replace(context, allowance=reserved), n)
        waited = Cost(wall_seconds=time.perf_counter() - begun)
        # Times are for the ledger alone: what a proposer is told, and what decides, is the same when it is repeated.
        paid = Cost(money_usd=batch.cost.money_usd, tokens=batch.cost.tokens)
        with self.database.transaction():
            stored = []
            for position, proposal in enumerate(batch.proposals[:n]):
                stored.append(self._judge(proposal, (step, call, position)))
            self.archive.save_call(step, call, asked=n, proposals=stored, cost=paid, state=_plain(proposer.state()))
            self.ledger.settle(entry, reserved, batch.cost + waited)
            self.ledger.divide(entry, batch.by_arm)
            self.database.touch()
        for each in stored:
            if each.proposer.split("-")[0] == HUMAN:
                became = f"admitted as {each.key[:8]}" if each.kind == "admitted" and each.key else each.kind
                why = "" if each.kind == "admitted" else f", {each.category}: {each.reason}"
                self.say(f"`{each.name}.py` of people: {became}{why}")

    def _reservation(self, n: int, keep_back: Cost) -> Cost:
        """What is put aside for a call: the most that it takes, or what is left where the proposer keeps to that."""
        expected = self.setup.proposer.expected_cost(n)
        if not isinstance(self.setup.proposer, Thrifty):
            return expected
        left = self.ledger.left(keep_back)
        return replace(
            expected,
            money_usd=min(expected.money_usd, left.money_usd),
            tokens=min(expected.tokens, left.tokens),
        )

    def _answer(self, context: Context, n: int) -> Batch:
        before = _plain(self.setup.proposer.state())
        for attempt in range(_TRIES):
            try:
                return self.setup.proposer.propose(context, n)
            except InfrastructureError as error:
                self.setup.proposer.restore(before)
                if attempt == _TRIES - 1:
                    raise MachineOut(f"Proposer `{self.setup.proposer.name}` gives no answer: {error}") from error
                self.say(f"{error} Asking again, {attempt + 2} of {_TRIES}.")
        raise AssertionError

    def _judge(self, proposal: Proposal, place: tuple[int, int, int]) -> StoredProposal:
        verdict = self.setup.gate.check(proposal)
        program = verdict.program
        key = None if program is None else program.key
        kind, category, reason = "rejected", verdict.category, verdict.reason
        if key is not None and key in self.programs:
            kind, reason = "duplicate", reason or f"The run knows it as `{key}`."
            category = category if category.startswith("duplicate") else "duplicate-of-run"
        elif verdict.accepted and program is not None:
            kind = "admitted"
            self._admit(program, "candidate", proposal.name, proposal.proposer, place)
        elif category.startswith("duplicate"):
            kind, original = "duplicate", category.removeprefix("duplicate-of-")
            key = original if original in self.programs else key
        if category in {f"duplicate-of-{each.name}" for each in self.setup.canaries if each.kind == "bad"}:
            reason += " That is the control with all labels wrong, which the run measures as a canary: flip the sign."
        return _stored(proposal, verdict, kind, category, reason, key, place)

    def _admit(self, program: ProgramLike, role: str, name: str, proposer: str, place: tuple[int, int, int]) -> None:
        step, call, position = place
        payload = _plain(program.to_json())
        back = self.setup.gate.from_json(payload)
        if back.key != program.key:
            raise HarnessError(f"Program `{program.key}` is read back from its own JSON as `{back.key}`.")
        self.archive.add_program(
            StoredProgram(
                key=program.key, role=role, name=name, proposer=proposer, step=step, call=call, position=position,
                payload=payload,
            )
        )  # fmt: skip
        # What was read back is used from here on, so that a resumed run works with the same objects.
        self.programs[program.key] = back
        self._remember(role, name, back)

    def _remember(self, role: str, name: str, program: ProgramLike) -> None:
        # Candidates go by key, so that a duplicate's verdict leads to the original; control and canaries by name.
        self.setup.gate.remember(program.key if role == "candidate" else name, program)

    def _admitted(self, step: int) -> list[str]:
        return [each.key for each in self.archive.proposals(step) if each.kind == "admitted" and each.key]

    def _refuse_cheats(self) -> dict[str, dict[str, str]]:
        """What the checks said of each cheating canary, by its name."""
        refused = {}
        for canary in self.setup.canaries:
            if canary.kind == "cheating" and canary.proposal is not None:
                verdict = self.setup.gate.check(canary.proposal)
                if verdict.accepted:
                    raise HarnessError(f"The cheating canary `{canary.name}` was admitted: the checks do not work.")
                refused[canary.name] = {"category": verdict.category, "reason": verdict.reason}
        return refused


def _stored(
    proposal: Proposal,
    verdict: VerdictLike,
    kind: str,
    category: str,
    reason: str,
    key: str | None,
    place: tuple[int, int, int],
) -> StoredProposal:
    nearest = verdict.nearest
    return StoredProposal(
        step=place[0],
        call=place[1],
        position=place[2],
        proposer=proposal.proposer,
        kind=kind,
        category=category,
        reason=reason,
        line=verdict.line,
        key=key,
        name=proposal.name,
        note=proposal.note,
        source=proposal.source,
        parents=proposal.parents,
        flags=tuple(verdict.flags),
        nearest=None if nearest is None else nearest.name,
        distance=None if nearest is None else float(nearest.distance),
    )


def _places(decisions: Sequence[Decision], rungs: Sequence[str]) -> dict[str, int]:
    """Key -> place in the round: those that came furthest first, and by rank on the rung where they ended."""
    last: dict[str, tuple[int, int]] = {}
    for each in decisions:
        if each.kind not in RETESTED:
            reached = rungs.index(each.rung)
            if each.program not in last or -reached < last[each.program][0]:
                last[each.program] = (-reached, each.rank)
    return {key: place for place, key in enumerate(sorted(last, key=lambda key: (*last[key], key)))}


def _plain(value: Any) -> Any:
    """The value as it comes back from the database: a state that is no plain JSON fails here and not after a kill."""
    return json.loads(json.dumps(value, allow_nan=False))
