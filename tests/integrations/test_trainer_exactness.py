"""One batch of 8 is 8 of 1 is 4 of 2, padded left or right or packed: gradients of one step, parameter by parameter."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_cases import (
    IGNORED,
    TOLERANCE,
    Gradients,
    Recorder,
    arguments,
    causal_model,
    distance,
    gradients,
    label_rows,
    log_entry,
    packed,
    padded,
    quick_trainers,
    ragged_rows,
)
from transformers import Trainer

import lossmith
import scalar_oracles
from linear_cases import small_tiles
from lossmith.errors import LossmithWarning
from lossmith.integrations.transformers import LossMixin, LossTrainer

ROWS = ragged_rows()
SEQUENCE = "lovasz_softmax(region='sequence')"


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_trainers(), small_tiles(7, itemsize=4):
        yield


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., tuple[Gradients, dict[str, float]]]:
    """One step of a fresh model under a trainer: its gradients, and what is logged."""

    def run(
        loss: Any,
        size: int = 8,
        parts: int = 1,
        collate: Any = None,
        rows: Any = None,
        trainer: type = LossTrainer,
        model: Any = None,
        columns: tuple[str, ...] = (),
        settings: dict[str, Any] | None = None,
        **own: Any,
    ) -> tuple[Gradients, dict[str, float]]:
        model = causal_model("Llama") if model is None else model
        recorder = Recorder(model)
        made = trainer(
            model,
            arguments(
                tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts, **(settings or {})
            ),
            train_dataset=ROWS if rows is None else rows,
            data_collator=padded("right", *columns) if collate is None else collate(*columns),
            loss=loss,
            callbacks=[recorder],
            **own,
        )
        made.train()
        assert len(recorder.steps) == 1
        return recorder.steps[0], log_entry(made)

    return run


def left(*names: str) -> Any:
    return padded("left", *names)


CUTS: dict[str, tuple[int, int, Any]] = {
    "8 of 1": (1, 8, None),
    "4 of 2": (2, 4, None),
    "3, 3 and 2": (3, 3, None),
    "left padding": (8, 1, left),
    "4 of 2, left padding": (2, 4, left),
    "packed": (8, 1, packed),
    "4 of 2, packed": (2, 4, packed),
}

LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "focal": {},
    "dft": {},
    "cross_entropy(label_smoothing=0.1)": {},
    "focal, sequences the same": {"average": "sequence"},
    SEQUENCE: {},
    f"0.6*cross_entropy + 0.4*{SEQUENCE}": {},
    "0.7*cross_entropy + 0.5*focal[answer] + 0.2*generalized_dice(region='sequence')[answer]": {},
    "focal[answer]": {},
}


@pytest.mark.parametrize("name", LOSSES)
def test_cuts_and_layouts_are_one_batch(step: Any, name: str) -> None:
    """Regressions 1, 3 and 4: one micro-batch of the cuts has ignored labels only."""
    loss, columns = name.partition(", ")[0] if "same" in name else name, ("answer_mask",) if "[" in name else ()
    expected, log = step(loss, columns=columns, **LOSSES[name])
    for cut, (size, parts, collate) in CUTS.items():
        found, logged = step(loss, size, parts, collate, columns=columns, **LOSSES[name])
        assert distance(found, expected) < TOLERANCE, cut
        for figure in ("loss", "nll", "entropy"):
            assert logged[figure] == pytest.approx(log[figure], rel=1e-5), (cut, figure)


ORACLES: dict[str, Callable[[list[float], int], float]] = {
    "cross_entropy": scalar_oracles.cross_entropy,
    "focal": scalar_oracles.focal,
    "dft": lambda logits, label: -scalar_oracles.probs(logits)[label] * scalar_oracles.log_probs(logits)[label],
}


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("loss", ORACLES)
def test_what_is_logged_is_right(step: Any, loss: str, average: str) -> None:
    """Regressions 6 and 8."""
    _, log = step(loss, 2, 4, average=average)
    by_row = [row for row in label_rows(causal_model("Llama"), ROWS) if row]
    values = [[ORACLES[loss](logits, label) for logits, label, _ in row] for row in by_row]
    if average == "token":
        expected = sum(map(sum, values)) / sum(map(len, values))
    else:
        expected = sum(sum(row) / len(row) for row in values) / len(values)
    assert log["loss"] == pytest.approx(expected, rel=1e-5)
    places = [(logits, label) for row in by_row for logits, label, _ in row]
    plain = sum(scalar_oracles.cross_entropy(*place) for place in places) / len(places)
    assert log["nll"] == pytest.approx(plain, rel=1e-5)
    entropy = sum(scalar_oracles.entropy(logits) for logits, _ in places) / len(places)
    assert log["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_a_mixed_sum_with_a_scope_is_right(step: Any) -> None:
    text = f"0.6*cross_entropy + 0.4*{SEQUENCE}[answer]"
    _, log = step(text, 3, 3, packed, columns=("answer_mask",))
    tokens, regions = [], []
    for row, found in zip(ROWS, label_rows(causal_model("Llama"), ROWS), strict=True):
        tokens += [scalar_oracles.cross_entropy(logits, label) for logits, label, _ in found]
        answer = [(logits, label) for logits, label, place in found if row["answer_mask"][place + 1]]
        if answer:
            regions.append(scalar_oracles.lovasz_softmax([a for a, _ in answer], [b for _, b in answer]))
    expected = 0.6 * sum(tokens) / len(tokens) + 0.4 * sum(regions) / len(regions)
    assert log["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [2, 8])
def test_plain_nll_is_that_of_all_labels_whatever_the_scope(step: Any, size: int) -> None:
    """Regression 6: beside a loss that sees an answer only, figures in training are those of evaluation."""
    _, log = step("focal[answer]", size, 8 // size, columns=("answer_mask",))
    places = [place[:2] for row in label_rows(causal_model("Llama"), ROWS) for place in row]
    plain = sum(scalar_oracles.cross_entropy(*place) for place in places) / len(places)
    entropy = sum(scalar_oracles.entropy(logits) for logits, _ in places) / len(places)
    assert (log["nll"], log["entropy"]) == (pytest.approx(plain, rel=1e-5), pytest.approx(entropy, rel=1e-5))


def test_gradient_shares(step: Any) -> None:
    """Norms of the gradients of the terms with respect to the last hidden states, as shares of their sum."""
    text = f"0.6*cross_entropy + 0.4*{SEQUENCE}"
    model, batch = causal_model("Llama"), padded()(ROWS)
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0].detach()
    hidden.requires_grad_()
    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    norms = []
    for weight, term in ((0.6, "cross_entropy"), (0.4, SEQUENCE)):
        (gradient,) = torch.autograd.grad(weight * lossmith.loss(term)(model.lm_head(hidden), labels), hidden)
        norms.append(float(gradient.norm()))
    for size, parts, collate in ((8, 1, None), (2, 4, None), (8, 1, packed)):
        _, log = step(text, size, parts, collate)
        shares = [log["gradient_share/cross_entropy"], log[f"gradient_share/{SEQUENCE}"]]
        assert sum(shares) == pytest.approx(1)
        assert shares == pytest.approx([norm / sum(norms) for norm in norms], rel=1e-4)
        assert min(shares) > 0.01


def test_nothing_counts_in_the_whole_step(step: Any) -> None:
    rows = [{**row, "labels": [IGNORED] * len(row["labels"])} for row in ROWS]
    for loss in ("cross_entropy", SEQUENCE, f"cross_entropy + {SEQUENCE}"):
        found, log = step(loss, 2, 4, rows=rows)
        assert found
        assert all(float(gradient.abs().sum()) == 0 for gradient in found.values())
        assert log["loss"] == 0
        assert "nll" not in log


@pytest.mark.parametrize("impl", ["dense", "chunked"])
def test_engines(step: Any, impl: str) -> None:
    text = f"0.6*focal + 0.4*{SEQUENCE}"
    assert distance(step(text, impl=impl)[0], step(text)[0]) < TOLERANCE


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")
def test_gradient_checkpointing(step: Any, reentrant: bool) -> None:
    checkpointed = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert distance(step("focal", 2, 4, settings=checkpointed)[0], step("focal")[0]) < TOLERANCE


def test_half_precision_is_near(step: Any) -> None:
    exact, log = step("focal", 2, 4)
    found, logged = step("focal", 2, 4, settings={"bf16": True})
    assert 0 < distance(found, exact) < 0.05
    assert logged["loss"] == pytest.approx(log["loss"], rel=2e-2)


def test_a_region_over_the_batch_is_not_several_micro_batches(step: Any) -> None:
    with pytest.warns(LossmithWarning, match="couples the items of a batch"):
        found, _ = step("lovasz_softmax", 4, 2)
    expected, _ = step("lovasz_softmax")
    assert distance(found, expected) > 1e-3


def test_what_experts_add_is_a_mean_over_micro_batches(step: Any) -> None:
    """Their balance is defined on a batch, so it is the mean over the micro-batches, whatever the loss divides by."""
    settings = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    two = [ROWS[:4], ROWS[4:]]
    model = causal_model("Mixtral", **settings)
    for rows in two:
        batch = padded()(rows)
        labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        counted = sum(sum(t != IGNORED for t in row["labels"][1:]) for row in ROWS)
        total = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (total / counted + 0.5 * outputs.aux_loss / 2).backward()
    found, _ = step("cross_entropy", 4, 2, model=causal_model("Mixtral", **settings))
    assert distance(found, gradients(model)) < TOLERANCE
    without = {**settings, "router_aux_loss_coef": 0.0}
    assert distance(step("cross_entropy", 4, 2, model=causal_model("Mixtral", **without))[0], found) > 1e-3


class OlderTrainer(Trainer):
    """Decides as transformers 5.0 to 5.21 do: it divides unless the model takes the number of items and has got it."""

    loss_is_scaled_for_ga = property(lambda self: None, lambda self, value: None)  # pyright: ignore


class OlderLossTrainer(LossMixin, OlderTrainer):
    loss_is_scaled_for_ga = None  # pyright: ignore


def test_where_the_trainer_decides_who_divides(step: Any) -> None:
    expected, log = step("cross_entropy")
    found, logged = step("cross_entropy", 2, 4, trainer=OlderLossTrainer)
    assert distance(found, expected) < TOLERANCE
    assert logged["loss"] == pytest.approx(log["loss"], rel=1e-5)


class ToldOtherwise(LossTrainer):
    """Whose Trainer believes that the model was not told the number of items."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


