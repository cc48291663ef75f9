"""Schedules: cross-entropy first, another loss later; printed, checked, saved, and never silently stuck."""

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from library import build, labels_for, scores_for
from lossmith import ObjectiveInputError
from lossmith.errors import CompositionError
from lossmith.nn import WeightedSum, parse_composition


def _scheduled(text: str, **settings) -> WeightedSum:
    module = build(text, **settings)
    assert isinstance(module, WeightedSum)
    return module


def _batch() -> tuple[Tensor, Tensor]:
    return scores_for(build("focal"), 9), labels_for(9)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("cross_entropy -> lovasz @ 0.3", "cross_entropy -> lovasz_softmax @ 0.3"),
        ("cross_entropy->focal@0.25:0.5", "cross_entropy -> focal @ 0.25:0.5"),
        ("cross_entropy -> focal @ 0 : 1", "cross_entropy -> focal @ 0"),
        (
            "-2*focal(gamma=1)+cross_entropy -> 0.6*cross_entropy - 0.4*lovasz[answer] @ .1:.2 -> poly1 @ 0.2:0.9",
            "-2*focal(gamma=1.0) + cross_entropy -> 0.6*cross_entropy - 0.4*lovasz_softmax[answer] @ 0.1:0.2 "
            "-> poly1 @ 0.2:0.9",
        ),
        ("lovasz(classes='present') -> focal @ 0.5", "lovasz_softmax -> focal @ 0.5"),
    ],
)
def test_printing_gives_the_string_that_builds_it(text: str, printed: str) -> None:
    composition = parse_composition(text)
    assert str(composition) == printed
    assert parse_composition(printed) == composition
    assert str(lossmith.loss(text)) == printed


@pytest.mark.parametrize(
    ("progress", "late"), [(0.0, 0.0), (0.3, 0.0), (0.4, 0.25), (0.5, 0.5), (0.7, 1.0), (1.0, 1.0)]
)
def test_the_phases_share_the_loss(progress: float, late: float) -> None:
    module = _scheduled("cross_entropy -> 0.5*cross_entropy + 2*lovasz @ 0.3:0.7")
    logits, labels = _batch()
    module.set_progress(progress)
    first = build("cross_entropy")(logits, labels)
    second = build("0.5*cross_entropy + 2*lovasz")(logits, labels)
    by_hand = (1 - late) * first + late * second
    value = module(logits, labels)
    assert_close(value, by_hand, rtol=1e-14, atol=0)
    slopes = (torch.autograd.grad(loss, logits)[0] for loss in (value, by_hand))
    assert_close(*slopes, rtol=1e-12, atol=1e-16)


def test_a_hand_over_may_be_a_switch() -> None:
    composition = parse_composition("cross_entropy -> focal @ 0.3:0.3")
    assert str(composition) == "cross_entropy -> focal @ 0.3:0.3"
    assert (composition.shares(0.2999), composition.shares(0.3)) == ((1, 0), (0, 1))


def test_three_phases() -> None:
    composition = parse_composition("cross_entropy -> focal @ 0.2:0.4 -> poly1 @ 0.4:0.8")
    assert composition.shares(0.1) == (1, 0, 0)
    assert composition.shares(0.3) == (0.5, 0.5, 0)
    assert composition.shares(0.4) == (0, 1, 0)
    assert composition.shares(0.5) == (0, 0.75, 0.25)
    assert composition.shares(0.9) == (0, 0, 1)
    assert all(sum(composition.shares(step / 97)) == pytest.approx(1, abs=1e-15) for step in range(98))


def test_a_schedule_that_is_never_moved_says_so() -> None:
    module = _scheduled("cross_entropy -> focal @ 0.3")
    with pytest.raises(
        ObjectiveInputError, match=r"changes over training: call `set_progress\(step / num_steps\)` before"
    ):
        module(*_batch())
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(
            ObjectiveInputError, match=r"^`progress` must be in \[0, 1\], the share of training done, got"
        ):
            module.set_progress(wrong)


def test_progress_travels_with_the_state() -> None:
    module, other = _scheduled("cross_entropy -> focal @ 0.3"), _scheduled("cross_entropy -> focal @ 0.3")
    module.set_progress(0.65)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(*_batch()), other(*_batch()))
    module.set_progress(0.3005)
    assert module.bfloat16().progress.item() == pytest.approx(0.3005, abs=1e-7)
    assert all(value.dtype != torch.float64 for value in lossmith.loss(str(module)).state_dict().values()), "for MPS"
    assert not build("cross_entropy + focal").state_dict()


