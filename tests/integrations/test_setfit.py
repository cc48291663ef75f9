"""SetFit: our losses see single texts in balanced batches, proxies learn, SetFit's own losses are left alone."""

from pathlib import Path

import pytest
import setfit
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from setfit import SetFitModel, TrainingArguments
from setfit.losses import SupConLoss
from sklearn.linear_model import LogisticRegression

import lossmith
import tiny
from lossmith.errors import CompositionError, ConfigurationError, ObjectiveInputError
from lossmith.integrations.sentence_transformers import EmbeddingLoss, PKBatches
from lossmith.integrations.sentence_transformers.batches import PKBatchesOfDataset
from lossmith.integrations.setfit import Trainer, loss

# SetFit's trainer pins memory whether or not there is an accelerator.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")

JOINT = "0.4*cross_entropy + 0.6*soft_triple"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.0)


def rows_of(count: int, seed: int = 1, names: bool = False) -> Dataset:
    rows = tiny.sentences(count, seed)
    labels = [row["label"] if names else int(row["label"] == "positive") for row in rows]
    return Dataset.from_dict({"text": [row["text"] for row in rows], "label": labels})


@pytest.fixture
def trainer_of(model_folder, tmp_path):
    def make(made, data: Dataset | None = None, *, trainer=Trainer, eval_dataset: Dataset | None = None, **extra):
        torch.manual_seed(0)
        body = SentenceTransformer(modules=[Transformer(str(model_folder)), Pooling(16, "mean")], device="cpu")
        settings = {
            "output_dir": str(tmp_path / "out"),
            "batch_size": (8, 2),
            "num_epochs": (1, 1),
            "body_learning_rate": (1e-3, 1e-5),
            "save_strategy": "no",
            "report_to": "none",
            "show_progress_bar": False,
            **extra,
        }
        return trainer(
            SetFitModel(model_body=body, model_head=LogisticRegression()),
            TrainingArguments(loss=made, **settings),
            train_dataset=data or rows_of(24),
            eval_dataset=eval_dataset,
            metric=lambda predicted, expected: float(
                (torch.as_tensor(predicted) == torch.as_tensor(expected)).float().mean()
            ),
        )

    return make


class Recorder:
    """The collator of the trainer of the body, remembering the rows of every batch."""

    def __init__(self, trainer):
        self.collator = trainer.st_trainer.data_collator
        self.batches: list[list[dict]] = []
        trainer.st_trainer.data_collator = self

    def __call__(self, features):
        self.batches.append(features)
        return self.collator(features)

    def __getattr__(self, name):
        return getattr(self.collator, name)


@pytest.mark.parametrize("text", ["supcon", "triplet_margin", JOINT])
def test_single_texts_come_in_class_balanced_batches(trainer_of, text):
    # Seven rows of class 0 in 31: a random batch of 8 would seldom be balanced.
    data = rows_of(48).filter(lambda row, index: row["label"] == 1 or index < 14, with_indices=True)
    trainer = trainer_of(loss(text), data)
    record = Recorder(trainer)
    trainer.train()
    assert isinstance(trainer.st_trainer.args.batch_sampler, PKBatches)
    drawn = trainer.st_trainer._train_dataloader.batch_sampler
    assert isinstance(drawn, PKBatchesOfDataset)
    assert len(record.batches) == 31 // 8
    for batch in record.batches:
        assert [set(row) for row in batch] == [{"sentence", "label"}] * 8
        assert sorted(row["label"] for row in batch) == [0] * 4 + [1] * 4
        assert all(data["label"][data["text"].index(row["sentence"])] == row["label"] for row in batch)


def test_setfits_own_check_for_a_balanced_sampler_never_holds(trainer_of):
    """Contract, setfit#644: the reason why the sampler is set here; a SetFit that mends it makes this fail."""
    trainer = trainer_of(SupConLoss, trainer=setfit.Trainer)
    trainer.train()
    assert trainer.st_trainer.args.batch_sampler == "batch_sampler"
    assert not isinstance(trainer.st_trainer._train_dataloader.batch_sampler, PKBatchesOfDataset)


def test_setfits_own_losses_are_trained_as_setfit_trains_them(trainer_of):
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    ends = []
    for trainer in (Trainer, setfit.Trainer):
        made = trainer_of(CosineSimilarityLoss, rows_of(8), trainer=trainer, max_steps=3)
        made.train()
        assert set(made.st_trainer.train_dataset.column_names) == {"sentence_1", "sentence_2", "label"}
        ends.append(made.model.model_body.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_proxies_and_head_learn_at_their_own_rate(trainer_of, monkeypatch):
    trainer = trainer_of(loss(JOINT, proxy_lr_multiplier=30.0))
    starts = []
    build = EmbeddingLoss.__init__

    def remembering(self, *args, **kwargs):
        build(self, *args, **kwargs)
        starts.append({name: value.detach().clone() for name, value in self.named_own_parameters().items()})

    monkeypatch.setattr(EmbeddingLoss, "__init__", remembering)
    trainer.train()
    module = trainer.st_trainer.loss
    (start,) = starts
    for name, value in module.named_own_parameters().items():
        assert not torch.equal(value, start[name]), name
    own = {id(value) for value in module.named_own_parameters().values()}
    (group,) = [g for g in trainer.st_trainer.optimizer.param_groups if own & {id(value) for value in g["params"]}]
    assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(3e-2), 0.0)


