"""The whole battery of checks on one objective."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch

from lossmith._checks import did_you_mean
from lossmith.errors import ObjectiveCheckError, ObjectiveInputError
from lossmith.testing import rules
from lossmith.testing.report import Check, ObjectiveReport
from lossmith.testing.subject import Failure, Skip, Subject, find_record

_RULES: dict[str, Callable[[Subject], str | None]] = {
    "shape": rules.shape,
    "gradient": rules.gradient,
    "module_gradient": rules.module_gradient,
    "ignored_rows": rules.ignored_rows,
    "nothing_valid": rules.nothing_valid,
    "permutation": rules.permutation,
    "chunks": rules.chunks,
    "engines": rules.engines,
    "accumulation": rules.accumulation,
    "half_precision": rules.half_precision,
    "double_precision": rules.double_precision,
    "extremes": rules.extremes,
    "settings": rules.settings,
    "compile": rules.compiles,
}
CHECKS = tuple(_RULES)
"""Names of the checks, in the order in which they run."""


def check_objective(
    function: Callable[..., Any],
    *,
    hyperparameters: dict[str, Any] | None = None,
    skip: Collection[str] = (),
    raise_failures: bool = True,
    traceable: Callable[..., Any] = inspect.unwrap,
    **declaration: Any,
) -> ObjectiveReport:
    r"""Run the whole battery on an objective: the rules that every loss of the library obeys.

    - `shape`: one loss per item, no reduction, the same on every call.
    - `gradient`, `module_gradient`: derivatives by differences, of the function by each statistic and of its module by
      logits, embeddings, log-probabilities and proxies; constants made with `.detach()` are held.
    - `ignored_rows`: labels of -100, `valid` False and length 0 remove a row: what it holds (NaN, inf) changes nothing,
      its gradient is 0; what a table of similarities calls neither same nor different does not count either.
    - `nothing_valid`: all rows ignored and an empty batch give 0 with a graph.
    - `permutation`: the order of the items does not matter.
    - `chunks`: where declared `row_local`, rows of a table in chunks give the same.
    - `engines`: on `LinearLogits`, in chunks of few rows, value and gradients are those on logits (token and region).
    - `accumulation`: 2, 3 and 8 uneven micro-batches over one `num_items` are one batch, unless declared
      `batch_coupled`.
    - `half_precision`, `double_precision`: bf16 and fp16 go up to float32, float64 stays.
    - `extremes`: finite values and gradients for every one of `extreme_batches`.
    - `settings`: every number and switch among the hyper-parameters changes the losses, or is refused.
    - `compile`: `torch.compile(fullgraph=True)` gives the same (token, preference and unpaired objectives).

    Everything is drawn from fixed seeds; the global random state stays as it is.

    Args:
        function: A function under `@lossmith.objective`, or any function described by `declaration`.
        hyperparameters: Settings to check it at, those left out at their default.
        skip: Names of checks to leave out.
        raise_failures: Whether to raise where a check fails, instead of only reporting it.
        traceable: Makes of the function what torch.compile traces; type-checking wrappers cannot be traced.
        **declaration: For a function that is not recorded: the keywords of `lossmith.objective`.

    Returns:
        What every check found; `str()` is one line per check.

    Raises:
        ObjectiveCheckError: Naming every failed check, with what was expected and what came.
        ObjectiveInputError: If the function is neither recorded nor described, or a name to skip is unknown.

    Example:
        >>> from lossmith.objectives import focal_loss
        >>> check_objective(focal_loss, hyperparameters={"gamma": 0.5}, skip=["compile"]).passed
        True
        >>> def my_dpo_loss(chosen_logps, rejected_logps, *, beta: float = 0.1):
        ...     return -(beta * (chosen_logps - rejected_logps)).sigmoid().log()
        >>> report = check_objective(my_dpo_loss, family="preference", item="pair", raise_failures=False)
        >>> [check.name for check in report.failed]
        ['extremes']
        >>> print(report["extremes"])
        extremes: failed (loss at margins of +-1e6 in torch.float32: expected finite numbers, got inf)
    """
    for name in skip:
        if name not in CHECKS:
            raise ObjectiveInputError(
                f"No check named '{name}'.{did_you_mean(name, CHECKS)} Known: {', '.join(CHECKS)}."
            )
    subject = Subject(find_record(function, declaration), dict(hyperparameters or {}), traceable)
    checks: list[Check] = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for name, rule in _RULES.items():
            if name in skip:
                checks.append(Check(name=name, outcome="skipped", detail="left out by the caller"))
            elif checks and name != "shape" and checks[0].outcome == "failed":
                checks.append(Check(name=name, outcome="skipped", detail="the shape is wrong"))
            else:
                checks.append(_run(name, rule, subject))
    report = ObjectiveReport(name=subject.record.name, checks=tuple(checks))
    if raise_failures and not report.passed:
        raise ObjectiveCheckError(_sentence(report))
    return report


def _run(name: str, rule: Callable[[Subject], str | None], subject: Subject) -> Check:
    try:
        return Check(name=name, outcome="passed", detail=rules.quietly(rule, subject) or "")
    except Skip as reason:
        return Check(name=name, outcome="skipped", detail=str(reason))
    except Failure as failure:
        return Check(name=name, outcome="failed", detail=str(failure))
    except Exception as error:
        # Whatever a user's function raises is what came.
        first = (str(error).strip().splitlines() or [""])[0]
        return Check(name=name, outcome="failed", detail=f"expected losses, got {type(error).__name__}: {first}")


def _sentence(report: ObjectiveReport) -> str:
    failed = report.failed
    plural = "check" if len(report.checks) == 1 else "checks"
    lines = [f"  {check.name}: {check.detail}." for check in failed]
    return "\n".join([f"'{report.name}' fails {len(failed)} of {len(report.checks)} {plural}:", *lines])
