"""What metric losses reach beyond one batch: chunks of rows, refusals, a memory, balanced batches."""

import io
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import lossmith
from library import DIM, build, gradients, scores_for
from lossmith import ObjectiveInputError
from lossmith.engines import similarity
from lossmith.nn import EmbeddingMemory, MetricLoss, PKBatchSampler
from lossmith.objectives import list_losses

ROW_LOCAL = [record.name for record in list_losses("metric") if record.row_local]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -100, 1, 2])

NO_MEMORY = (
    "^'{}' has no `memory_size`: {}, and has no form here that also compares with earlier batches, as circle, "
    "multi_similarity, nca, nt_xent, supcon and triplet_margin have\\.$"
)


def test_which_losses_work_in_chunks() -> None:
    assert ROW_LOCAL == ["circle", "multi_similarity", "nca", "nt_xent", "supcon", "triplet_margin"]


def test_what_cannot_fit_is_refused_before_anything_is_made() -> None:
    labels = torch.arange(32_768) // 4
    embeddings = torch.zeros(32_768, 2)
    for name, message in (
        (
            "triplet_margin",
            r"'triplet_margin' compares 3,221,225,472 triplets of 32,768 embeddings, 12.0 GiB at once, where",
        ),
        (
            "contrastive",
            r"'contrastive' compares 1,073,741,824 pairs of 32,768 embeddings, 4.0 GiB at once, where 1 GiB",
        ),
        ("lifted_structure", r"'lifted_structure' compares 1,073,741,824 pairs"),
    ):
        with pytest.raises(ObjectiveInputError, match=message):
            lossmith.loss(name)(embeddings, labels)
    with pytest.raises(ObjectiveInputError, match=r"^'nt_xent' compares 1,073,709,056 pairs of 32,768 embeddings"):
        lossmith.loss("nt_xent")(embeddings, torch.zeros(32_768, dtype=torch.long))


@pytest.mark.parametrize("name", ROW_LOCAL)
def test_a_memory_is_more_candidates(name: str) -> None:
    torch.manual_seed(0)
    module = lossmith.loss(name, memory_size=7, embedding_dim=DIM).double()
    assert isinstance(module, MetricLoss)
    first = torch.randn(5, DIM, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, -100, 1])
    plain = build(name)
    assert_close(module(first, labels), plain(first, labels), rtol=1e-13, atol=1e-16)
    # By hand: the losses of the anchors of the second batch, in a batch that holds the first one as constants.
    second = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)
    also = torch.tensor([1, 0, 1, 0])
    value = module(second, also)
    kept = first.detach()[labels != -100]
    rows = similarity.SimilarityRows(
        unit(second), also, unit(torch.cat([second, kept])), torch.cat([also, labels[labels != -100]])
    )
    losses = plain.apply_function(rows.statistics(plain.needed), rows=4)
    assert_close(value, losses.mean(), rtol=1e-13, atol=0)
    wanted = torch.autograd.grad(losses.mean(), second)[0]
    assert_close(torch.autograd.grad(value, second)[0], wanted, rtol=1e-12, atol=1e-16)
    # 4 + 4 rows in 7 places: the oldest one is gone.
    assert sorted(module.memory.labels.tolist()) == sorted([*labels[labels != -100].tolist()[1:], *also.tolist()])
    module.eval()
    before = module.memory.embeddings.clone()
    module(second, also)
    assert torch.equal(module.memory.embeddings, before)


