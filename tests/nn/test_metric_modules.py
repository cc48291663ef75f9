"""Metric modules: proxies that are saved and trained, classes with one sample, half-precision embeddings."""

import io
import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.testing import assert_close

import lossmith
from library import DIM, build, gradients, scores_for
from lossmith import ObjectiveInputError, list_losses
from lossmith.engines.budget import set_chunk_budget


@pytest.fixture
def chunk_budget() -> Iterator[Callable[[int | None], None]]:
    """Sets the budget for one test."""
    yield set_chunk_budget
    set_chunk_budget(None)


def test_a_class_with_one_sample_is_defined_and_warns_once() -> None:
    module = build("supcon")
    embeddings = scores_for(module, 5)
    labels = torch.tensor([0, 0, 1, 2, 2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = module(embeddings, labels)
        module(embeddings, labels)
    assert len(caught) == 1
    assert issubclass(caught[0].category, RuntimeWarning)
    assert "no other row of their class" in str(caught[0].message)
    items = module(embeddings, labels, reduction="none")
    assert items[2].item() == 0
    assert_close(value, items.sum() / 4)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [3, -100, -100]])
def test_no_class_with_two_samples_is_a_zero_with_its_graph(labels: list[int]) -> None:
    module = build("supcon")
    embeddings = scores_for(module, len(labels))
    with pytest.warns(RuntimeWarning, match="no other row"):
        value = module(embeddings, torch.tensor(labels))
    assert value.item() == 0
    assert not bool(torch.autograd.grad(value, embeddings)[0].any())


def test_an_ignored_row_is_no_positive_and_no_negative() -> None:
    module = build("supcon")
    embeddings = scores_for(module, 5)
    with pytest.warns(RuntimeWarning, match="no other row"):
        value = module(embeddings, torch.tensor([0, 0, 1, 1, 2]))
    pair = module(embeddings[:4], torch.tensor([0, 0, 1, 1]))
    ignored = module(embeddings, torch.tensor([0, 0, 1, 1, -100]))
    assert_close(ignored, pair)
    assert value.item() > pair.item() + 1e-6, "a row without positive still is a negative for the others"


@pytest.mark.parametrize("text", ["soft_triple", "supcon", "0.3*soft_triple + 0.7*supcon"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_and_a_loss_in_half_precision(text: str, dtype: torch.dtype) -> None:
    embeddings = scores_for(build("supcon"), 6, dtype=dtype)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for module in (build(text, dtype=torch.float32), build(text, dtype=dtype)):
        value = module(embeddings=embeddings, labels=labels)
        assert value.dtype == torch.float32
        assert all(bool(torch.isfinite(slope).all()) for slope in gradients(value, module, embeddings))


def test_a_double_loss_of_float_embeddings_stays_in_the_dtype_of_the_embeddings() -> None:
    module = build("soft_triple", dtype=torch.float64)
    embeddings = scores_for(module, 4, dtype=torch.float32)
    assert module(embeddings, torch.tensor([0, 1, 2, 0])).dtype == torch.float32


@pytest.mark.parametrize("text", ["soft_triple", "supcon"])
def test_extreme_embeddings(text: str) -> None:
    module = build(text, dtype=torch.float32)
    rows = [[1e4] * DIM, [-1e4] * DIM, [1e-20] * DIM, [0.0] * DIM, [1e4] * DIM, [1e18] + [0.0] * (DIM - 1)]
    embeddings = torch.tensor(rows, requires_grad=True)
    value = module(embeddings, torch.tensor([0, 1, 0, 1, 2, 2]))
    assert bool(torch.isfinite(value))
    assert all(bool(torch.isfinite(slope).all()) for slope in gradients(value, module, embeddings))


def test_supcon_where_the_softmax_is_certain() -> None:
    module = build("supcon", temperature=1e-4, dtype=torch.float32)
    embeddings = torch.eye(DIM)[:4].repeat_interleave(2, 0).requires_grad_()
    right, wrong = module(embeddings, torch.arange(8) // 2), module(embeddings, torch.arange(8) % 4)
    assert right.item() == 0
    assert wrong.item() == pytest.approx(1e4, rel=1e-5)
    for value in (right, wrong):
        assert bool(torch.isfinite(torch.autograd.grad(value, embeddings)[0]).all())


def test_proxies_take_part_and_learn() -> None:
    module = build("0.4*cross_entropy + 0.6*soft_triple", dtype=torch.float32)
    groups = module.param_groups(0.1, proxy_lr_multiplier=10.0)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1.0, 0.0)]
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in module.parameters()]
    assert build("focal").param_groups(0.1) == []
    with pytest.raises(ObjectiveInputError, match=r"`proxy_lr_multiplier` must be > 0, got 0"):
        module.param_groups(0.1, proxy_lr_multiplier=0.0)
    optimiser = torch.optim.SGD(groups)
    embeddings, labels = scores_for(build("supcon"), 6, dtype=torch.float32).detach(), torch.arange(6) % 3
    logits = torch.zeros(6, 3)
    before = module(logits=logits, embeddings=embeddings, labels=labels)
    before.backward()
    optimiser.step()
    assert module(logits=logits, embeddings=embeddings, labels=labels).item() < before.item()