@pytest.mark.parametrize("text", ["cross_entropy -> focal @ 0.3", "cross_entropy + focal", "bco", "supcon"])
def test_a_loss_made_on_the_meta_device_can_be_given_memory(text: str) -> None:
    with torch.device("meta"):
        module = lossmith.loss(text)
    assert all(not value.is_meta for value in module.to_empty(device="cpu").state_dict().values())


def test_a_phase_that_does_not_count_keeps_its_proxies_in_the_graph() -> None:
    module = _scheduled("cross_entropy -> 0.4*cross_entropy + 0.6*soft_triple @ 0.5")
    module.set_progress(0.2)
    logits, embeddings = scores_for(build("focal"), 6), scores_for(build("supcon"), 6)
    value = module(logits=logits, embeddings=embeddings, labels=labels_for(6))
    _, on_embeddings, on_proxies = torch.autograd.grad(value, [logits, embeddings, *module.parameters()])
    assert not bool(on_embeddings.any())
    assert not bool(on_proxies.any())
    embeddings.data.fill_(torch.nan)
    assert torch.equal(module(logits=logits, embeddings=embeddings, labels=labels_for(6)), value)


HANDED_ON = "0.9*cross_entropy + 0.1*soft_triple -> 0.1*cross_entropy + 0.9*soft_triple @ 0.3:0.7"


def _joint_batch() -> dict[str, Tensor]:
    return {"logits": scores_for(build("focal"), 6), "embeddings": scores_for(build("supcon"), 6)} | {
        "labels": labels_for(6)
    }


def test_equal_terms_of_two_phases_are_one_module_with_one_set_of_proxies() -> None:
    module = _scheduled(HANDED_ON)
    assert str(module) == HANDED_ON
    assert len(module.terms) == 4
    assert module.terms[1] is module.terms[3]
    assert list(module.state_dict()) == ["progress", "terms.1.proxies"]
    (group,) = module.param_groups(1e-3, proxy_lr_multiplier=10.0)
    assert [parameter is module.terms[1].get_parameter("proxies") for parameter in group["params"]] == [True]
    torch.optim.SGD([group])  # warns of a parameter that is there twice, and warnings are errors


@pytest.mark.parametrize(("progress", "late"), [(0.1, 0.0), (0.4, 0.25), (0.9, 1.0)])
def test_what_the_proxies_learnt_goes_on(progress: float, late: float) -> None:
    module, triple = _scheduled(HANDED_ON), build("soft_triple")
    module.terms[1].load_state_dict(triple.state_dict())
    module.set_progress(progress)
    batch = _joint_batch()
    by_head = build("cross_entropy")(batch["logits"], batch["labels"])
    by_hand = ((1 - late) * 0.9 + late * 0.1) * by_head
    by_hand = by_hand + ((1 - late) * 0.1 + late * 0.9) * triple(batch["embeddings"], batch["labels"])
    assert_close(module(**batch), by_hand, rtol=1e-12, atol=0)
    assert list(module.breakdown(**batch)) == ["cross_entropy", "soft_triple"]


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.9])
def test_one_batch_enters_a_shared_memory_once(progress: float) -> None:
    text = "0.4*{0} -> 0.6*{0} @ 0.3:0.7".format("supcon(memory_size=8)")
    module, alone = _scheduled(text), build("supcon(memory_size=8)")
    module.set_progress(progress)
    batch = _joint_batch()
    value = module(batch["embeddings"], batch["labels"])
    share = 0.4 + 0.2 * parse_composition(text).shares(progress)[1]
    assert_close(value, share * alone(batch["embeddings"], batch["labels"]), rtol=1e-12, atol=0)
    assert {name for name in module.state_dict() if "pushed" in name} == {"terms.0.memory.pushed"}
    assert int(module.state_dict()["terms.0.memory.pushed"]) == 6


def test_a_shared_running_mean_goes_on() -> None:
    module = _scheduled("0.4*bco -> 0.6*bco @ 0.3:0.7")
    logps, ref = torch.tensor([[-1.0, -5.0], [-3.0, -4.0]], dtype=torch.float64)
    for step, progress in enumerate((0.0, 0.5, 1.0), 1):
        module.set_progress(progress)
        module(logps, ref, torch.tensor([True, False]))
        counts = [int(value) for name, value in module.state_dict().items() if name.endswith("count")]
        assert counts == [2 * step]


