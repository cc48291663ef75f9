"""`lossmith.debug()`: values are checked inside the block only, with the place of the fault."""

import pytest
import torch

import lossmith
from lossmith import ObjectiveInputError


def test_nothing_is_checked_outside() -> None:
    assert torch.isnan(lossmith.loss("focal")(torch.tensor([[0.0, torch.nan]]), torch.tensor([0])))
    with lossmith.debug():
        pass
    assert torch.isnan(lossmith.loss("focal")(torch.tensor([[0.0, torch.nan]]), torch.tensor([0])))


@pytest.mark.parametrize("name", ["focal", "lovasz_softmax", "0.5*focal + cross_entropy"])
def test_logits_must_be_finite_where_they_count(name: str) -> None:
    logits = torch.zeros(4, 3)
    logits[1] = torch.nan
    logits[3, 2] = torch.inf
    labels = torch.tensor([0, -100, 1, 2])
    with lossmith.debug():
        with pytest.raises(
            ObjectiveInputError, match=r"^`logits` must be finite where they count, got inf at \[3\]\.$"
        ):
            lossmith.loss(name)(logits, labels)
        logits[3, 2] = 0
        logits[0, 1] = -torch.inf
        assert bool(torch.isfinite(lossmith.loss(name)(logits, labels)))
        logits[2, 1] = -torch.inf
        with pytest.raises(ObjectiveInputError, match=r"^`logits` must .*, got -inf at \[2\] for the label 1\.$"):
            lossmith.loss(name)(logits, labels)


def test_places_are_those_of_the_input() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 0] = torch.nan
    labels = torch.tensor([[-100, 1, 2], [-100, 0, 1]])
    with lossmith.debug(), pytest.raises(ObjectiveInputError, match=r"got nan at \[1, 2\]\.$"):
        lossmith.loss("focal")(logits, labels)


def test_weights_must_be_finite_where_they_count() -> None:
    weights = torch.tensor([1.0, torch.nan, torch.nan])
    with (
        lossmith.debug(),
        pytest.raises(ObjectiveInputError, match=r"^`weights` must be finite .*, got nan at \[2\]\.$"),
    ):
        lossmith.loss("focal")(torch.zeros(3, 2), torch.tensor([0, -100, 1]), weights=weights)


def test_embeddings_and_log_probabilities_must_be_finite() -> None:
    embeddings = torch.ones(4, 2)
    embeddings[2, 1] = -torch.inf
    logps = torch.tensor([-1.0, -2.0])
    with lossmith.debug():
        with pytest.raises(ObjectiveInputError, match=r"^`embeddings` must be finite .*, got -inf at \[2\]\.$"):
            lossmith.loss("supcon")(embeddings, torch.tensor([0, 0, 1, 1]))
        with pytest.raises(ObjectiveInputError, match=r"^`ref_chosen_logps` must be finite .*, got nan at \[1\]\.$"):
            lossmith.loss("dpo")(logps, logps, torch.tensor([0.0, torch.nan]), logps)
        with pytest.raises(ObjectiveInputError, match=r"^`kl` must be finite .*, got nan at \[0\]\.$"):
            lossmith.loss("kto")(logps, logps, logps < 0, torch.tensor(torch.nan))


def test_a_class_that_never_comes_is_named_when_the_block_ends() -> None:
    module = lossmith.loss("soft_triple", num_classes=5, embedding_dim=2)
    message = r"^`num_classes` of 'soft_triple' is 5, but no label was 1, 4 \(2 unused\)\. Are the labels those of this"
    with pytest.raises(ObjectiveInputError, match=message):  # noqa: PT012, SIM117 (the end of the block raises)
        with lossmith.debug():
            module(torch.ones(2, 2), torch.tensor([0, 3]))
            module(torch.ones(2, 2), torch.tensor([2, -100]))
    with lossmith.debug():
        module(torch.ones(5, 2), torch.arange(5))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117 (the error of the block itself is shown)
        with lossmith.debug():
            module(torch.ones(2, 2), torch.tensor([0, 3]))
            raise ZeroDivisionError


def test_labels_are_checked_on_every_device() -> None:
    from lossmith._checks import check_label_range

    class Elsewhere(torch.Tensor):
        """A tensor that says it lies on another device; its values are on the CPU."""

        device = torch.device("cuda:0")

    labels = torch.tensor([0, 7]).as_subclass(Elsewhere)
    check_label_range(labels, 3, size_name="vocab", ignore_index=-100)
    with pytest.raises(ObjectiveInputError, match=r"^`labels` reach 7 but `vocab` is 3"), lossmith.debug():
        check_label_range(labels, 3, size_name="vocab", ignore_index=-100)