def test_a_memory_travels_and_keeps_its_order() -> None:
    memory = EmbeddingMemory(3, 1)
    for value in range(5):
        memory.push(torch.tensor([[float(value)]]), torch.tensor([value]))
    assert sorted(memory.labels.tolist()) == [2, 3, 4]
    memory.push(torch.arange(10.0, 19.0)[:, None], torch.arange(10, 19))
    assert sorted(memory.labels.tolist()) == [16, 17, 18]
    assert torch.equal(memory.embeddings[:, 0].long(), memory.labels)
    buffer = io.BytesIO()
    torch.save(memory.state_dict(), buffer)
    buffer.seek(0)
    other = EmbeddingMemory(3, 1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    other.push(torch.tensor([[7.0]]), torch.tensor([7]))
    memory.push(torch.tensor([[7.0]]), torch.tensor([7]))
    assert torch.equal(other.labels, memory.labels)
    assert set(memory.labels.tolist()) == {7, 17, 18}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("contrastive", {"memory_size": 8}, NO_MEMORY.format("contrastive", "it is computed from the whole batch")),
        ("lifted_structure(memory_size=8)", {}, r"'lifted_structure' has no `memory_size`: .* no form here that also"),
        ("soft_triple", {"memory_size": 8}, NO_MEMORY.format("soft_triple", "it compares rows with proxies")),
        (
            "0.5*cross_entropy + 0.5*contrastive",
            {"memory_size": 8},
            NO_MEMORY.format("contrastive", "it is computed from the whole batch"),
        ),
        ("contrastive", {"memory": 8}, r"^'contrastive' has no hyper-parameter `memory`\."),
        ("supcon", {"memory_size": 8}, r"^'supcon' keeps a memory and needs `embedding_dim`\.$"),
        ("supcon(memory_size=8)", {}, r"^'supcon' keeps a memory and needs `embedding_dim`\.$"),
        (
            "supcon(memory_size=8)",
            {"memory_size": 8},
            r"^`memory_size` of 'supcon' is given in the string and as a key",
        ),
        (
            "supcon",
            {"memory_size": -8, "embedding_dim": 4},
            r"^'supcon' keeps a memory: `memory_size` must be an int >= 1",
        ),
        (
            "supcon",
            {"memory_size": 10**30, "embedding_dim": 4},
            r"^'supcon' keeps a memory: `memory_size` must be below 2",
        ),
        ("supcon", {"embedding_dim": 4}, r"^'supcon' has no hyper-parameter `embedding_dim`"),
        ("focal", {"memory_size": 8}, r"^'focal' has no hyper-parameter `memory_size`"),
        ("focal", {"gather": True}, r"^'focal' has no hyper-parameter `gather`"),
    ],
)
def test_settings_that_do_not_fit(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ObjectiveInputError, match=message):
        lossmith.loss(name, **settings)


def test_settings_are_part_of_the_string() -> None:
    module = lossmith.loss("supcon(temperature=0.2)", memory_size=8, embedding_dim=4, gather=True)
    assert str(module) == "supcon(temperature=0.2, memory_size=8, gather=True)"
    assert lossmith.loss(str(module), embedding_dim=4).memory.size == 8
    regions = lossmith.loss("0.5*dice + 0.5*lovasz + cross_entropy", region="sequence")
    assert str(regions) == ("0.5*dice(region='sequence') + 0.5*lovasz_softmax(region='sequence') + cross_entropy")
    assert not lossmith.loss(str(regions)).batch_coupled
    mixed = lossmith.loss("supcon + soft_triple", memory_size=8, num_classes=2, embedding_dim=4)
    assert str(mixed) == "supcon(memory_size=8) + soft_triple"


def test_a_saved_memory_of_another_size() -> None:
    small, large = (lossmith.loss("supcon", memory_size=size, embedding_dim=4) for size in (4, 8))
    with pytest.raises(
        ObjectiveInputError, match=r"^The saved memory has shape \(4, 4\), this loss needs .* = \(8, 4\)\.$"
    ):
        large.load_state_dict(small.state_dict())


def test_embeddings_of_another_length_than_the_memory() -> None:
    module = lossmith.loss("supcon", memory_size=8, embedding_dim=4)
    with pytest.raises(ObjectiveInputError, match=r"have dim 3 but the memory of 'supcon' has `embedding_dim` 4\.$"):
        module(torch.ones(2, 3), torch.tensor([0, 0]))


