"""Walks the registry: adding an objective adds these tests."""

import doctest
import functools
import inspect
import pickle
import re

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from library import defaults, make_statistics, plain
from lossmith.explain import loss_facts
from lossmith.objectives import VOCABULARY, ObjectiveRecord, get_record, list_losses
from lossmith.testing import CHECKS, ObjectiveReport, check_objective, hold_constants

RECORDS = list_losses()
SECTIONS = ("Args", "Returns", "Source", "Use when", "Relatives", "Elsewhere", "Example")

every = pytest.mark.parametrize("record", RECORDS, ids=str)


@functools.cache
def _report(name: str) -> ObjectiveReport:
    return check_objective(get_record(name).function, traceable=plain, raise_failures=False)


@every
@pytest.mark.parametrize("check", CHECKS)
def test_the_public_battery(record: ObjectiveRecord, check: str) -> None:
    result = _report(record.name)[check]
    assert result.outcome != "failed", result.detail
    # `batch_coupled` is said where it is so, and only there.
    assert result.detail == "" or result.outcome == "skipped", result.detail


@every
def test_exported_and_returned_unchanged(record: ObjectiveRecord) -> None:
    name = f"{record.name}_loss"
    assert name in lossmith.objectives.__all__
    assert getattr(lossmith.objectives, name) is record.function
    assert pickle.loads(pickle.dumps(record.function)) is record.function  # noqa: S301
    for alias in record.aliases:
        assert get_record(alias) is record


@every
def test_signature_is_the_contract(record: ObjectiveRecord) -> None:
    signature = inspect.signature(record.function)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.annotation in (float, int, bool, str), name
            assert type(parameter.default) is parameter.annotation, name
        else:
            assert name in VOCABULARY[record.family]
            assert issubclass(parameter.annotation, jaxtyping.AbstractArray), name
            assert parameter.annotation.array_type is Tensor, name
    assert issubclass(signature.return_annotation, jaxtyping.AbstractArray)
    assert record.reads == tuple(n for n, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)


@every
def test_documented_and_sourced(record: ObjectiveRecord) -> None:
    text = inspect.getdoc(record.function) or ""
    places = [text.find(f"\n{section}:\n") for section in SECTIONS]
    assert min(places) > 0, f"a section is missing: {dict(zip(SECTIONS, places, strict=True))}"
    assert places == sorted(places)
    assert "$$" in text
    assert record.summary.endswith(".")
    assert record.source.startswith("https://")
    assert record.source in text
    assert text.count("Deviation:") == 1
    for name in inspect.signature(record.function).parameters:
        assert f"\n    {name}: " in text, f"`{name}` is not documented"


@every
def test_the_advice_is_there_and_names_objectives_that_exist(record: ObjectiveRecord) -> None:
    facts = loss_facts(record)
    for name in ("use_when", "relatives", "elsewhere", "returns", "reference", "deviation"):
        said = getattr(facts, name)
        assert said.endswith((".", "!", "?", ")")), f"{name} is empty or cut: {said!r}"
    known = {name for other in RECORDS for name in (other.name, *other.aliases)}
    words = {name for other in RECORDS for name in (*other.hyperparameters, *other.reads)}
    mentioned = set(re.findall(r"`([a-z][a-z0-9_]*)`", facts.relatives))
    assert mentioned & known - {record.name}, "no relative is named"
    assert mentioned - words <= known, f"no such objective: {mentioned - words - known}"


@every
def test_example_runs(record: ObjectiveRecord) -> None:
    found = doctest.DocTestFinder().find(record.function, globs={**vars(inspect.getmodule(record.function))})
    examples = [test for test in found if test.examples]
    assert examples
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples:
        assert runner.run(test).failed == 0


@every
def test_gradients_are_those_of_the_value(record: ObjectiveRecord) -> None:
    """torch's own gradcheck; the battery's differences are ours."""
    statistics = make_statistics(record, rows=6)
    moving = [name for name, value in statistics.items() if value.is_floating_point()]

    def function(*values: Tensor) -> Tensor:
        return record.function(**statistics | dict(zip(moving, values, strict=True)))

    leaves = [statistics[name].detach().clone().requires_grad_() for name in moving]
    assert torch.autograd.gradcheck(hold_constants(function), leaves, atol=1e-7, rtol=1e-4)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_function_called_alone_raises_half_precision_itself(record: ObjectiveRecord, dtype: torch.dtype) -> None:
    statistics = make_statistics(record)
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in statistics.items()}
    raised = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    got, wanted = record.function(**half), record.function(**raised)
    assert got.dtype == torch.float32
    assert_close(got, wanted, rtol=torch.finfo(dtype).eps, atol=1e-3 * torch.finfo(dtype).eps)


@every
def test_settings_out_of_range_are_refused_by_the_function(record: ObjectiveRecord) -> None:
    statistics = make_statistics(record)
    for name, default in defaults(record.name).items():
        wrong = {float: float("nan"), str: "nonsense"}.get(type(default))
        if wrong is not None:
            with pytest.raises(lossmith.ObjectiveInputError, match=f"`{name}`"):
                record.function(**statistics, **{name: wrong})