def test_terms_that_differ_keep_their_own() -> None:
    apart = [
        "soft_triple -> soft_triple(gamma=0.2) @ 0.3",
        "soft_triple -> soft_triple[answer] @ 0.3",
        "soft_triple -> proxy_anchor @ 0.3",
        "0.5*soft_triple + 0.5*soft_triple",
    ]
    for text in apart:
        assert len(list(build(text).parameters())) == 2, text
    # Twice in both phases: as many as in one.
    twice = build("0.5*soft_triple + 0.5*soft_triple -> 0.1*soft_triple + 0.9*soft_triple @ 0.3")
    assert list(twice.state_dict()) == ["progress", "terms.0.proxies", "terms.1.proxies"]
    assert [twice.terms[place] for place in (2, 3)] == [twice.terms[place] for place in (0, 1)]


def test_the_state_of_a_shared_term_comes_back(tmp_path) -> None:
    module, other = _scheduled(HANDED_ON), _scheduled(HANDED_ON)
    module.set_progress(0.8)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copied = copy.deepcopy(module)
    assert copied.terms[1] is copied.terms[3]
    assert copied.terms[1] is not module.terms[1]
    batch = _joint_batch()
    assert torch.equal(module(**batch), other(**batch))
    assert torch.equal(module(**batch), copied(**batch))


def test_the_weight_of_each_term_at_a_share_of_training() -> None:
    module = _scheduled(HANDED_ON)
    assert [(str(term), weight) for term, weight in module.weights_at(0.0)] == [
        ("cross_entropy", 0.9),
        ("soft_triple", 0.1),
    ]
    assert [weight for _, weight in module.weights_at(0.5)] == pytest.approx([0.5, 0.5])
    ended = _scheduled("0.4*cross_entropy + 0.6*soft_triple -> 0.5*cross_entropy + 0.5*proxy_anchor @ 0.3")
    assert [(str(term), weight) for term, weight in ended.weights_at(1.0)] == [
        ("cross_entropy", 0.5),
        ("soft_triple", 0.0),
        ("proxy_anchor", 0.5),
    ]


def test_divisors_and_kinds_of_all_phases() -> None:
    module = _scheduled("cross_entropy -> lovasz @ 0.5", region="sequence")
    assert module.items == ("token", "region")
    assert not module.batch_coupled
    logits, labels = scores_for(build("focal"), 4, 5), labels_for(4, 5)
    module.set_progress(0.75)
    whole = module(logits, labels)
    parts = [module(logits[r], labels[r], num_items={"token": 20, "region": 4}) for r in (slice(0, 1), slice(1, 4))]
    assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("cross_entropy -> focal", "A hand-over needs the share of training where it begins, as in A -> B @ 0.3", 14),
        ("cross_entropy @ 0.3", "A place in training belongs to a hand-over, as in A -> B @ 0.3", 14),
        ("cross_entropy -> focal @ soon", "Behind @ stand one or two shares of training, as in @ 0.3 or @ 0.3:0.5", 23),
        ("cross_entropy -> focal @ 0.5:0.2", "A hand-over must lie in 0 <= begin <= end <= 1, this is 0.5:0.2", 23),
        ("cross_entropy -> focal @ nan", "A hand-over must lie in 0 <= begin <= end <= 1, this is nan:1", 23),
        (
            "focal -> poly1 @ 0.1:0.5 -> dft @ 0.4",
            "A hand-over must lie in 0.5 <= begin <= end <= 1, this is 0.4:1",
            32,
        ),
        (
            "focal -> poly1 @ 0.1 -> dft @ 0.4",
            "The hand-over before this one ends at 1: give it an end, as in @ 0.3:0.5",
            28,
        ),
        ("focal -> 2*dpo[answer] @ 0.1", "'dpo' reads no labels, so it has no label scope [answer]", 11),
        ("cross_entropy -> focall @ 0.3", "No objective named 'focall'. Did you mean 'focal'?", 17),
        ("cross_entropy -> 2*(focal @ 0.3", "This composition cannot be read", 19),
        ("-> focal @ 0.3", "This composition cannot be read", 0),
        ("cross_entropy -> @ 0.3", "This composition cannot be read", 17),
    ],
)
def test_a_schedule_that_cannot_be_read(text: str, message: str, place: int) -> None:
    with pytest.raises(CompositionError) as caught:
        parse_composition(text)
    first, shown, caret, *_ = str(caught.value).split("\n")
    assert first.rstrip(":") == message
    assert shown[2:] == text
    assert caret.index("^") - 2 == place
