"""A language model writes candidates: asked for several at once, shown what was measured, and told what was refused.

Its prompts hold facts that we computed and nothing that a candidate said of itself. What it replies is text from
outside until the compiler has taken it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lossmith.discovery.costs import Cost
from lossmith.discovery.gate import VerdictLike
from lossmith.discovery.program import INPUTS, ITEM, OPERATORS
from lossmith.discovery.proposers.answers import Answer, read_answers
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal, Standing
from lossmith.discovery.proposers.facts import INPUT_WORDS, MARGIN, describe, digest_of_failures
from lossmith.discovery.proposers.model import MOST_PROMPT, Model, cut
from lossmith.discovery.proposers.programs import to_program
from lossmith.discovery.proposers.prompts import VERSION, fill
from lossmith.discovery.proposers.trusted import bare_source, loss_name, plain_category, plain_reason
from lossmith.errors import ConfigurationError
from lossmith.evaluation.judging import Reply

Check = Callable[[Proposal], VerdictLike]
"""The verdict on a proposal; the gate's `check`."""
MOST_REPAIRS = 2
MOST_REMEMBERED = 200
"""Programs of which the closest published loss is remembered."""
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "candidates": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in ("thought", "name", "code")},
                    "required": ["thought", "name", "code"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["candidates"],
        "additionalProperties": False,
    }
)


@dataclass
class Draft:
    """A candidate on its way: what the model wrote last, and what is wrong with it."""

    answer: Answer
    verdict: VerdictLike | None = None
    repairs: int = 0


