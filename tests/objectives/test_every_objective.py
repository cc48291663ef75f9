"""Walks the registry: adding an objective adds these tests."""

import doctest
import inspect
import pickle

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from library import defaults, make_statistics, plain
from lossmith.objectives import VOCABULARY, ObjectiveRecord, list_losses

RECORDS = list_losses()
SERVED = [record for record in RECORDS if record.family in ("token", "region", "metric")]

every = pytest.mark.parametrize("record", RECORDS, ids=str)
every_served = pytest.mark.parametrize("record", SERVED, ids=str)


def _floats(statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in statistics.items() if value.is_floating_point()}


@every
def test_exported_and_returned_unchanged(record: ObjectiveRecord) -> None:
    name = f"{record.name}_loss"
    assert name in lossmith.objectives.__all__
    assert getattr(lossmith.objectives, name) is record.function
    assert pickle.loads(pickle.dumps(record.function)) is record.function  # noqa: S301


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
    places = [text.find(f"\n{section}:\n") for section in ("Args", "Returns", "Source", "Example")]
    assert min(places) > 0, f"a section is missing: {places}"
    assert places == sorted(places)
    assert "$$" in text
    assert record.summary.endswith(".")
    assert record.source.startswith("https://")
    assert record.source in text
    assert "Deviation:" in text
    for name in inspect.signature(record.function).parameters:
        assert f"\n    {name}: " in text, f"`{name}` is not documented"


@every
def test_example_runs(record: ObjectiveRecord) -> None:
    found = doctest.DocTestFinder().find(record.function, globs={**vars(inspect.getmodule(record.function))})
    examples = [test for test in found if test.examples]
    assert examples
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples:
        assert runner.run(test).failed == 0


@every_served
def test_one_loss_per_item(record: ObjectiveRecord) -> None:
    losses = record.function(**make_statistics(record))
    assert losses.shape == (() if record.item in ("region", "batch") else (9,))
    assert losses.dtype == torch.float64


@every_served
def test_gradients_are_those_of_the_value(record: ObjectiveRecord) -> None:
    statistics = make_statistics(record, rows=6)
    moving = [name for name, value in statistics.items() if value.is_floating_point()]

    def function(*values: Tensor) -> Tensor:
        return record.function(**statistics | dict(zip(moving, values, strict=True)))

    leaves = [statistics[name].detach().clone().requires_grad_() for name in moving]
    used = torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True)
    assert any(slope is not None and bool((slope != 0).any()) for slope in used)
    assert torch.autograd.gradcheck(function, leaves)


@every_served
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_close_to_float32(record: ObjectiveRecord, dtype: torch.dtype) -> None:
    statistics = make_statistics(record)
    half = {name: value.to(dtype) for name, value in _floats(statistics).items()}
    rounded = {name: value.float() for name, value in half.items()}
    got, wanted = record.function(**statistics | half), record.function(**statistics | rounded)
    # Metric losses go up inside; token and region statistics arrive in float32 from every engine.
    slack = 0.0 if record.family == "metric" else 4 * torch.finfo(dtype).eps
    assert_close(got.float(), wanted, rtol=slack, atol=slack)
    if record.family == "metric":
        assert got.dtype == torch.float32


@every_served
def test_compiles_whole(record: ObjectiveRecord) -> None:
    statistics = make_statistics(record)
    for value in _floats(statistics).values():
        value.requires_grad_()
    compiled = torch.compile(plain(record.function), fullgraph=True, backend="aot_eager")
    eager = record.function(**statistics)
    assert_close(compiled(**statistics), eager, rtol=1e-13, atol=0)
    leaves = list(_floats(statistics).values())
    slopes = torch.autograd.grad(compiled(**statistics).sum(), leaves, allow_unused=True)
    expected = torch.autograd.grad(eager.sum(), leaves, allow_unused=True)
    for got, wanted in zip(slopes, expected, strict=True):
        if wanted is not None:
            assert_close(got, wanted, rtol=1e-12, atol=1e-15)


@every_served
def test_permuting_the_items_permutes_the_losses(record: ObjectiveRecord) -> None:
    statistics = make_statistics(record)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved = {name: value if name in ("proxies", "class_mass") else value[order] for name, value in statistics.items()}
    before, after = record.function(**statistics), record.function(**moved)
    assert_close(after, before if before.ndim == 0 else before[order], rtol=1e-12, atol=1e-14)


@every_served
def test_hyperparameters_count(record: ObjectiveRecord) -> None:
    """Every number among the hyper-parameters changes the value."""
    statistics = make_statistics(record)
    before = record.function(**statistics)
    for name, default in defaults(record.name).items():
        if isinstance(default, float):
            after = record.function(**statistics, **{name: default + 0.07})
            assert not torch.allclose(before, after, rtol=1e-6), name


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
