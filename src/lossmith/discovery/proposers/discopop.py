"""The prompt protocol of DiscoPOP (Lu et al. 2024, arXiv 2406.08414) as one strategy, to be compared with ours.

One chat that grows: role, signature and form of the answers, the known objectives with their fitness, then objective
after objective, each answered by its fitness or its error. As there: no population, no choice of parents, no repeats.
Otherwise than there: fitness is measured on the user's own cheapest rung against the control, that of the known
objectives too, and told with its interval; candidates are compiled and checked, so an error is a category with a
reason; and the chat shows code as we read it, without the thoughts, names and comments of the model, since no text of a
candidate enters a prompt.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lossmith.discovery.costs import Cost
from lossmith.discovery.program import Node, Program, const, make, replace, setting, to_python
from lossmith.discovery.proposers.answers import Answer, read_answers
from lossmith.discovery.proposers.base import Batch, Context, Event, ProgramLike, Proposal, Standing
from lossmith.discovery.proposers.llm import Check
from lossmith.discovery.proposers.model import MOST_PROMPT, Model
from lossmith.discovery.proposers.programs import to_program
from lossmith.discovery.proposers.prompts import VERSION, fill
from lossmith.discovery.proposers.trusted import bare_source, plain_category, plain_reason
from lossmith.discovery.proposers.vocabulary import vocabulary
from lossmith.discovery.race.blocks import make_blocks
from lossmith.discovery.rungs.base import Block, CandidateError, HarnessError, Rung
from lossmith.errors import ConfigurationError

BETA = 0.05
"""`self.beta` of the paper's search."""
SEED_BLOCKS = 4
"""Blocks in which the known objectives meet the control: the run's own first ones on its cheapest rung."""
NAMES = {
    "ref_chosen_logps": "reference_chosen_logps",
    "ref_rejected_logps": "reference_rejected_logps",
    "chosen_logps": "policy_chosen_logps",
    "rejected_logps": "policy_rejected_logps",
}
"""Our inputs -> the paper's."""
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("thought", "name", "code")},
        "required": ["thought", "name", "code"],
        "additionalProperties": False,
    }
)


@dataclass
class Turn:
    """One objective of the chat."""

    code: str
    """Ours, or bare: nothing of it is the model's words."""
    feedback: str = ""
    """Its fitness or error; empty while it is being measured."""
    place: tuple[int, int, int] = (-1, -1, -1)
    """Round, call and position of its proposal."""


