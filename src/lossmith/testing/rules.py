"""The rules that every objective obeys, one function each; it raises where the rule is broken.

A check returns a remark or nothing.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lossmith._typing import Tensor
from lossmith.engines import LinearLogits, within_budget
from lossmith.errors import LossmithWarning, ObjectiveInputError
from lossmith.testing.constants import hold_constants
from lossmith.testing.samples import ROWS, Batch, draw_batch, extreme_batches, statistics_of
from lossmith.testing.subject import Failure, Skip, Subject, require_equal, require_finite, run, slopes

DRAWS = 3
"""Random batches that a check of gradients looks at."""
HALVES = (torch.bfloat16, torch.float16)


def shape(subject: Subject) -> None:
    """One loss per item, the same on every call, that depends on what the objective reads."""
    statistics = subject.statistics()
    losses = subject.call(statistics)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise Failure(f"expected a floating-point tensor of losses, got {_kind(losses)}")
    item, size = subject.record.item, ROWS
    if item in ("region", "batch"):
        expected, right = "()", losses.shape == ()
    elif subject.record.family == "metric" and item != "anchor":
        expected, right = f"({item}s,)", losses.ndim == 1
    else:
        size = 2 * ROWS if subject.record.family == "preference" and item == "completion" else ROWS
        expected, right = f"({size},)", losses.shape == (size,)
    if not right:
        raise Failure(
            f"{ROWS} rows: expected one loss per {item}, shape {expected}, got {tuple(losses.shape)}; "
            f"an objective does not reduce"
        )
    require_finite("losses of random inputs", losses)
    if not torch.equal(subject.call(statistics), losses):
        raise Failure("expected the same losses on a second call with the same inputs, got others")


def gradient(subject: Subject) -> None:
    """Derivatives of the function by differences, with its detached constants held."""
    moved = False
    for seed in range(DRAWS):
        statistics = subject.statistics(rows=6, seed=seed)
        names = [name for name, value in statistics.items() if value.is_floating_point()]

        def function(*values: Tensor, statistics=statistics, names=names) -> Tensor:
            return subject.call(statistics | dict(zip(names, values, strict=True)))

        leaves = [statistics[name].clone().requires_grad_() for name in names]
        moved |= any(bool(slope.any()) for slope in slopes(function(*leaves), leaves))
        _gradcheck(function, leaves, names)
    if not moved:
        raise Failure("expected a gradient for something that it reads, got 0 everywhere")


def module_gradient(subject: Subject) -> None:
    """Derivatives of the module by differences, from its inputs and proxies to the mean loss."""
    module = subject.module()
    # A running mean that moved with each call would be no function of the inputs.
    run(module, draw_batch(subject.record, seed=9))
    module.eval()
    moved, parameters = False, dict(module.named_parameters())
    names = [*draw_batch(subject.record).leaf_names, *parameters]
    for seed in range(DRAWS):
        batch = draw_batch(subject.record, rows=6, seed=seed)

        def function(*values: Tensor, batch=batch) -> Tensor:
            given = dict(zip(names, values, strict=True))
            own = {name: given.pop(name) for name in parameters}
            return torch.func.functional_call(module, own, (), {**batch.inputs, **given})

        leaves = [value.detach().clone().requires_grad_() for value in (*batch.leaves, *parameters.values())]
        moved |= any(bool(slope.any()) for slope in slopes(function(*leaves), leaves))
        _gradcheck(function, leaves, names)
    if not moved:
        raise Failure(f"expected a gradient for {', '.join(f'`{name}`' for name in names)}, got 0 everywhere")


def _gradcheck(function: Callable[..., Tensor], leaves: list[Tensor], names: list[str]) -> None:
    size = max(1.0, float(function(*leaves).detach().abs().max()) if leaves else 1.0)
    for place, name in enumerate(names):
        held = hold_constants(function)

        def one(value: Tensor, place=place, held=held) -> Tensor:
            return held(*leaves[:place], value, *leaves[place + 1 :])

        value = leaves[place].detach().clone().requires_grad_()
        losses = one(value)
        upstream = torch.linspace(0.5, 1.5, max(losses.numel(), 1), dtype=losses.dtype)[: losses.numel()]
        slope = slopes(losses * upstream.view(losses.shape), [value])[0].flatten()
        with torch.no_grad():
            for entry in range(value.numel()):
                require_equal(
                    f"derivative by `{name}`, entry {entry}",
                    slope[entry],
                    _difference(one, value, entry, upstream),
                    rtol=1e-5,
                    atol=1e-7 * size,
                )


def _difference(one: Callable[[Tensor], Tensor], value: Tensor, entry: int, upstream: Tensor) -> Tensor:
    """Central difference of the weighted sum of losses by one entry."""
    step = 1e-6
    ends = []
    for sign in (1, -1):
        moved = value.detach().clone()
        moved.view(-1)[entry] += sign * step
        ends.append((one(moved).flatten() * upstream).sum())
    return (ends[0] - ends[1]) / (2 * step)


def ignored_rows(subject: Subject) -> None:
    """Ignored means removed: what such a row holds changes nothing, and no gradient reaches it."""
    batch = draw_batch(subject.record)
    rows = torch.zeros(batch.rows, dtype=torch.bool)
    rows[[0, 4, 8]] = True
    value, wanted = run(subject.module(), batch.take(~rows))
    ways = [name for name in ("valid", "chosen_lengths", "rejected_lengths") if name == "valid" or name in batch.inputs]
    for by in ways:
        for fill in (None, torch.nan, torch.inf, -1e30):
            got, found = run(subject.module(), batch.ignore(rows, fill=fill, by=by))
            what = "with ignored rows" if fill is None else f"with {fill} in ignored rows"
            require_equal(f"loss {what}", got, value)
            for place, (slope, expected) in enumerate(zip(found, wanted, strict=True)):
                if place < len(batch.leaves):
                    require_equal(f"gradient of ignored rows, {what}", slope[rows], 0 * slope[rows], rtol=0, atol=0)
                    slope = slope[~rows]
                require_equal(f"gradient {what}", slope, expected)
    _neither_same_nor_different(subject)


def _neither_same_nor_different(subject: Subject) -> None:
    """What is neither `same` nor `different` in a table (the row itself, an empty place of a memory) does not exist."""
    tables = [name for name in ("similarities", "distances") if name in subject.record.reads]
    if not tables:
        return
    statistics = subject.statistics()
    wanted = subject.call(statistics)
    changed = {name: statistics[name].clone().fill_diagonal_(7.0) for name in tables}
    require_equal("losses with 7 as the similarity of a row to itself", subject.call(statistics | changed), wanted)
    if subject.record.row_local:
        fills = {name: 5.0 if name in tables else False for name in statistics}
        wider = {
            name: torch.cat([value, torch.full((len(value), 2), fills[name], dtype=value.dtype)], dim=1)
            for name, value in statistics.items()
        }
        require_equal("losses with two empty candidates, neither same nor different", subject.call(wider), wanted)


def nothing_valid(subject: Subject) -> None:
    """Nothing valid is a 0 that keeps its graph."""
    batch = draw_batch(subject.record)
    everything = torch.ones(batch.rows, dtype=torch.bool)
    for what, given in (
        ("all rows ignored", batch.ignore(everything)),
        ("all rows ignored and NaN", batch.ignore(everything, fill=torch.nan)),
        ("an empty batch", batch.take(slice(0, 0))),
    ):
        for reduction in ("mean", "sum", "none"):
            value, found = run(subject.module(), given, reduction=reduction)
            require_equal(f"loss of {what}, reduction '{reduction}'", value, torch.zeros_like(value), rtol=0, atol=0)
            if not value.requires_grad:
                raise Failure(f"loss of {what}: expected a 0 that keeps its graph, got one that `backward` refuses")
            for slope in found:
                require_equal(f"gradient of {what}", slope, torch.zeros_like(slope), rtol=0, atol=0)


def permutation(subject: Subject) -> None:
    """The order of the items does not matter."""
    record, batch = subject.record, draw_batch(subject.record)
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(3))
    if record.family == "metric" and record.item != "anchor":
        # Such an objective may choose rows by their place in their class: classes are interleaved anew, each in order.
        labels = batch.inputs["labels"]
        order = torch.cat([(labels == label).nonzero()[:, 0] for label in (1, 2, 0)])
    before, wanted = run(subject.module(), batch)
    after, found = run(subject.module(), batch.take(order))
    require_equal("loss of the items in another order", after, before)
    for place, (slope, expected) in enumerate(zip(found, wanted, strict=True)):
        moved = expected[order] if place < len(batch.leaves) else expected
        require_equal("gradient of the items in another order", slope, moved)
    per_row = record.item == "anchor" if record.family == "metric" else record.item != "region"
    if per_row and not record.sorts:
        losses = subject.module()(**batch.inputs, reduction="none")
        sides = len(losses) // batch.rows
        moved = losses.view(sides, -1)[:, order].flatten()
        again = subject.module()(**batch.take(order).inputs, reduction="none")
        require_equal("losses of the items in another order", again, moved)


def chunks(subject: Subject) -> None:
    """`row_local`: rows of a table give the same losses in chunks as at once."""
    if not subject.record.row_local:
        raise Skip("not declared row_local")
    statistics = subject.statistics()
    parts = [
        subject.call({name: value[rows] for name, value in statistics.items()})
        for rows in (slice(0, 4), slice(4, ROWS))
    ]
    require_equal(
        "declared row_local, but losses of the rows in two chunks", torch.cat(parts), subject.call(statistics)
    )


def engines(subject: Subject) -> None:
    """On logits that are not built, in chunks of few rows, a loss has the value and gradients of those that are."""
    if subject.record.family not in ("token", "region"):
        raise Skip("reads no logits")
    given = draw_batch(subject.record).ignore(torch.arange(ROWS) % 5 == 3)
    logits, labels = given.inputs["logits"], given.inputs["labels"]
    # With the identity as output matrix the hidden states are the logits.
    weight = torch.eye(logits.shape[1], dtype=logits.dtype)
    for reduction in ("mean", "none"):
        module = subject.module()
        built = logits.detach().requires_grad_()
        wanted = module(built, labels, reduction=reduction)
        hidden = logits.detach().requires_grad_()
        with within_budget(3 * logits.shape[1] * logits.element_size()):
            linear = LinearLogits(hidden, weight)
            value = module(linear, labels, reduction=reduction)
            plan = module.plan(linear, labels, reduction=reduction).name
            (slope,) = slopes(value, [hidden])
        require_equal(f"loss by the chunked engine ({plan})", value, wanted)
        require_equal(f"gradient by the chunked engine ({plan})", slope, slopes(wanted, [built])[0])


def accumulation(subject: Subject) -> str:
    """Micro-batches over one `num_items` are one batch, or the objective says that they are not."""
    coupled = subject.module().batch_coupled
    try:
        _accumulate(subject)
    except Failure as failure:
        if coupled:
            return ""
        raise Failure(f"not declared batch_coupled, but {failure}") from None
    return "declared batch_coupled, but micro-batches add up to the batch" if subject.record.batch_coupled else ""


def _accumulate(subject: Subject) -> None:
    rows = 24
    batch = draw_batch(subject.record, rows=rows)
    # Uneven: of eight micro-batches the first has nothing valid, the others more and less.
    ignored = torch.zeros(rows, dtype=torch.bool)
    ignored[:3] = True
    ignored[3::5] = True
    given, count = batch.ignore(ignored), int((~ignored).sum())
    whole, wanted = run(subject.module(), given)
    for k in (2, 3, 8):
        module = subject.module()
        parts = [run(module, given.take(part), num_items=count) for part in torch.arange(rows).chunk(k)]
        total = torch.stack([value.detach() for value, _ in parts]).sum()
        require_equal(f"{k} micro-batches", total, whole, rtol=1e-11)
        names = len(given.leaves)
        for place, expected in enumerate(wanted):
            pieces = [found[place] for _, found in parts]
            slope = torch.cat(pieces) if place < names else torch.stack(pieces).sum(0)
            require_equal(f"gradient of {k} micro-batches", slope, expected, rtol=1e-10, atol=1e-13)


def half_precision(subject: Subject) -> None:
    """bf16 and fp16 inputs go up to float32 before anything is computed (the module sees to that)."""
    for dtype in HALVES:
        rounding = torch.finfo(dtype).eps
        batch = draw_batch(subject.record).to(dtype)
        value, found = run(subject.module(torch.float32), batch)
        if value.dtype != torch.float32:
            raise Failure(f"loss of a {dtype} batch: expected torch.float32, got {value.dtype}")
        expected, _ = run(subject.module(torch.float32), batch.to(torch.float32))
        require_equal(f"loss of a {dtype} batch", value, expected, rtol=rounding, atol=rounding * 1e-3)
        require_finite(f"gradient of a {dtype} batch", *found)


def double_precision(subject: Subject) -> None:
    """float64 stays float64 all the way."""
    statistics = subject.statistics()
    losses = subject.call(statistics)
    if losses.dtype != torch.float64:
        raise Failure(f"losses of float64 inputs: expected torch.float64, got {losses.dtype}")
    rounded = {name: _cast(_cast(value, torch.float32), value.dtype) for name, value in statistics.items()}
    if bool((losses != 0).any()) and torch.equal(subject.call(rounded), losses):
        raise Failure("losses of float64 inputs: expected 16 digits to count, but the inputs in float32 give the same")


def extremes(subject: Subject) -> None:
    """Finite values and gradients at the ends of the range, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        own = dict(subject.module(dtype).named_parameters())
        for name, batch in extreme_batches(subject.record, proxies=own.get("proxies"), dtype=dtype):
            value, found = run(subject.module(dtype), batch)
            require_finite(f"loss at {name} in {dtype}", value)
            require_finite(f"gradient at {name} in {dtype}", *found)


