"""MT-Bench: 80 two-turn questions, each answer graded alone from 1 to 10 by a judge."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from lossmith.errors import DataError
from lossmith.evaluation.judging.answer_files import AnswerRow, AnswerSet
from lossmith.evaluation.judging.calls import Reply
from lossmith.evaluation.judging.intervals import Level, level
from lossmith.evaluation.judging.judge import Inquiry, Judge, Judged, Judgement
from lossmith.evaluation.judging.prompts import grade_call
from lossmith.evaluation.judging.verdicts import (
    HIGHEST,
    LOWEST,
    Verdict,
    holds_verdict,
    read_checked_rating,
    read_rating,
)
from lossmith.evidence import PairedComparison, paired_t

REPLY_TOKENS = 2048
"""Room for a reply, as the released code gives it."""

TURNS = 2
LEAST_SHARED = 2
"""Questions that two models must share to be compared."""


class TwoTurns(Protocol):
    """What is read of a question of MT-Bench."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def category(self) -> str:
        """One of eight."""
        ...

    @property
    def turns(self) -> Sequence[str]:
        """What the user says, turn by turn."""
        ...

    @property
    def references(self) -> Sequence[str]:
        """Right answers by turn, for math, reasoning and coding; else none."""
        ...


@dataclass(frozen=True, kw_only=True)
class MtBenchResult:
    """How a judge graded one model's answers."""

    model: str
    """Whose answers."""
    judge: str
    """Who graded."""
    score: Level
    """Mean over all graded turns, 1 to 10."""
    turns: tuple[Level, ...]
    """Of the first and the second turn."""
    categories: dict[str, Level]
    """By kind of question."""
    if_missing_were: tuple[float, float]
    """The mean if every missing verdict were 1, and if it were 10."""
    missing: dict[str, int]
    """Why verdicts are missing, with how often; they are not in the means."""
    graded: int
    """Turns with a verdict, repeats included."""
    not_asked: int
    """Turns that the asking did not reach."""
    stopped: str
    """Why not all were asked; empty where they were."""
    unanswered: int
    """Questions of the benchmark that the model did not answer."""
    asked_with_check: int
    """Turns, repeats included, that were asked with a check word, since an answer in them holds a verdict."""
    suspicious: tuple[str, ...]
    """Ids of answers that hold a verdict or a delimiter of the prompt: read what the judge made of them."""
    judgements: tuple[Judgement, ...]
    """One by one."""
    sent: int
    """Requests that this took now."""
    tokens: int
    """Tokens that they cost."""

    @property
    def by_question(self) -> dict[str, float]:
        """Mean over the turns of each question that has verdicts for both."""
        values: dict[str, dict[str, list[float]]] = {}
        for one in self.judgements:
            own = values.setdefault(one.id, {}).setdefault(one.part.split(",")[0], [])
            own += [] if one.value is None else [one.value]
        return {
            name: float(np.mean([np.mean(own) for own in parts.values()]))
            for name, parts in values.items()
            if all(parts.values())
        }

    def to_dict(self) -> dict[str, Any]:
        """All but the single judgements, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "judgements"}


@dataclass(frozen=True, kw_only=True)
class MtBenchComparison:
    """Two models on the questions that both have verdicts for."""

    model: str
    """The one compared."""
    baseline: str
    """With this one."""
    difference: Level
    """Mean of the differences by question, with the bootstrap interval over questions."""
    paired: PairedComparison
    """The paired t and the sign-flip test over questions."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def grade(questions: Sequence[TwoTurns], answers: AnswerSet, judge: Judge, *, seed: int = 0) -> MtBenchResult:
    """Let a judge grade both turns of every answered question.

    The second turn is shown with the first, as published. Where a question has a reference, the prompts with the
    reference are used. A question that is not answered is counted, and is in no mean.

    Args:
        questions: The benchmark, as `lossmith.tasks.load_mt_bench()` gives it.
        answers: The model's answers, one per turn.
        judge: Who grades.
        seed: Of the bootstrap over questions.

    Raises:
        DataError: If no question is answered, or an answer has not two turns.
        JudgeError: If the judge cannot be asked or never keeps to the format.

    Source:
        Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", https://arxiv.org/abs/2306.05685;
        single-answer grading of github.com/lm-sys/FastChat. Deviation: the released code takes the first `[[n]]` or
        `[n]` of a reply, wherever it stands; here it is the last `[[n]]` that is the judge's own. Behind the prompts of
        answers that hold such a verdict themselves stands one line more, which asks for the rating beside a check word.
    """
    found = judge.ask(grading(questions, answers, judge))
    unanswered = len({question.id for question in questions} - set(answers.rows))
    return _result(answers, judge.model, found, unanswered, seed)


def compare_grades(candidate: MtBenchResult, baseline: MtBenchResult, *, seed: int = 0) -> MtBenchComparison:
    """Two models, graded by one judge, question by question.

    Raises:
        DataError: If the judges differ, or fewer than two questions have all verdicts for both.
    """
    if candidate.judge != baseline.judge:
        raise DataError(f"Grades must come from one judge, got '{candidate.judge}' and '{baseline.judge}'.")
    ours, theirs = candidate.by_question, baseline.by_question
    shared = [name for name in ours if name in theirs]
    if len(shared) < LEAST_SHARED:
        raise DataError(f"Models must share at least {LEAST_SHARED} questions with all verdicts, got {len(shared)}.")
    return MtBenchComparison(
        model=candidate.model,
        baseline=baseline.model,
        difference=level([[ours[name] - theirs[name]] for name in shared], seed=seed),
        paired=paired_t([theirs[name] for name in shared], [ours[name] for name in shared]),
    )