def test_a_joint_sum_with_a_memory_trains() -> None:
    module = lossmith.loss("0.4*cross_entropy + 0.6*supcon", memory_size=6, embedding_dim=DIM).double()
    logits, embeddings, labels = scores_for(build("focal"), 6), scores_for(build("supcon"), 6), torch.arange(6) % 3
    for _ in range(2):
        value = module(logits=logits, embeddings=embeddings, labels=labels)
        assert all(bool(slope.any()) for slope in gradients(value, module, logits, embeddings))


UNEVEN = [0] * 9 + [1] * 5 + [2] * 2 + [3] * 2 + [-100] * 3 + [4] * 7 + [5]


def test_batches_of_p_classes_with_k_rows() -> None:
    sampler = PKBatchSampler(UNEVEN, classes_per_batch=3, samples_per_class=3, num_batches=50, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 50
    turns: Counter[int] = Counter()
    for batch in batches:
        classes = [UNEVEN[i] for i in batch]
        assert all(len(set(classes[place : place + 3])) == 1 for place in (0, 3, 6))
        assert len(set(classes)) == 3
        turns.update(set(classes))
        doubled = {UNEVEN[i] for i, count in Counter(batch).items() if count > 1}
        assert doubled <= {2, 3}, "only a class that is too small repeats a row"
    assert set(turns) == {0, 1, 2, 3, 4}, "a class with one row would be its own positive"
    assert max(turns.values()) - min(turns.values()) <= 1
    rows = Counter(i for batch in batches for i in batch)
    for c in range(5):
        counts = [rows[i] for i, label in enumerate(UNEVEN) if label == c]
        assert max(counts) - min(counts) <= 1, "rows of a class come equally often"


def test_batches_are_those_of_seed_and_epoch() -> None:
    def draw(seed: int, epoch: int) -> list[list[int]]:
        sampler = PKBatchSampler(torch.tensor(UNEVEN), classes_per_batch=2, samples_per_class=3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1)
    assert draw(0, 0) != draw(1, 0)
    assert len(draw(0, 0)) == 25 // 6
    sampler = PKBatchSampler(UNEVEN, classes_per_batch=2, samples_per_class=3, seed=0)
    assert [list(sampler), list(sampler)] == [draw(0, 0), draw(0, 1)], "every pass draws anew"


def test_in_a_data_loader_no_row_lacks_a_positive() -> None:
    data = TensorDataset(torch.randn(len(UNEVEN), DIM), torch.tensor(UNEVEN))
    sampler = PKBatchSampler(UNEVEN, classes_per_batch=2, samples_per_class=2, seed=0)
    module = lossmith.loss("supcon")
    for embeddings, labels in DataLoader(data, batch_sampler=sampler):
        assert module(embeddings, labels).item() > 0


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (
            torch.tensor([[0, 1]]),
            {},
            r"^`labels` must be a flat list of class ids, got torch.int64 of shape \(1, 2\)\.$",
        ),
        (torch.tensor([0.5, 1.0]), {}, r"^`labels` must be a flat list of class ids, got torch.float32"),
        ([], {}, r"^`labels` must be a flat list of class ids"),
        (
            [0, 0, 1, -100],
            {},
            r"^`classes_per_batch` must be at most the number of classes with two rows or more, 1, got",
        ),
        ([0, 0, 1, 1], {"samples_per_class": 1}, r"^`samples_per_class` must be an int >= 2, got 1\.$"),
        ([0, 0, 1, 1], {"classes_per_batch": 0}, r"^`classes_per_batch` must be an int >= 1, got 0\.$"),
        ([0, 0, 1, 1], {"num_batches": 0}, r"^`num_batches` must be an int >= 1, got 0\.$"),
    ],
)
def test_a_sampler_that_cannot_be(labels: list | Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ObjectiveInputError, match=message):
        PKBatchSampler(labels, **{"classes_per_batch": 2, "samples_per_class": 2, **settings})