def settings(subject: Subject) -> None:
    """Every number and switch among the hyper-parameters changes the losses or their gradient, or is refused."""
    draws = [subject.statistics(seed=seed) for seed in range(DRAWS)]
    proxies = dict(subject.module().named_parameters()).get("proxies")
    for _, batch in extreme_batches(subject.record, proxies=proxies):
        draws.append(statistics_of(subject.record, batch, proxies=proxies))
    if subject.record.family == "token":
        # Rows long enough for statistics of the most probable classes only.
        wide = Batch(
            {"logits": torch.linspace(-2, 3, 62, dtype=torch.float64).view(2, 31), "labels": torch.tensor([4, 30])}
        )
        draws.append(statistics_of(subject.record, wide, proxies=None))
    for name, default in (subject.record.hyperparameters | subject.hyperparameters).items():
        if isinstance(default, str):
            continue
        others = [not default] if isinstance(default, bool) else [default * 1.3 + 0.07, default * 0.7, default + 1]
        others = [type(default)(other) for other in others]
        if name in subject.record.module_hyperparameters:
            counts = [_counts_in_module(subject, {name: other}) for other in others]
        else:
            counts = [_counts(subject, {name: other}, statistics) for other in others for statistics in draws]
        # None where the value is refused: a setting that can only stay as it is is not silent.
        if not any(counts) and False in counts:
            raise Failure(f"hyper-parameter `{name}`: expected other losses for another value, got the same")