@pytest.mark.parametrize("text", ["soft_triple", "soft_triple(centers_per_class=3)", "0.5*soft_triple + 0.5*supcon"])
def test_state_dict_round_trip(text: str) -> None:
    module, other = build(text), build(text)
    for parameter in module.parameters():
        parameter.data.mul_(-1.5)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    embeddings, labels = scores_for(build("supcon"), 6), torch.arange(6) % 3
    wanted = module(embeddings, labels)
    assert not torch.equal(other(embeddings, labels), wanted)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(embeddings, labels), wanted)
    assert list(module.state_dict()) == (["proxies"] if text.startswith("soft") else ["terms.0.proxies"])


@pytest.mark.parametrize("text", ["soft_triple", "0.4*supcon + 0.6*soft_triple"])
def test_a_checkpoint_with_proxies_of_another_shape_is_one_sentence(text: str) -> None:
    saved = lossmith.loss(text, num_classes=4, embedding_dim=DIM).state_dict()
    with pytest.raises(ObjectiveInputError) as caught:
        build(text).load_state_dict(saved)
    assert str(caught.value) == (
        "The saved proxies of 'soft_triple' have shape (4, 10, 6), this loss needs "
        "(num_classes, centers_per_class, embedding_dim) = (3, 10, 6)."
    )


def test_proxies_need_their_sizes_and_fitting_embeddings() -> None:
    with pytest.raises(
        ObjectiveInputError, match=r"^'soft_triple' owns proxies and needs `num_classes` and `embedding_"
    ):
        lossmith.loss("soft_triple")
    with pytest.raises(ObjectiveInputError, match=r"owns proxies and needs `embedding_dim`.$"):
        lossmith.loss("soft_triple", num_classes=3)
    for wrong in (0, -1):
        with pytest.raises(ObjectiveInputError, match=r"`num_classes` must be an int >= 1, got"):
            lossmith.loss("soft_triple", num_classes=wrong, embedding_dim=4)
    module = build("soft_triple")
    with pytest.raises(ObjectiveInputError, match=r"^`embeddings` have dim 5 but the proxies of 'soft_triple' have"):
        module(torch.zeros(2, 5), torch.tensor([0, 1]))
    with pytest.raises(
        ObjectiveInputError, match=r"^`embeddings` must be a floating-point tensor \[anchors, dim\], got"
    ):
        module(torch.zeros(2, 2, DIM), torch.tensor([0, 1]))


def test_fresh_proxies_have_about_unit_length() -> None:
    torch.manual_seed(0)
    lengths = lossmith.loss("soft_triple", num_classes=6, embedding_dim=384).get_parameter("proxies").norm(dim=-1)
    assert lengths.shape == (6, 10)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.02)
    assert math.isfinite(lengths.max().item())


def test_pairs_of_no_class_are_defined_and_warn() -> None:
    module = build("n_pairs")
    embeddings = scores_for(module, 3)
    with pytest.warns(RuntimeWarning, match="'n_pairs': some rows have no other row of their class"):
        value = module(embeddings, torch.arange(3))
    assert value.item() == 0
    assert not bool(torch.autograd.grad(value, embeddings)[0].any())


@pytest.mark.parametrize("name", [record.name for record in list_losses("metric")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype, chunk_budget: Callable[[int | None], None]) -> None:
    """Inside autocast a matrix product of float32 rows is rounded to half precision; a loss must not be."""
    module = build(name, dtype=torch.float32)
    embeddings, labels = scores_for(module, 8, dtype=torch.float32), torch.arange(8) % 3
    wanted = module(embeddings, labels)
    slopes = gradients(wanted, module, embeddings)
    for num_bytes, reduction in ((None, "mean"), (128, "mean"), (128, "none")):
        chunk_budget(num_bytes)
        with torch.autocast("cpu", dtype=dtype):
            value = module(embeddings, labels, reduction=reduction)
            value = value if reduction == "mean" else value.mean()
        assert value.dtype == torch.float32
        assert_close(value, wanted, rtol=1e-6, atol=0)
        for got, slope in zip(gradients(value, module, embeddings), slopes, strict=True):
            assert_close(got, slope, rtol=1e-4, atol=1e-6)


def test_a_loss_on_another_device_than_its_inputs() -> None:
    module = lossmith.loss("cosface", num_classes=2, embedding_dim=DIM)
    embeddings, labels = torch.ones(2, DIM), torch.tensor([0, 1])
    with pytest.raises(
        ObjectiveInputError, match=r"^All inputs must be on one device, got `embeddings` on cpu, `weights`"
    ):
        lossmith.loss("supcon")(embeddings, labels, weights=torch.ones(2, device="meta"))
    with pytest.raises(ObjectiveInputError, match=r"got `embeddings` on cpu, `proxies` on meta\.$"):
        module.to("meta")(embeddings, labels)
    with pytest.raises(ObjectiveInputError, match=r"got `labels` on cpu, `scopes\['answer'\]` on meta\.$"):
        lossmith.loss("focal[answer]")(embeddings, labels, scopes={"answer": torch.ones(2, device="meta") > 0})
    with torch.device("meta"):
        lossmith.loss("cosface", num_classes=2, embedding_dim=DIM)