@pytest.mark.skipif(not hasattr(Trainer, "loss_is_scaled_for_ga"), reason="transformers before 5.22")
def test_the_loss_says_that_it_is_divided(step: Any) -> None:
    assert distance(step("cross_entropy", 2, 4, trainer=ToldOtherwise)[0], step("cross_entropy")[0]) < TOLERANCE


def test_a_model_that_takes_no_extra_keywords(step: Any) -> None:
    """For such the Trainer would divide the loss by the number of micro-batches."""
    model = causal_model("Llama")
    model.accepts_loss_kwargs = False
    for trainer in (LossTrainer, OlderLossTrainer):
        model.zero_grad()
        found, _ = step("cross_entropy", 2, 4, model=model, trainer=trainer, settings={"learning_rate": 1e-30})
        assert distance(found, step("cross_entropy")[0]) < TOLERANCE


class Subclass(Trainer):
    """A user's own trainer."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the loss is the mixin's")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "mine": 1.0}, *args, **kwargs)


class MixedIn(LossMixin, Subclass):
    pass


def test_mixed_into_a_trainer_of_the_users_own(step: Any) -> None:
    found, log = step("focal", 2, 4, trainer=MixedIn)
    assert distance(found, step("focal")[0]) < TOLERANCE
    assert log["mine"] == 1.0
    assert "nll" in log


def test_contract_with_the_trainer() -> None:
    """Relied on: a step's micro-batches come from `get_batch_samples`, and its second value reaches `compute_loss`."""
    assert list(inspect.signature(Trainer.get_batch_samples).parameters)[1:] == [
        "epoch_iterator",
        "num_batches",
        "device",
    ]
    assert "num_items_in_batch" in inspect.signature(Trainer.compute_loss).parameters
    assert "num_items_in_batch" in inspect.signature(Trainer.training_step).parameters
    for name in ("_set_signature_columns_if_needed", "_load_best_model", "call_model_init"):
        assert callable(getattr(Trainer, name))
    for name in ("_load_from_checkpoint", "_load_optimizer_and_scheduler"):
        assert f"self.{name}(resume_from_checkpoint" in inspect.getsource(Trainer), name