def _counts(subject: Subject, other: dict[str, Any], statistics: dict[str, Tensor]) -> bool | None:
    statistics = {name: _leaf(value.detach()) for name, value in statistics.items()}
    leaves = [value for value in statistics.values() if value.requires_grad]
    try:
        before, after = subject.call(statistics), subject.call(statistics, **other)
    except ObjectiveInputError:
        return None
    return _differ([before, *slopes(before, leaves)], [after, *slopes(after, leaves)])


def _counts_in_module(subject: Subject, other: dict[str, Any]) -> bool:
    changed = replace(subject, hyperparameters={**subject.hyperparameters, **other})
    results: list[list[Tensor]] = []
    for module in (subject.module(), changed.module()):
        # The second call: a running mean equals the mean on the first.
        run(module, draw_batch(subject.record, seed=1))
        value, found = run(module, draw_batch(subject.record))
        results.append([value, *found[: len(draw_batch(subject.record).leaves)]])
    return _differ(*results)


def _differ(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(
        one.shape != other.shape or not torch.allclose(one, other, rtol=1e-6, atol=0, equal_nan=True)
        for one, other in zip(before, after, strict=True)
    )


def compiles(subject: Subject) -> None:
    """`torch.compile(fullgraph=True)` gives the same losses and gradients."""
    if subject.record.family in ("region", "metric"):
        raise Skip(f"the number of losses or classes of a {subject.record.family} objective depends on its data")
    # Loading the compiler takes seconds.
    from torch._dynamo.eval_frame import is_dynamo_supported
    from torch._dynamo.exc import TorchDynamoException

    if not is_dynamo_supported():
        raise Skip("torch.compile does not run on this platform")
    statistics = {name: _leaf(value) for name, value in subject.statistics().items()}
    leaves = [value for value in statistics.values() if value.requires_grad]
    compiled = torch.compile(subject.traceable(subject.record.function), fullgraph=True, backend="aot_eager")
    # The second value of a number is traced as a symbol, not as a constant.
    for settings in ({}, _other_numbers(subject, statistics)):
        try:
            got = compiled(**statistics, **subject.settings | settings)
        except TorchDynamoException as error:
            at = f" at {settings}" if settings else ""
            raise Failure(f"expected one graph{at}, got {_first_line(error)}") from None
        wanted = subject.call(statistics, **settings)
        require_equal("compiled losses", got, wanted, rtol=1e-12)
        upstream = torch.linspace(0.5, 1.5, wanted.numel(), dtype=wanted.dtype)
        for slope, expected in zip(slopes(got * upstream, leaves), slopes(wanted * upstream, leaves), strict=True):
            require_equal("gradient of the compiled losses", slope, expected)


def _other_numbers(subject: Subject, statistics: dict[str, Tensor]) -> dict[str, float]:
    """Other values of the hyper-parameters that are numbers, where the objective takes them."""
    others: dict[str, float] = {}
    for name, value in subject.settings.items():
        if isinstance(value, float):
            other = 0.9 * value + 0.03
            try:
                subject.call(statistics, **{name: other})
            except ObjectiveInputError:
                continue
            others[name] = other
    return others


def quietly(check: Callable[[Subject], str | None], subject: Subject) -> str | None:
    """Run a check without the warnings of batches that it makes uncomfortable on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossmithWarning)
        return check(subject)


def _leaf(value: Tensor) -> Tensor:
    return value.clone().requires_grad_() if value.is_floating_point() else value


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _kind(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _first_line(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else type(error).__name__
    )