class LLMProposer:
    """Asks a model.

    Args:
        model: Whom to ask, and how.
        check: The gate's check; refused candidates go back to the model with the reason. None for no repairs.
        name: Of the arm.
        per_call: Candidates that one request asks for, >= 1.
        repairs: Rounds in which what was refused is written again, in [0, 2].
        elites: Programs that are shown.
        blind: Whether it is told nothing of what was measured or refused, and repairs nothing: independent samples, of
            which the race picks the best.

    Raises:
        ConfigurationError: For a number out of its range.
    """

    def __init__(
        self,
        model: Model,
        *,
        check: Check | None = None,
        name: str = "llm",
        per_call: int = 4,
        repairs: int = MOST_REPAIRS,
        elites: int = 4,
        blind: bool = False,
    ):
        if per_call < 1 or not 0 <= repairs <= MOST_REPAIRS:
            raise ConfigurationError(
                f"`per_call` must be >= 1 and `repairs` in [0, {MOST_REPAIRS}], got {per_call} and {repairs}."
            )
        self.name = name
        self._model, self._check = model, check
        self._per_call, self._elites = per_call, elites
        self._blind = blind
        self._repairs = repairs if check is not None and not blind else 0
        self._nearest: dict[str, tuple[str, float]] = {}

    def expected_cost(self, n: int) -> Cost:
        """The most: every prompt full, every reply as long as it may be, every candidate repaired to the last."""
        first = -(-n // self._per_call)
        return self._model.most(first + self._repairs * n)

    def least_cost(self) -> Cost:
        """One request with a full prompt and a reply as long as it may be."""
        return self._model.most(1)

    def propose(self, context: Context, n: int) -> Batch:
        """Up to `n` candidates as source text; fewer where the model declines or writes something else."""
        seed = int(context.draw(self.name).integers(2**30))
        counts = [min(self._per_call, n - start) for start in range(0, n, self._per_call)]
        calls = [
            self._model.call(self.messages(context, count), prompt=_version("task"), seed=seed + place, schema=SCHEMA)
            for place, count in enumerate(counts)
        ]
        # The ledger's bound holds whatever the endpoint does.
        left = self.expected_cost(n) if context.allowance is None else context.allowance
        replies, cost = self._model.ask(calls, within=left)
        drafts = [
            Draft(answer)
            for count, reply in zip(counts, replies, strict=True)
            if reply is not None
            for answer in read_answers(reply.text, count)
        ]
        for round_ in range(self._repairs):
            cost = cost + self._repair(drafts, seed + 1000 * (round_ + 1), left + -1.0 * cost)
        return Batch(proposals=tuple(self._proposal(draft) for draft in drafts[:n]), cost=cost)

    def messages(self, context: Context, count: int) -> list[tuple[str, str]]:
        """The prompt for `count` candidates, from trusted data only."""
        family = context.family
        control = to_program(context.control, family)
        text = fill(
            "task",
            family=family,
            item=ITEM[family],
            inputs=", ".join(name for name in INPUTS[family] if name in INPUT_WORDS),
            vocabulary="\n".join(f"- {name}: {INPUT_WORDS[name]}" for name in INPUTS[family] if name in INPUT_WORDS),
            operations=operations(),
            margin=MARGIN[family],
            control="(not shown)" if control is None else describe(control),
            elites=self._shown(() if self._blind else context.elites, context),
            failures=digest_of_failures({} if self._blind else context.failures),
            count=count,
        )
        system = fill("system")
        return [("system", system), ("user", cut(text, MOST_PROMPT - len(system)))]

    def observe(self, events: Sequence[Event]) -> None:
        """Remember which published loss a program is closest to; the rest is in the context."""
        for event in events:
            name = loss_name(event.nearest)
            if event.key is not None and name is not None and event.distance is not None:
                self._nearest.pop(event.key, None)
                self._nearest[event.key] = (name, float(event.distance))
        for key in list(self._nearest)[:-MOST_REMEMBERED]:
            del self._nearest[key]

    def state(self) -> dict[str, Any]:
        """What was learnt of programs; neither address nor key."""
        return {"nearest": [[key, *found] for key, found in self._nearest.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._nearest = {str(key): (str(name), float(distance)) for key, name, distance in state["nearest"]}

    def _shown(self, elites: Sequence[Standing], context: Context) -> str:
        shown = []
        for standing in elites[: self._elites]:
            program = to_program(standing.program, context.family)
            if program is not None:
                metric = context.metrics.get(standing.rung, "fitness")
                text = describe(program, nearest=self._nearest.get(standing.key), standing=standing, metric=metric)
                shown.append(cut(text, 4000))
        return "\n\n".join(shown) or "nothing yet"

    def _repair(self, drafts: list[Draft], seed: int, left: Cost) -> Cost:
        """One round: each refused draft is written again where the model can; returns what it cost."""
        assert self._check is not None
        for draft in drafts:
            if draft.verdict is None:
                draft.verdict = self._check(self._proposal(draft))
        broken = [draft for draft in drafts if draft.verdict is not None and not draft.verdict.accepted]
        if not broken:
            return Cost()
        calls = [
            self._model.call(repair_messages(draft), prompt=_version("repair"), seed=seed + place, schema=SCHEMA)
            for place, draft in enumerate(broken)
        ]
        replies, cost = self._model.ask(calls, within=left)
        for draft, reply in zip(broken, replies, strict=True):
            again = _first(reply)
            if again is not None:
                # The name stays: it is the same idea.
                named = replace(again, name=draft.answer.name or again.name)
                draft.answer, draft.verdict, draft.repairs = named, None, draft.repairs + 1
        return cost

    def _proposal(self, draft: Draft) -> Proposal:
        answer, mended = draft.answer, f"[repaired {draft.repairs} times] " if draft.repairs else ""
        return Proposal(proposer=self.name, source=answer.code, name=answer.name, note=mended + answer.thought)


def _first(reply: Reply | None) -> Answer | None:
    answers = [] if reply is None else read_answers(reply.text, 1)
    return answers[0] if answers else None


def repair_messages(draft: Draft) -> list[tuple[str, str]]:
    """The prompt for one repair: the bare code, and the verdict for machines."""
    verdict = draft.verdict
    assert verdict is not None
    refusal = {"category": plain_category(verdict.category), "reason": plain_reason(verdict.reason, draft.answer.code)}
    if verdict.line is not None:
        refusal["line"] = str(verdict.line)
    text = fill("repair", code=bare_source(draft.answer.code), refusal=json.dumps(refusal))
    system = fill("system")
    return [("system", system), ("user", cut(text, MOST_PROMPT - len(system)))]


def operations() -> str:
    """What a candidate may call, as the compiler has it."""
    called = [
        operator.python.split("(")[0].replace("{0}", "x") + ("()" if operator.python.startswith("{0}.") else "")
        for operator in OPERATORS.values()
        if "(" in operator.python
    ]
    return ", ".join(dict.fromkeys([*called, "**"]))


def _version(name: str) -> str:
    return f"discovery/{name}-v{VERSION}"