def test_a_second_call_of_train_moves_its_own_proxies(trainer_of):
    trainer = trainer_of(loss("proxy_nca"))
    trainer.train()
    first = trainer.st_trainer.loss
    trainer.train()
    second = trainer.st_trainer.loss
    assert second is not first
    groups = trainer.st_trainer.optimizer.param_groups
    assert any(second.loss.proxies is value for group in groups for value in group["params"])


def test_names_of_classes_train_and_predict(trainer_of):
    data = rows_of(24, names=True)
    trainer = trainer_of(loss("supcon"), data, eval_dataset=rows_of(8, 2, names=True), eval_strategy="epoch")
    trainer.train()
    evaluated = [
        entry["eval_embedding_loss"] for entry in trainer.st_trainer.state.log_history if "eval_embedding_loss" in entry
    ]
    assert len(evaluated) == 1
    assert 0 < evaluated[0] < 10
    assert set(trainer.model.predict(data["text"][:4])) <= {"negative", "positive"}


def test_the_model_is_saved_and_loaded_by_setfit(trainer_of, tmp_path):
    trainer = trainer_of(loss(JOINT), save_strategy="epoch")
    trainer.train()
    checkpoint = next((tmp_path / "out").glob("checkpoint-*"))
    assert (checkpoint / "loss.safetensors").is_file()
    trainer.model.save_pretrained(str(tmp_path / "model"))
    assert "0.4*cross_entropy + 0.6*soft_triple" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    loaded = SetFitModel.from_pretrained(str(tmp_path / "model"), device="cpu")
    texts = rows_of(12)["text"]
    assert loaded.predict(texts).tolist() == trainer.model.predict(texts).tolist()


def test_a_class_with_one_text_is_left_out_of_the_batches(trainer_of):
    data = Dataset.from_dict({"text": [*rows_of(8)["text"], "so so"], "label": [*rows_of(8)["label"], 2]})
    trainer = trainer_of(loss("supcon"), data)
    record = Recorder(trainer)
    trainer.train()
    assert {row["label"] for batch in record.batches for row in batch} == {0, 1}
    assert torch.isfinite(torch.tensor(trainer.st_trainer.state.log_history[-1]["train_loss"]))


def test_setfits_own_trainer_is_refused(trainer_of):
    with pytest.raises(
        ConfigurationError, match=r"'supcon' takes single texts .* use lossmith\.integrations\.setfit\.Trainer"
    ):
        trainer_of(loss("supcon"), trainer=setfit.Trainer).train()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("margin", 0.5), ("num_iterations", 3), ("sampling_strategy", "unique"), ("distance_metric", torch.dist)],
)
def test_arguments_that_would_do_nothing_are_refused(trainer_of, setting, value):
    with pytest.raises(
        ConfigurationError, match=rf"^`{setting}` only reaches SetFit's own losses and pairs, not 'supcon'"
    ):
        trainer_of(loss("supcon"), **{setting: value}).train()


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([[0, 1], [1, 0]], r"'supcon' needs one class per text, an integer or a string, got the label \[0, 1\]"),
        ([0.5, 1.0], r"needs one class per text, .* got the label 0\.5"),
        ([0, 0], r"need at least two classes with two rows or more, `label` has 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(trainer_of, labels, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        trainer_of(loss("supcon"), Dataset.from_dict({"text": ["good", "bad"], "label": labels})).train()


def test_other_bad_input_says_so(trainer_of):
    with pytest.raises(CompositionError, match=r"Did you mean 'supcon'\?"):
        loss("supconn")
    with pytest.raises(ObjectiveInputError, match=r"`text` must be a composition such as 'supcon', got MetricLoss"):
        loss(lossmith.loss("supcon"))
    with pytest.raises(ObjectiveInputError, match=r"`proxy_lr_multiplier` must be > 0, got -1"):
        loss("supcon", proxy_lr_multiplier=-1.0)
    with pytest.raises(ObjectiveInputError, match=r"'focal' reads no embeddings"):
        trainer_of(loss("focal")).train()
    other = Dataset.from_dict({"text": ["a", "b"], "label": [0, 7]})
    trainer = trainer_of(loss("supcon"), eval_dataset=rows_of(2), eval_strategy="epoch")
    with pytest.raises(ConfigurationError, match=r"need at least two classes with two rows or more, `label` has 0"):
        trainer.train()
    assert trainer.st_trainer.state.global_step == 0
    with pytest.raises(ConfigurationError, match=r"The class 7 is in `eval_dataset` but not in `train_dataset`"):
        trainer_of(loss("supcon"), eval_dataset=other, eval_strategy="epoch").train()
    with pytest.raises(
        ConfigurationError, match=r"`samples_per_class` must be >= 2 and at most half a batch, got 5 in"
    ):
        trainer_of(loss("supcon", samples_per_class=5)).train()


def test_schedules_follow_the_training_of_the_body(trainer_of):
    trainer = trainer_of(loss("supcon -> nt_xent @ 0.5"))
    trainer.train()
    assert float(trainer.st_trainer.loss.loss.progress) == pytest.approx(2 / 3)