@every
def test_forms_are_listed_where_a_wrong_one_comes_and_each_is_documented(record: ObjectiveRecord) -> None:
    statistics = make_statistics(record)
    for name, default in defaults(record.name).items():
        if not isinstance(default, str):
            continue
        with pytest.raises(lossmith.ObjectiveInputError) as caught:
            record.function(**statistics, **{name: "nonsense"})
        forms = re.findall(r"'(\w+)'", str(caught.value).partition(", got")[0])
        assert default in forms
        for form in forms:
            assert torch.isfinite(record.function(**statistics, **{name: form})).all()
            assert f'"{form}"' in inspect.getdoc(record.function), f"{name}={form!r} is not documented"


@every
def test_every_form_reads_every_number_or_refuses_it(record: ObjectiveRecord) -> None:
    if "form" not in record.hyperparameters:
        return
    with pytest.raises(lossmith.ObjectiveInputError) as caught:
        record.function(**make_statistics(record), form="nonsense")
    for form in re.findall(r"'(\w+)'", str(caught.value).partition(", got")[0]):
        others = [check for check in CHECKS if check not in ("shape", "settings")]
        report = check_objective(record.function, hyperparameters={"form": form}, skip=others, raise_failures=False)
        # The golden cases call pfl's discovered form, which has no beta, with one.
        assert report.passed or (record.name, form) == ("pfl", "discovered"), str(report)


@every
def test_what_is_declared_as_not_needed_is_not_read(record: ObjectiveRecord) -> None:
    statistics = make_statistics(record)
    for name, switch in record.needed_when.items():
        assert name in record.reads
        off = {switch: type(record.hyperparameters[switch])(0)}
        wanted = record.function(**statistics, **off)
        changed = statistics | {name: torch.full_like(statistics[name], 3.7)}
        assert torch.equal(record.function(**changed, **off), wanted)
        on = {switch: True} if isinstance(record.hyperparameters[switch], bool) else {switch: 0.3}
        assert not torch.equal(record.function(**changed, **on), record.function(**statistics, **on))


@every
def test_an_anchor_without_a_positive_has_loss_0_where_that_is_declared(record: ObjectiveRecord) -> None:
    if not record.needs_positives:
        return
    statistics = make_statistics(record)
    floats = {name: value.clone().requires_grad_() for name, value in statistics.items() if value.is_floating_point()}
    statistics["same"][2] = False
    losses = record.function(**statistics | floats)
    assert losses[2].item() == 0
    assert bool((losses[torch.arange(9) != 2] != 0).any())
    for slope in torch.autograd.grad(losses[2], list(floats.values())):
        assert not bool(slope.any())


@every
def test_settings_that_another_objective_has_are_referred_to_it(record: ObjectiveRecord) -> None:
    for name, other in record.instead.items():
        assert name in get_record(other).hyperparameters
        assert name not in record.hyperparameters
        with pytest.raises(lossmith.ObjectiveInputError, match=f"use '{other}', which has it"):
            lossmith.loss(record.name, **{name: 0.1})


@every
def test_permuting_the_statistics_permutes_the_losses(record: ObjectiveRecord) -> None:
    """Of the function alone; the battery looks at the module."""
    if record.item in ("triplet", "pair", "batch") and record.family == "metric":
        pytest.skip("its losses belong to no single row")
    statistics = make_statistics(record)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved = {}
    for name, value in statistics.items():
        rows = value.ndim and name not in ("proxies", "class_mass")
        moved[name] = value[order] if rows else value
        if name in ("similarities", "distances", "same", "different"):
            moved[name] = moved[name][:, order]
    before, after = record.function(**statistics), record.function(**moved)
    if len(before.shape) and not record.sorts:
        before = before.view(-1, 9)[:, order].flatten()
    assert_close(after, before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("cross_entropy", {"label_smoothing": 1.0}, "`label_smoothing` must be in [0, 1), got 1.0."),
        ("cross_entropy", {"label_smoothing": -0.1}, "`label_smoothing` must be in [0, 1), got -0.1."),
        ("cross_entropy", {"label_smoothing": float("nan")}, "`label_smoothing` must be a finite number, got nan."),
        ("focal", {"gamma": -1.0}, "`gamma` must be >= 0, got -1.0."),
        ("focal", {"gamma": float("inf")}, "`gamma` must be a finite number, got inf."),
        ("lovasz_softmax", {"classes": "all"}, "`classes` must be one of 'present', got 'all'."),
        ("soft_triple", {"scale": 0.0}, "`scale` must be > 0, got 0.0."),
        ("soft_triple", {"gamma": -2.0}, "`gamma` must be > 0, got -2.0."),
        ("soft_triple", {"margin": float("nan")}, "`margin` must be a finite number, got nan."),
        ("soft_triple", {"centers_per_class": 0}, "`centers_per_class` must be an int >= 1, got 0."),
        ("soft_triple", {"centers_per_class": 2.5}, "`centers_per_class` must be of type int, got 2.5."),
        ("soft_triple", {"normalize": 1}, "`normalize` must be of type bool, got 1."),
        ("supcon", {"temperature": 0.0}, "`temperature` must be > 0, got 0.0."),
        ("supcon", {"temperature": True}, "`temperature` must be of type float, got True."),
    ],
)
def test_a_hyperparameter_out_of_range_is_found_when_the_loss_is_built(name, setting, message) -> None:
    sizes = {"num_classes": 3, "embedding_dim": 4} if name == "soft_triple" else {}
    with pytest.raises(lossmith.ObjectiveInputError) as caught:
        lossmith.loss(name, **setting, **sizes)
    assert message in str(caught.value)
