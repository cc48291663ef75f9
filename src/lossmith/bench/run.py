"""The measurement: memory first, then agreement, then time turn by turn."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from lossmith._typing import Tensor
from lossmith.bench.cases import Case, Inputs, check_fits, make_inputs
from lossmith.bench.contestants import Contestant, make_step, obstacle, plan_of
from lossmith.bench.failures import one_line, out_of_memory
from lossmith.bench.memory import measure_peak, too_large
from lossmith.bench.timing import interleaved

TOLERANCE = {"float64": (1e-5, 1e-5), "float32": (1e-4, 1e-3), "bfloat16": (1e-2, 5e-2)}
"""How far loss and gradients may be from what they are compared with; beyond it they are something else.
In float64 some competitors still sum in float32."""

Listener = Callable[[int, int, str], None]
"""Told how many steps are done, of how many, and what comes now."""


@dataclass(kw_only=True)
class Row:
    """What is known of one contestant on one case; it fills up while the benchmark runs."""

    case: Case
    contestant: Contestant
    state: str = "not reached"
    """"measured", "not here", "failed" or "not reached"."""
    note: str = ""
    """Why it is not measured, or what it warned of."""
    plan: str | None = None
    """Ours: the plan of the call."""
    seconds: list[float] = field(default_factory=list)
    """Forward and backward, per turn; the turns of one case are paired."""
    peak_bytes: int | None = None
    """Beyond inputs and gradients; None where it is not known."""
    compared_with: str | None = None
    loss_deviation: float | None = None
    """Relative."""
    gradient_deviation: float | None = None
    """Relative in the Euclidean norm, the larger one of hidden states and weight."""


@dataclass(frozen=True)
class _Answer:
    loss: float
    hidden: Tensor
    weight: Tensor


@final
class Benchmark:
    """Rows that fill up: `run` can be stopped at any time, and what is measured stays.

    Args:
        groups: Cases, each with those measured on it.
        repeats: Turns per case, after one that does not count.

    Raises:
        ConfigurationError: For a case whose inputs do not fit the machine.
    """

    def __init__(self, groups: Sequence[tuple[Case, Sequence[Contestant]]], *, repeats: int):
        for case, _ in groups:
            check_fits(case)
        self.repeats = repeats
        self.rows = [Row(case=case, contestant=contestant) for case, who in groups for contestant in who]
        self._groups = [(case, [row for row in self.rows if row.case == case]) for case, _ in groups]
        self._steps = sum(self._steps_of(rows) for _, rows in self._groups)
        self._done = 0
        self.complete = False
        """Whether `run` came to its end."""

    def run(self, listener: Listener | None = None) -> list[Row]:
        """Measure every row; a failure is a row that says so."""
        self._done = 0
        self._tell = listener or (lambda done, total, text: None)
        for number, (case, rows) in enumerate(self._groups):
            ready = [row for row in rows if self._measure_memory(row)]
            inputs = make_inputs(case)
            steps = self._compare(ready, case, inputs)
            self._time([row for row in ready if str(row.contestant) in steps], steps)
            # Rows that could not go on have left steps out.
            self._done = sum(self._steps_of(rows) for _, rows in self._groups[: number + 1])
        self.complete = True
        return self.rows

    def _steps_of(self, rows: list[Row]) -> int:
        return 2 * len(rows) + self.repeats + 1

    def _step(self, text: str) -> None:
        self._tell(self._done, self._steps, text)
        self._done += 1

    def _measure_memory(self, row: Row) -> bool:
        """Peak memory of a row; whether it can go on."""
        self._step(f"memory of {row.contestant}")
        reason = obstacle(row.contestant, row.case)
        if reason is not None:
            row.state, row.note = "not here", reason
            return False
        reason = too_large(row.contestant, row.case)
        peak = None if reason else measure_peak(row.contestant, row.case)
        if peak is None or not peak.runs:
            row.state, row.note = "failed", reason or (peak.note if peak else "")
            return False
        row.peak_bytes, row.note = peak.num_bytes, peak.note
        return True

    def _compare(self, rows: list[Row], case: Case, inputs: Inputs) -> dict[str, Callable[[], object]]:
        """What computes the same as it is compared with, ready to be timed."""
        steps: dict[str, Callable[[], object]] = {}
        ours: _Answer | None = None
        dense: dict[Contestant, _Answer | None] = {}
        # Ours first: everyone else is compared with them.
        for row in sorted(rows, key=lambda row: not row.contestant.own):
            who = row.contestant
            self._step(f"checking {who}")
            try:
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    step = make_step(who, inputs)
                    answer = _answer(step, inputs)
                    row.plan = plan_of(who, inputs)
                if warned:
                    row.note = f"warned: {one_line(warned[0].message)}"
                if answer is not None and who.own and who.engine != "dense":
                    reference = Contestant(loss=who.loss, engine="dense", reduction=who.reduction)
                    if reference not in dense:
                        dense.clear()
                        dense[reference] = _reference(reference, case, inputs)
                    _deviate(row, answer, dense[reference], "lossmith dense")
                elif answer is not None and not who.own:
                    ours = ours or _reference(Contestant(engine="chunked"), case, inputs)
                    _deviate(row, answer, ours, "lossmith")
            except Exception as error:
                self._failed(row, error)
                continue
            if row.state != "failed":
                steps[str(who)] = step
                if who == Contestant(engine=who.engine) and ours is None:
                    ours = answer
        return steps

    def _time(self, rows: list[Row], steps: dict[str, Callable[[], object]]) -> None:
        def guarded(row: Row) -> Callable[[], object]:
            def run() -> object:
                if row.state == "failed":
                    return None
                try:
                    return steps[str(row.contestant)]()
                except Exception as error:
                    return self._failed(row, error)

            return run

        turn = 0

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            for row in rows:
                if row.seconds and row.state == "not reached":
                    row.state = "measured"
            if turn <= self.repeats:
                self._step(f"turn {turn} of {self.repeats}, {len(rows)} contestants")

        self._step("warm-up turn")
        runs = {str(row.contestant): guarded(row) for row in rows}
        into = {str(row.contestant): row.seconds for row in rows}
        interleaved(runs, repeats=self.repeats, into=into, on_turn=next_turn)
        for row in rows:
            if row.state == "failed":
                row.seconds.clear()

    def _failed(self, row: Row, error: Exception) -> None:
        row.state, row.note = "failed", one_line(error)
        if out_of_memory(error) and row.case.device == "cuda":
            torch.cuda.empty_cache()


def _answer(step: Callable[[], Tensor | None], inputs: Inputs) -> _Answer | None:
    """Loss and gradients of one step; None where it is none."""
    loss = step()
    hidden, weight = inputs.hidden.grad, inputs.weight.grad
    if loss is None or hidden is None or weight is None:
        return None
    inputs.hidden.grad = inputs.weight.grad = None
    return _Answer(float(loss), hidden, weight)


def _reference(contestant: Contestant, case: Case, inputs: Inputs) -> _Answer | None:
    """What others are compared with; None where it does not fit the memory."""
    if too_large(contestant, case):
        return None
    try:
        return _answer(make_step(contestant, inputs), inputs)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None


def _deviate(row: Row, answer: _Answer, reference: _Answer | None, name: str) -> None:
    """Note how far the row is from the reference, and refuse it where that is too far."""
    if reference is None:
        row.note = row.note or f"not compared: {name} does not fit the memory"
        return
    row.compared_with = name
    row.loss_deviation = abs(answer.loss - reference.loss) / max(abs(reference.loss), 1e-30)
    row.gradient_deviation = max(_distance(answer.hidden, reference.hidden), _distance(answer.weight, reference.weight))
    of_loss, of_gradient = TOLERANCE[row.case.dtype]
    # Written so that NaN is refused too.
    if not (row.loss_deviation <= of_loss and row.gradient_deviation <= of_gradient):
        row.state = "failed"
        row.note = (
            f"not timed, it computes something else than {name}: loss off by {row.loss_deviation:.1e}, gradients by "
            f"{row.gradient_deviation:.1e}"
        )


def _distance(one: Tensor, other: Tensor) -> float:
    length = float(torch.linalg.vector_norm(other.float()))
    return float(torch.linalg.vector_norm(one.float() - other.float())) / max(length, 1e-30)
