import math
import warnings

import numpy as np
import pytest
import torch

import lossmith
from lossmith.errors import DataError
from lossmith.explain import weigh_examples, weight_curves


def draw(count=12, classes=3, dim=4):
    rng = np.random.default_rng(5)
    return (
        rng.normal(size=(count, classes)).astype("float32"),
        rng.normal(size=(count, dim)).astype("float32"),
        np.arange(count) % classes,
    )


def softmax_row(row):
    top = max(row)
    parts = [math.exp(value - top) for value in row]
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize("batch_size", [12, 5])
def test_cross_entropy_pulls_by_its_error_whatever_the_batch(batch_size):
    logits, _, labels = draw()
    found = weigh_examples(lossmith.loss("cross_entropy"), logits=logits, labels=labels, batch_size=batch_size)
    assert list(found.norms) == ["logits"]
    for row, label, norm, difficulty in zip(
        logits.tolist(), labels.tolist(), found.norms["logits"], found.difficulty, strict=True
    ):
        p = softmax_row(row)
        error = math.sqrt(sum((value - (place == label)) ** 2 for place, value in enumerate(p)))
        assert norm == pytest.approx(error, rel=1e-5)
        assert difficulty == pytest.approx(1 - p[label], rel=1e-6)


def test_a_coupled_loss_pulls_by_the_gradient_of_the_batch():
    _, embeddings, labels = draw()
    loss = lossmith.loss("supcon")
    found = weigh_examples(loss, logits=np.zeros((12, 3)), embeddings=embeddings, labels=labels, batch_size=12)
    step = 1e-4
    for row in (0, 7):
        slopes = []
        for place in range(4):
            values = []
            for sign in (1, -1):
                moved = embeddings.astype("float64")
                moved[row, place] += sign * step
                values.append(float(loss(torch.from_numpy(moved), torch.from_numpy(labels))))
            slopes.append(12 * (values[0] - values[1]) / (2 * step))
        assert found.norms["embeddings"][row] == pytest.approx(math.hypot(*slopes), rel=1e-3)


@pytest.mark.parametrize(("batch_size", "classes", "per_class"), [(8, 2, 2), (6, 5, 2), (9, 3, 3)])
def test_balanced_batches_hold_several_rows_of_each_class_and_every_row_once(batch_size, classes, per_class):
    labels = np.sort(np.arange(37) % classes)
    seen = []

    class Watching(torch.nn.Module):
        required, inputs = ("embeddings", "labels"), ("embeddings", "labels")

        def forward(self, embeddings, labels):
            seen.append((embeddings[:, 0].int().tolist(), labels.tolist()))
            return embeddings.square().sum()

    vectors = np.arange(37.0)[:, None]
    found = weigh_examples(
        Watching(),
        logits=np.zeros((37, classes)),
        labels=labels,
        embeddings=vectors,
        batch_size=batch_size,
        samples_per_class=per_class,
    )
    assert sorted(row for rows, _ in seen for row in rows) == list(range(37))
    assert (found.norms["embeddings"][1:] > 0).all()
    full = [names for _, names in seen if len(names) == batch_size]
    assert len(full) >= 37 // batch_size - 2
    for names in full:
        assert min(names.count(name) for name in set(names)) >= per_class
        assert len(set(names)) > 1


def test_through_a_linear_head_the_embedding_feels_the_logits():
    _, embeddings, labels = draw()
    head = torch.nn.Linear(4, 3)
    weight = head.weight.detach().numpy()
    logits = embeddings @ weight.T + head.bias.detach().numpy()
    found = weigh_examples(
        lossmith.loss("cross_entropy"), logits=logits, embeddings=embeddings, labels=labels, head=head, batch_size=6
    )
    for row in range(12):
        p = softmax_row(logits[row].tolist())
        pull = [sum(weight[c, d] * (p[c] - (c == labels[row])) for c in range(3)) for d in range(4)]
        assert found.norms["embeddings"][row] == pytest.approx(math.hypot(*pull), rel=1e-4)
    assert found.norms["logits"].min() > 0


def test_a_joint_loss_pulls_at_both_and_leaves_the_loss_as_it_was():
    logits, embeddings, labels = draw()
    loss = lossmith.loss("0.4*cross_entropy + 0.6*soft_triple", num_classes=3, embedding_dim=4)
    before = loss.training
    found = weigh_examples(loss, logits=logits, embeddings=embeddings, labels=labels)
    alone = weigh_examples(lossmith.loss("cross_entropy"), logits=logits, labels=labels)
    np.testing.assert_allclose(found.norms["logits"], 0.4 * alone.norms["logits"], rtol=1e-5)
    assert found.norms["embeddings"].min() > 0
    assert loss.training == before
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_rows_without_a_positive_have_no_pull_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weigh_examples(
            lossmith.loss("supcon"), logits=np.zeros((5, 3)), embeddings=np.eye(5, 4), labels=np.array([0, 0, 0, 0, 1])
        )
    assert np.isfinite(found.norms["embeddings"]).all()


def test_shares_add_up_and_follow_difficulty():
    logits, _, labels = draw(40)
    losses = {name: lossmith.loss(name) for name in ("cross_entropy", "focal")}
    curves = weight_curves({n: {0: weigh_examples(m, logits=logits, labels=labels)} for n, m in losses.items()}, bins=5)
    frame = curves.frame()
    totals = frame.groupby("model")["share"].sum()
    assert totals.to_list() == pytest.approx([1, 1])
    hardest = frame[frame["decile"] == 5].set_index("model")["share"]
    assert hardest["focal"] > hardest["cross_entropy"] > 1 / 5
    rising = frame[frame["model"] == "focal"]["difficulty"].to_list()
    assert rising == sorted(rising)
    curves.plot()
    curves.plot(place="embeddings")
    with pytest.raises(DataError, match="`place` must be one of logits, embeddings, got 'hidden'"):
        curves.plot(place="hidden")


def test_mistakes_are_named():
    logits, embeddings, labels = draw()
    with pytest.raises(DataError, match="'supcon' reads embeddings: give `embeddings`"):
        weigh_examples(lossmith.loss("supcon"), logits=logits, labels=labels)
    with pytest.raises(DataError, match="'dpo' reads `chosen_logps`"):
        weigh_examples(lossmith.loss("dpo"), logits=logits, labels=labels)
    with pytest.raises(DataError, match="with a label each"):
        weigh_examples(lossmith.loss("focal"), logits=logits, labels=labels[:3])
    with pytest.raises(DataError, match="`embeddings` must have 12 rows"):
        weigh_examples(lossmith.loss("focal"), logits=logits, labels=labels, embeddings=embeddings[:4])
    with pytest.raises(DataError, match="at least one model"):
        weight_curves({})