def grading(questions: Sequence[TwoTurns], answers: AnswerSet, judge: Judge) -> list[Inquiry]:
    """What the judge is asked about the answered questions.

    Raises:
        DataError: If there are none, or an answer has not two turns.
    """
    return [
        _question(question, answers.rows[question.id], turn, judge, repeat)
        for question in _answered(questions, answers)
        for turn in range(TURNS)
        for repeat in range(judge.repeats)
    ]


def check_comparable(questions: Sequence[TwoTurns], answers: AnswerSet, baseline: AnswerSet) -> None:
    """Find before the first call whether both models can be graded and compared.

    Raises:
        DataError: If one of them cannot be graded, or they share fewer than two questions.
    """
    ours, theirs = ({question.id for question in _answered(questions, own)} for own in (answers, baseline))
    if len(ours & theirs) < LEAST_SHARED:
        raise DataError(
            f"The answers of '{answers.model}' and '{baseline.model}' must share at least {LEAST_SHARED} MT-Bench "
            f"questions to be compared, got {len(ours & theirs)}."
        )


def _answered(questions: Sequence[TwoTurns], answers: AnswerSet) -> list[TwoTurns]:
    known = {question.id: question for question in questions}
    answered = [known[name] for name in answers.rows if name in known]
    if not answered:
        raise DataError(
            f"The answers of '{answers.model}' must be to MT-Bench questions (ids such as {next(iter(known), '81')}), "
            f"got {', '.join(list(answers.rows)[:3])}."
        )
    for row in (answers.rows[question.id] for question in answered):
        if len(row.answers) != TURNS:
            raise DataError(f"Question '{row.id}' must have {TURNS} answers, one per turn, got {len(row.answers)}.")
    return answered


def _question(question: TwoTurns, row: AnswerRow, turn: int, judge: Judge, repeat: int) -> Inquiry:
    name, fields = _prompt(question, row, turn)
    call, check = grade_call(
        name,
        fields,
        checked=any(map(holds_verdict, row.answers[: turn + 1])),
        model=judge.model,
        sampling=judge.sampling(REPLY_TOKENS),
        repeat=repeat,
    )
    shown = list(fields.values())

    def read(reply: Reply) -> Verdict:
        return read_checked_rating(reply, check) if check else read_rating(reply, shown)

    part = f"turn {turn + 1}" + (f", repeat {repeat + 1}" if judge.repeats > 1 else "")
    return Inquiry(id=row.id, part=part, category=question.category, call=call, read=read, checked=bool(check))


def _prompt(question: TwoTurns, row: AnswerRow, turn: int) -> tuple[str, dict[str, str]]:
    """Name of the published prompt, and what it is filled with."""
    references = list(question.references)
    name = "single-math-v1" if references else "single-v1"
    if turn == 0:
        fields = {"question": question.turns[0], "answer": row.answers[0]}
        return name, fields | ({"ref_answer_1": references[0]} if references else {})
    fields = {f"question_{n + 1}": question.turns[n] for n in range(TURNS)}
    fields |= {f"answer_{n + 1}": row.answers[n] for n in range(TURNS)}
    fields |= {f"ref_answer_{n + 1}": reference for n, reference in enumerate(references)}
    return f"{name}-multi-turn", fields


def _result(answers: AnswerSet, judge: str, found: Judged, unanswered: int, seed: int) -> MtBenchResult:
    def of(kept: Sequence[Judgement]) -> Level:
        values: dict[str, list[float]] = {}
        for one in kept:
            values.setdefault(one.id, []).extend([] if one.value is None else [one.value])
        return level(list(values.values()), seed=seed)

    ones = found.judgements
    graded = [one.value for one in ones if one.value is not None]
    categories = dict.fromkeys(one.category for one in ones)
    in_question = dict.fromkeys(one.id for one in ones)
    return MtBenchResult(
        model=answers.model,
        judge=judge,
        score=of(ones),
        turns=tuple(of([one for one in ones if one.part.startswith(f"turn {n + 1}")]) for n in range(TURNS)),
        categories={name: of([one for one in ones if one.category == name]) for name in categories},
        if_missing_were=bounds(sum(graded), len(graded), found.missing, LOWEST, HIGHEST),
        missing=found.problems,
        graded=len(graded),
        not_asked=found.not_asked,
        stopped=found.stopped,
        unanswered=unanswered,
        asked_with_check=sum(one.asked and one.checked for one in ones),
        suspicious=tuple(
            name for name in in_question if any(holds_verdict(answer) for answer in answers.rows[name].answers)
        ),
        judgements=ones,
        sent=found.sent,
        tokens=found.tokens,
    )


def bounds(total: float, count: int, missing: int, lowest: float, highest: float) -> tuple[float, float]:
    """The mean if every missing verdict were the lowest, and if it were the highest.

    Example:
        >>> bounds(16.0, 2, 2, 1.0, 10.0)
        (4.5, 9.0)
    """
    if count + missing == 0:
        return math.nan, math.nan
    return (total + missing * lowest) / (count + missing), (total + missing * highest) / (count + missing)