class DiscoPOPProposer:
    """Asks for one objective after the other in one chat.

    Args:
        model: Whom to ask, and how.
        rung: The run's cheapest one, on which all fitness is told. The known objectives are measured on it when the
            proposer is asked for the first time, as a part of that call's cost, and their fitness is kept in the state.
        control: What the run compares with.
        check: The gate's check: an objective that is refused is answered at once, within the same call. Without it the
            error is told in the next round.
        name: Of the arm.

    Raises:
        ConfigurationError: If the rung needs a process of its own, which a proposer has not.
    """

    def __init__(
        self, model: Model, *, rung: Rung, control: Program, check: Check | None = None, name: str = "discopop"
    ):
        if getattr(rung, "apart", False):
            raise ConfigurationError(
                f"`--proposer discopop` measures {len(seed_programs())} known objectives on the cheapest rung first, "
                f"which must be toy or tiny, got '{rung.name}': put one of them before it in `--rungs`."
            )
        self.name = name
        self._model, self._check, self._rung, self._control = model, check, rung, control
        self._seeds: dict[str, float] = {}
        self._turns: list[Turn] = []

    def expected_cost(self, n: int) -> Cost:
        """The most: `n` requests with the whole chat each, and once the measurement of the known objectives."""
        return self._model.most(n) + (Cost() if self._seeds else seeds_cost(self._rung))

    def least_cost(self) -> Cost:
        """One request with the whole chat, and once the measurement of the known objectives."""
        return self.expected_cost(1)

    def propose(self, context: Context, n: int) -> Batch:
        """Up to `n` objectives, asked for one by one; those that are not measured yet are said to be.

        Raises:
            ConfigurationError: If the family is another one.
            HarnessError: If a known objective breaks on the rung.
        """
        if context.family != "preference":
            raise ConfigurationError(f"The protocol of DiscoPOP is for preference losses, not for '{context.family}'.")
        seed, cost, found = int(context.draw(self.name).integers(2**30)), Cost(), []
        if not self._seeds:
            blocks = make_blocks(context.run_seed, self._rung.name, "search", 0, SEED_BLOCKS)
            # What the rung declares and not what the clock says: a call that is repeated after a kill costs the same.
            self._seeds, cost = measure_seeds(self._rung, self._control, blocks), seeds_cost(self._rung)
        allowance = self.expected_cost(n) if context.allowance is None else context.allowance
        for asked in range(n):
            call = self._model.call(
                self.messages(), prompt=f"discovery/discopop-v{VERSION}", seed=seed + asked, schema=SCHEMA
            )
            left = allowance + -1.0 * cost
            if not self._model.fits(call, left):
                break
            (reply,), spent = self._model.ask([call], within=left)
            cost = cost + spent
            answers = [] if reply is None else read_answers(reply.text, 1)
            if not answers:
                self._turns.append(Turn("", "That was not the JSON object with thought, name and code."))
                continue
            proposal = self._proposal(answers[0])
            self._turns.append(self._turn(proposal, (context.step, context.call, len(found))))
            found.append(proposal)
        return Batch(proposals=tuple(found), cost=cost)

    def messages(self) -> list[tuple[str, str]]:
        """The chat so far; the oldest objectives are left out where it grows too long."""
        rung = self._rung
        system = fill("discopop_system", name="objective_name", beta=BETA, metric=rung.fitness_name, rung=rung.name)
        opening = fill("discopop_archive", archive=archive_text(self._seeds, rung.name))
        left, turns = MOST_PROMPT - len(system) - len(opening) - 500, []
        for place in range(len(self._turns) - 1, -1, -1):
            said, told = _spoken(place, self._turns[place])
            left -= len(said) + len(told)
            if left < 0:
                break
            turns = [("assistant", said), ("user", told), *turns]
        return [("system", system), ("user", opening), *turns]

    def observe(self, events: Sequence[Event]) -> None:
        """Answer the objectives of the round."""
        told = {(event.step, event.call, event.position): event for event in events if event.proposer == self.name}
        for turn in self._turns:
            event = told.get(turn.place)
            # Told at once where a check was at hand, which knew the candidate's words.
            if event is not None and not (event.kind == "rejected" and turn.feedback):
                turn.feedback = feedback(event)
                program = to_program(event.program, "preference")
                turn.code = turn.code if program is None else paper_code(program)

    def state(self) -> dict[str, Any]:
        """The chat, and what was measured of the known objectives."""
        return {
            "turns": [[turn.code, turn.feedback, list(turn.place)] for turn in self._turns],
            "seeds": {"rung": self._rung.name, "environment": self._rung.environment, "fitness": dict(self._seeds)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up; the known objectives are measured again where they were measured on something else."""
        seeds, self._turns, self._seeds = state["seeds"], [], {}
        if (seeds["rung"], seeds["environment"]) == (self._rung.name, self._rung.environment):
            self._seeds = {str(name): float(value) for name, value in seeds["fitness"].items()}
        for code, told, place in state["turns"]:
            step, call, position = place
            self._turns.append(Turn(str(code), str(told), (int(step), int(call), int(position))))

    def _proposal(self, answer: Answer) -> Proposal:
        return Proposal(
            proposer=self.name, source=answer.code, signature="discopop", name=answer.name, note=answer.thought
        )

    def _turn(self, proposal: Proposal, place: tuple[int, int, int]) -> Turn:
        turn = Turn(bare_source(proposal.source or ""), place=place)
        verdict = None if self._check is None else self._check(proposal)
        if verdict is not None:
            program = to_program(verdict.program, "preference")
            turn.code = turn.code if program is None else paper_code(program)
            if not verdict.accepted:
                turn.feedback = _error(verdict.category, verdict.reason, proposal.source or "")
        return turn


def _spoken(place: int, turn: Turn) -> tuple[str, str]:
    name = f"objective_{place + 1}"
    said = json.dumps({"thought": "(left out)", "name": name, "code": turn.code})
    told = turn.feedback or "It is valid and is being measured with others; its fitness comes later."
    return said, f"{told}\nPropose the next objective."


def feedback(event: Event) -> str:
    """What the chat is told of one objective."""
    if event.kind == "duplicate" and event.standing is None:
        return _error(plain_category(event.category), "It is known already.")
    if event.kind == "rejected":
        return _error(event.category, event.reason)
    standing = event.cheapest or event.standing
    if event.kind == "failed" or standing is None:
        return "It was valid, but training with it broke: its loss or gradient stopped being finite."
    return _fitness(standing)


def _fitness(standing: Standing) -> str:
    return (
        f"Fitness on the rung {standing.rung}: {standing.mean:+.4g}, interval [{standing.low:.4g}, "
        f"{standing.high:.4g}] over {standing.blocks} paired runs."
    )


def _error(category: str, reason: str, source: str = "") -> str:
    return f"The code is not valid. {plain_category(category)}: {plain_reason(reason, source)}"


def paper_code(program: Program, name: str = "objective") -> str:
    """A program with the paper's signature; a hyper-parameter `beta` is `self.beta` where it has that value."""
    keep = program.hyperparameters.get("beta") == BETA
    values = {
        setting(key): const(value) for key, value in program.hyperparameters.items() if not (keep and key == "beta")
    }
    root = replace(program.root, values) if values else program.root
    text = to_python(Program(program.family, root, {"beta": BETA} if keep else {}), name)
    body = text.split("\n", 1)[1]
    for ours, paper in NAMES.items():
        body = re.sub(rf"(?<![A-Za-z_]){ours}\b", paper, body)
    body = re.sub(r"\bbeta\b", "self.beta", body) if keep else body
    return f"def {name}(self, {', '.join(sorted(NAMES.values(), key=_paper_order))}):\n{body}".rstrip()


def _paper_order(name: str) -> tuple[bool, bool]:
    return (name.startswith("reference"), "rejected" in name)


def seed_programs(beta: float = BETA) -> dict[str, Program]:
    """The four objectives that the paper's chat begins with, as programs with a number per pair.

    KTO's two numbers per pair, one per completion, are averaged.
    """
    words = vocabulary("preference")
    chosen, rejected = words.atoms[1][0], words.atoms[2][0]
    strength = setting("beta")
    x = make("mul", strength, words.margin)

    def above(left: Node, right: Node) -> Node:
        shifted = make("sub", left, make("relu", make("mean_batch", right)))
        return make("sub", const(1), make("sigmoid", make("mul", strength, shifted)))

    def below(left: Node, right: Node) -> Node:
        shifted = make("sub", make("relu", make("mean_batch", left)), right)
        return make("sub", const(1), make("sigmoid", make("mul", strength, shifted)))

    target = make("div", const(1), make("mul", const(2), strength))
    roots = {
        "dpo": make("neg", make("logsigmoid", x)),
        "hinge": make("relu", make("sub", const(1), x)),
        "ipo": make("square", make("sub", words.margin, target)),
        "kto_pair": make("div", make("add", above(chosen, rejected), below(chosen, rejected)), const(2)),
    }
    return {name: Program("preference", root, {"beta": beta}) for name, root in roots.items()}


def seeds_cost(rung: Rung) -> Cost:
    """What the measurement of the known objectives is declared to take: they and the control in each block."""
    return (SEED_BLOCKS * (len(seed_programs()) + 1)) * rung.cost


def measure_seeds(rung: Rung, control: Program, blocks: Sequence[Block]) -> dict[str, float]:
    """Fitness of the known objectives as the chat counts it: mean difference to the control over the same blocks.

    Raises:
        HarnessError: If one of them breaks: they are known to train.
    """
    programs = seed_programs()
    differences: dict[str, list[float]] = {name: [] for name in programs}
    for block in blocks:
        base = _measured(rung, "control", control, block)
        for name, program in programs.items():
            differences[name].append(_measured(rung, name, program, block) - base)
    return {name: sum(found) / len(found) for name, found in differences.items()}


def _measured(rung: Rung, name: str, program: Program, block: Block) -> float:
    try:
        # Type checkers do not take the cached key of a program for the property of `ProgramLike`.
        return rung.evaluate(cast(ProgramLike, program), block).fitness
    except CandidateError as error:
        raise HarnessError(
            f"The known objective `{name}` broke on the rung `{rung.name}`, block {block.index}: {error}"
        ) from error


def archive_text(fitness: Mapping[str, float], rung: str) -> str:
    """The seeds as the chat begins with them, the best first."""
    programs = seed_programs()
    ordered = sorted(programs, key=lambda name: (-fitness[name], name))
    return "\n\n".join(
        f"{paper_code(programs[name], name)}\nFitness on the rung {rung}: {fitness[name]:+.4g}" for name in ordered
    )
