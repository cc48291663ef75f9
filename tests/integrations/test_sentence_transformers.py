"""sentence-transformers: the loss equals a hand-made one, balanced batches are really drawn, proxies live on."""

import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import ClassLabel, Dataset, Features, Value
from pytorch_metric_learning import losses
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.testing import assert_close

import lossmith
import tiny
from lossmith.errors import ConfigurationError, LossmithWarning, ModelError, ObjectiveInputError
from lossmith.integrations.pytorch_metric_learning import from_pml, joint
from lossmith.integrations.sentence_transformers import EmbeddingLoss, LossTrainer, PKBatches

JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"
METRIC = [record.name for record in lossmith.list_losses("metric")]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.0)


@pytest.fixture
def encoder(model_folder):
    def make(*, dropout: float = 0.0) -> SentenceTransformer:
        transformer = Transformer(str(model_folder), config_kwargs={"hidden_dropout_prob": dropout})
        return SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu")

    return make


def rows_of(count: int, seed: int = 1, skewed: bool = False) -> Dataset:
    sentences = tiny.sentences(count, seed)
    labels = [int(row["label"] == "positive") for row in sentences]
    if skewed:
        # One class in ten, so that a random batch of 8 often lacks a second row of it.
        order = [i for i, label in enumerate(labels) if label == 1 or i % 10 == 0]
        sentences, labels = [sentences[i] for i in order], [labels[i] for i in order]
    return Dataset.from_dict({"text": [row["text"] for row in sentences], "label": labels})


@pytest.fixture
def trainer_of(encoder, tmp_path):
    def make(loss, data: Dataset | None = None, *, trainer=LossTrainer, dropout: float = 0.0, **extra):
        own = {name: extra.pop(name) for name in ("proxy_lr_multiplier", "eval_dataset") if name in extra}
        settings = {
            "per_device_train_batch_size": 8,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 0,
            **extra,
        }
        arguments = SentenceTransformerTrainingArguments(str(tmp_path / "out"), **settings)
        torch.manual_seed(0)
        model = encoder(dropout=dropout)
        made = loss(model) if callable(loss) and not isinstance(loss, torch.nn.Module) else loss
        return trainer(model, args=arguments, train_dataset=data or rows_of(32), loss=made, **own)

    return make


class Recorder:
    """The trainer's collator, remembering the rows of every batch that it was asked to make."""

    def __init__(self, trainer):
        self.collator = trainer.data_collator
        self.batches: list[list[dict]] = []
        trainer.data_collator = self

    def __call__(self, features):
        self.batches.append(features)
        return self.collator(features)

    def __getattr__(self, name):
        return getattr(self.collator, name)

    @property
    def labels(self) -> list[list[int]]:
        return [[row["label"] for row in batch] for batch in self.batches]


def embedded(model: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    return model(model.preprocess(texts))["sentence_embedding"]


def test_supcon_is_the_scalar_formula_on_the_models_own_embeddings(encoder):
    model = encoder()
    data, temperature = rows_of(6), 0.2
    labels = [0, 0, 1, 1, 0, 1]
    loss = EmbeddingLoss(model, "supcon", temperature=temperature)
    value = loss([model.preprocess(data["text"])], torch.tensor(labels))
    vectors = [[float(x) for x in row] for row in embedded(model, data["text"]).detach()]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) / temperature

    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        log_sum = math.log(sum(math.exp(cosine(vectors[i], vectors[j])) for j in others))
        positives = [j for j in others if labels[j] == labels[i]]
        total += sum(log_sum - cosine(vectors[i], vectors[j]) for j in positives) / len(positives)
    assert float(value.detach()) == pytest.approx(total / 6, rel=1e-5)


def test_the_head_of_a_joint_loss_reads_the_embeddings(encoder):
    model, data = encoder().eval(), rows_of(6)
    torch.manual_seed(3)
    loss = EmbeddingLoss(model, "0.3*cross_entropy + 0.7*normalized_softmax", num_classes=3)
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    value = loss([model.preprocess(data["text"])], labels)
    vectors = embedded(model, data["text"])
    assert loss.head is not None
    logits = vectors @ loss.head.weight.T + loss.head.bias
    nll = -logits.log_softmax(-1)[torch.arange(6), labels].mean()
    metric = loss.loss.terms[1](vectors, labels)
    assert_close(value, 0.3 * nll + 0.7 * metric)
    assert float((0.3 * nll).detach()) > 0.1


@pytest.mark.parametrize("name", METRIC)
def test_every_metric_objective_trains_alone_and_beside_cross_entropy(trainer_of, name):
    for text in (name, f"0.5*cross_entropy + 0.5*{name}"):
        trainer = trainer_of(text, rows_of(16), batch_sampler=PKBatches())
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        own = {key: value.detach().clone() for key, value in trainer.loss.named_own_parameters().items()}
        assert math.isfinite(trainer.train().training_loss)
        moved = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])]
        assert moved
        for key, value in trainer.loss.named_own_parameters().items():
            assert not torch.equal(value, own[key]), key


def test_the_vanilla_trainer_optimises_proxies_and_says_what_it_does_not_do(trainer_of):
    trainer = trainer_of(
        lambda model: EmbeddingLoss(model, JOINT, num_classes=2), trainer=SentenceTransformerTrainer, max_steps=2
    )
    before = {key: value.detach().clone() for key, value in trainer.loss.named_own_parameters().items()}
    with pytest.warns(
        LossmithWarning, match=r"owns parameters, which only .*LossTrainer saves in checkpoints and synchron"
    ):
        trainer.train()
    assert set(before) == {"loss.terms.1.proxies", "head.weight", "head.bias"}
    for key, value in trainer.loss.named_own_parameters().items():
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("trainer", [LossTrainer, SentenceTransformerTrainer])
def test_the_trainer_really_draws_class_balanced_batches(trainer_of, trainer):
    data = rows_of(80, skewed=True)
    assert data["label"].count(0) == 8
    made = "supcon" if trainer is LossTrainer else lambda model: EmbeddingLoss(model, "supcon")
    active = trainer_of(made, data, trainer=trainer, batch_sampler=PKBatches(), num_train_epochs=2)
    record = Recorder(active)
    active.train()
    assert len(record.labels) == 2 * (48 // 8)
    assert all(sorted(batch) == [0, 0, 0, 0, 1, 1, 1, 1] for batch in record.labels)


def test_without_it_random_batches_lack_positives_and_the_loss_says_so(trainer_of):
    plain = trainer_of("supcon", rows_of(80, skewed=True))
    record = Recorder(plain)
    with pytest.warns(LossmithWarning, match="larger or class-balanced batches avoid this"):
        plain.train()
    assert any(sorted(batch) != [0, 0, 0, 0, 1, 1, 1, 1] for batch in record.labels)


def test_classes_and_rows_of_a_batch_follow_the_batch_size():
    labels = [c for c in range(6) for _ in range(10)] + [6]
    data = Dataset.from_dict({"text": [str(i) for i in range(61)], "label": labels})
    for size, classes, each in ((32, 6, 5), (8, 2, 4), (12, 3, 4), (200, 6, 10)):
        for batch in PKBatches()(data, size, False):
            drawn = [labels[row] for row in batch]
            assert len(set(drawn)) == classes
            assert all(drawn.count(c) == each for c in set(drawn))
            assert 6 not in drawn


def test_epochs_have_batches_of_their_own():
    sampler = PKBatches(2)(rows_of(40), 8, False, seed=5)
    sampler.set_epoch(1)
    first = list(sampler)
    sampler.set_epoch(2)
    second = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first != second


def test_resumed_ranks_draw_the_batches_of_their_epoch(trainer_of):
    """The wrappers of accelerate forward no epoch: on a rank of several, the trainer alone would draw epoch 0 again."""
    trainer = trainer_of("supcon", batch_sampler=PKBatches(), num_train_epochs=1)
    trainer.train()
    batches = trainer.args.batch_sampler(rows_of(40), 8, False, seed=5)
    shard = BatchSamplerShard(batches, num_processes=2, process_index=1, even_batches=False)
    assert not hasattr(shard, "set_epoch")
    assert len(shard) == len(list(shard)) == 2
    trainer.callback_handler.train_dataloader = torch.utils.data.DataLoader(rows_of(40), batch_sampler=shard)
    trainer.state.epoch = 3.5
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
    drawn = list(shard)
    batches.set_epoch(3)
    assert drawn == list(batches)[1::2][:2]
    batches.set_epoch(0)
    assert drawn != list(batches)[1::2][:2]


def test_proxies_learn_at_their_own_rate_without_decay(trainer_of):
    trainer = trainer_of(JOINT, weight_decay=0.1, proxy_lr_multiplier=20.0)
    groups = trainer.create_optimizer().param_groups
    own = {id(value) for value in trainer.loss.named_own_parameters().values()}
    (group,) = [group for group in groups if own & {id(value) for value in group["params"]}]
    assert {id(value) for value in group["params"]} == own
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(2e-2), 0.0)
    everything = [id(value) for group in groups for value in group["params"]]
    assert sorted(everything) == sorted(id(value) for value in trainer.loss.parameters())


def test_a_learning_rate_of_the_training_arguments_wins(trainer_of):
    trainer = trainer_of(JOINT, learning_rate_mapping={r"proxies": 0.5})
    groups = trainer.create_optimizer().param_groups
    rates = {
        name: next(group["lr"] for group in groups if any(value is other for other in group["params"]))
        for name, value in trainer.loss.named_own_parameters().items()
    }
    assert rates == {"loss.terms.1.proxies": 0.5, "head.weight": 1e-2, "head.bias": 1e-2}


@pytest.mark.parametrize("sampler", ["pk", "batch_sampler"])
def test_resuming_in_the_middle_of_an_epoch_is_bit_equal(trainer_of, tmp_path, sampler):
    text = "0.4*cross_entropy + 0.3*soft_triple + 0.3*supcon(memory_size=16) -> cross_entropy + soft_triple @ 0.5"
    settings = {
        "batch_sampler": PKBatches() if sampler == "pk" else sampler,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "dropout": 0.2,
    }
    whole = trainer_of(text, **settings)
    record = Recorder(whole)
    whole.train()
    assert len(record.batches) == 12
    checkpoint = tmp_path / "out" / "checkpoint-6"
    stored = load_file(checkpoint / "loss.safetensors")
    resumed = trainer_of(text, **settings)
    for value in resumed.loss.named_own_parameters().values():
        value.data.zero_()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, value in whole.loss.own_state().items():
        assert torch.equal(resumed.loss.own_state()[name], value), name
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert any(not torch.equal(stored[name], value) for name, value in whole.loss.own_state().items())


def test_a_checkpoint_of_another_loss_is_refused(trainer_of, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    trainer_of("soft_triple", **settings).train()
    folder = tmp_path / "out" / "checkpoint-2"
    with pytest.raises(
        ConfigurationError, match=r"was saved with the loss .*soft_triple.*, this one is .*proxy_anchor"
    ):
        trainer_of("proxy_anchor", **settings).train(resume_from_checkpoint=str(folder))
    (folder / "lossmith.json").unlink()
    with pytest.raises(ConfigurationError, match=r"holds no lossmith\.json: it was not saved with a lossmith loss"):
        trainer_of("soft_triple", **settings).train(resume_from_checkpoint=str(folder))


def test_a_state_that_is_not_whole_is_refused(encoder, tmp_path):
    loss = EmbeddingLoss(encoder(), JOINT, num_classes=2)
    loss.save(tmp_path)
    state = load_file(tmp_path / "loss.safetensors")
    del state["head.weight"]
    save_file(state, tmp_path / "loss.safetensors")
    with pytest.raises(
        ConfigurationError, match=r"must hold the state of '.*', head\.bias, head\.weight, .*, got head\.b"
    ):
        loss.load(tmp_path)
    (tmp_path / "loss.safetensors").unlink()
    with pytest.raises(
        ConfigurationError, match=r"lacks loss\.safetensors, the state of '.*' \(loss\.terms\.1\.proxies"
    ):
        loss.load(tmp_path)


@pytest.mark.parametrize("text", [JOINT, "arcface"])
def test_accumulated_uneven_micro_batches_train_like_one_batch(trainer_of, text):
    # Plain SGD: AdamW's first step is a sign, which would hide a wrong scale. 8 rows are 3 + 3 + 2.
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-3, "data": rows_of(8)}
    whole = trainer_of(text, per_device_train_batch_size=8, **settings)
    parts = trainer_of(text, per_device_train_batch_size=3, gradient_accumulation_steps=3, **settings)
    before = {key: value.clone() for key, value in whole.loss.state_dict().items()}
    whole.train()
    parts.train()
    moved = {key: value - before[key] for key, value in whole.loss.state_dict().items()}
    assert parts.loss.num_items is None  # A call of the user's own divides by its own rows.
    length = math.sqrt(sum(float(value.square().sum()) for value in moved.values() if value.is_floating_point()))
    assert length > 1e-4
    for key, value in parts.loss.state_dict().items():
        assert_close(value, before[key] + moved[key], rtol=0, atol=1e-6 + 1e-5 * length, msg=key)


def test_accumulation_of_coupled_losses_is_the_mean_over_micro_batches_and_is_announced(trainer_of, encoder):
    data = rows_of(24)
    trainer = trainer_of(
        "supcon",
        data,
        batch_sampler=PKBatches(),
        optim="sgd",
        max_grad_norm=0.0,
        gradient_accumulation_steps=3,
    )
    record = Recorder(trainer)
    model = encoder()
    with pytest.warns(LossmithWarning, match="3 accumulated micro-batches are not one batch"):
        trainer.train()
    own = EmbeddingLoss(model, "supcon")
    parts = [
        own([model.preprocess([row["text"] for row in batch])], torch.tensor([row["label"] for row in batch])) / 3
        for batch in record.batches
    ]
    sum(parts).backward()
    after = dict(trainer.model.named_parameters())
    for name, value in model.named_parameters():
        step = torch.zeros_like(value) if value.grad is None else 1e-3 * value.grad
        assert_close(after[name], value - step, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("text", ["0.5*cross_entropy + 0.5*proxy_nca", "triplet_margin", JOINT])
def test_bf16_embeddings_train_with_proxies_in_float32(encoder, text):
    sizes = {} if text == "triplet_margin" else {"num_classes": 2}
    torch.manual_seed(0)
    loss = EmbeddingLoss(encoder().to(torch.bfloat16).eval(), text, **sizes)
    features, labels = loss.model.preprocess(rows_of(8)["text"]), torch.tensor([0, 1] * 4)
    value = loss([features], labels)
    value.backward()
    exact = EmbeddingLoss(encoder().eval(), text, **sizes)
    exact.load_state_dict({name: tensor.float() for name, tensor in loss.state_dict().items()})
    assert value.dtype == torch.float32
    assert_close(value, exact([features], labels), rtol=0.02, atol=0.02)
    for parameter in loss.named_own_parameters().values():
        assert parameter.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())
        assert float(parameter.grad.abs().sum()) > 0


def test_a_class_with_one_row_has_a_defined_value_and_one_warning(encoder):
    model = encoder()
    loss = EmbeddingLoss(model, "supcon")
    features = model.preprocess(rows_of(4)["text"])
    with pytest.warns(LossmithWarning, match="some rows have no other row of their class"):
        value = loss([features], torch.tensor([0, 0, 0, 1]))
    assert math.isfinite(float(value.detach()))
    assert math.isfinite(float(loss([features], torch.tensor([0, 0, 0, 1])).detach()))


def test_evaluation_neither_fills_the_memory_nor_counts_accumulated_rows(trainer_of):
    trainer = trainer_of("supcon(memory_size=16)", rows_of(16), eval_dataset=rows_of(8, 2), batch_sampler=PKBatches())
    trainer.train()
    (memory,) = [module.memory for module in trainer.loss.modules() if hasattr(module, "memory")]
    before = memory.embeddings.clone()
    first, second = trainer.evaluate()["eval_loss"], trainer.evaluate()["eval_loss"]
    assert first == second
    assert torch.equal(memory.embeddings, before)
    assert float(before.abs().sum()) > 0


def test_a_schedule_follows_the_training_steps(trainer_of, monkeypatch):
    trainer = trainer_of("supcon -> nt_xent @ 0.25", batch_sampler=PKBatches())
    seen = []
    set_progress = trainer.loss.loss.set_progress
    monkeypatch.setattr(trainer.loss.loss, "set_progress", lambda share: (seen.append(share), set_progress(share)))
    trainer.train()
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_a_new_model_for_each_trial_gets_new_proxies(encoder, tmp_path):
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = LossTrainer(model_init=lambda: encoder(), args=arguments, train_dataset=rows_of(16), loss="soft_triple")
    first = trainer.loss
    trainer.train()
    assert trainer.loss is not first
    assert trainer.loss.model is trainer.model
    (proxies,) = trainer.loss.named_own_parameters().values()
    assert any(proxies is other for group in trainer.optimizer.param_groups for other in group["params"])


def test_the_saved_model_is_an_ordinary_one_with_the_loss_on_its_card(trainer_of, tmp_path, encoder):
    trainer = trainer_of(JOINT, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert '"loss": "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"' in card
    assert "url={https://arxiv.org/abs/1909.05235}" in card
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = rows_of(4)["text"]
    assert_close(loaded.encode(texts, convert_to_tensor=True), trainer.model.encode(texts, convert_to_tensor=True))
    again = EmbeddingLoss(loaded, JOINT, num_classes=2)
    again.load(tmp_path / "model")
    for name, value in trainer.loss.own_state().items():
        assert torch.equal(again.own_state()[name], value)


def named_classes() -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"text": ["x", "y"] * 4, "label": [0, 1] * 4}, features=features)


def test_classes_are_counted_by_names_or_by_the_highest_label(trainer_of):
    assert trainer_of(JOINT, named_classes()).loss.num_classes == 3
    assert trainer_of(JOINT, rows_of(8)).loss.num_classes == 2
    assert trainer_of("supcon", Dataset.from_dict({"text": ["x", "y"], "labels": [7, -100]})).loss.num_classes == 8


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("focal", r"'focal' reads no embeddings: combine it .* or use lossmith\.integrations\.transformers"),
        ("dice + cross_entropy", r"reads no embeddings: .*lossmith\.integrations\.transformers"),
        ("dpo", r"'dpo' is a preference loss, which sentence-transformers cannot train: use .*\.trl\.DPOTrainer"),
        ("supcon + kto", r"'kto' is an unpaired loss, .*lossmith\.integrations\.trl\.KTOTrainer"),
        ("cross_entropy[answer] + supcon", r"names a label scope, but a sentence has one label"),
        ("dice(region='sequence') + supcon", r"has one region per sequence, .*: leave `region` at 'batch'"),
        ("supconn", r"Did you mean 'supcon'\?"),
        (3, r"`loss` must be a composition string, a module from lossmith.loss or an EmbeddingLoss, got int"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_before_training(trainer_of, text, sentence):
    with pytest.raises((ObjectiveInputError, ConfigurationError), match=sentence):
        trainer_of(text)


@pytest.mark.parametrize("text", ["focal", "dpo"])
def test_a_built_module_that_does_not_fit_is_refused_too(encoder, text):
    with pytest.raises((ObjectiveInputError, ConfigurationError), match=r"reads no embeddings|is a preference loss"):
        EmbeddingLoss(encoder(), lossmith.loss(text))


def test_losses_of_pytorch_metric_learning_fit(trainer_of):
    theirs = from_pml(losses.ProxyAnchorLoss(2, 16))
    before = theirs.loss.proxies.detach().clone()
    trainer = trainer_of(joint("0.5*cross_entropy", theirs, weight=0.5), batch_sampler=PKBatches())
    trainer.train()
    assert not torch.equal(theirs.loss.proxies, before)
    assert trainer.loss.head is not None
    assert trainer_of(from_pml(losses.SupConLoss())).loss.head is None


def test_an_optimizer_that_lacks_the_proxies_is_refused(trainer_of, encoder, tmp_path):
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    model = encoder()
    loss = EmbeddingLoss(model, "soft_triple", num_classes=2)
    for parameters, sentence in ((model.parameters(), "hold"), (loss.parameters(), None)):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        trainer = LossTrainer(model, arguments, rows_of(8), loss=loss, optimizers=(optimizer, schedule))
        if sentence is None:
            before = loss.loss.proxies.detach().clone()
            trainer.train()
            assert not torch.equal(loss.loss.proxies, before)
            continue
        with pytest.raises(
            ConfigurationError, match=r"`optimizers` must also hold .*'soft_triple', got none of loss\.prox"
        ):
            trainer.train()


def test_the_head_is_as_wide_as_proxies_that_are_built(encoder):
    built = lossmith.loss("cross_entropy + soft_triple", num_classes=5, embedding_dim=16)
    assert EmbeddingLoss(encoder(), built, num_classes=3).head.out_features == 5
    with pytest.raises(
        ObjectiveInputError, match=r"`num_classes` is 6, but the proxies of 'soft_triple.*' stand for 5"
    ):
        EmbeddingLoss(encoder(), built, num_classes=6)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"text": ["a"], "other": ["b"], "label": [0]},
            r"takes one text column .* columns \['text', 'other'\] in `train",
        ),
        ({"label": [0]}, r"takes one text column .* got the text columns \[\]"),
        ({"text": ["a", "b"]}, r"'supcon' needs a `label` column .* the data have \['text'\]"),
        ({"text": ["a", "b"], "label": ["x", "y"]}, r"`label` must hold class ids .* got 'x': .*class_encode_column"),
        ({"text": ["a", "b"], "label": [0.0, 1.0]}, r"`label` must hold class ids \(integers\), got 0\.0"),
        ({"text": ["a", "b"], "label": [0, None]}, r"`label` must hold class ids \(integers\), got None"),
        ({"text": ["a", "b"], "label": [0, -1]}, r"`label` must be >= 0 \(or -100 to ignore a row\), got -1"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(trainer_of, columns, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        trainer_of("supcon", Dataset.from_dict(columns))


def test_the_other_settings_that_do_not_fit_say_so(trainer_of, encoder):
    with pytest.raises(ConfigurationError, match=r"The labels reach 2 but `num_classes` of 'soft_triple' is 2"):
        trainer_of(lambda model: EmbeddingLoss(model, "soft_triple", num_classes=2), named_classes())
    with pytest.raises(
        ObjectiveInputError, match=r"'soft_triple' needs `num_classes`, .*LossTrainer\(loss=\.\.\.\) counts"
    ):
        EmbeddingLoss(encoder(), "soft_triple")
    with pytest.raises(ObjectiveInputError, match=r"needs `num_classes`"):
        EmbeddingLoss(encoder(), "cross_entropy + supcon")
    with pytest.raises(ObjectiveInputError, match=r"`loss` must be a string .* got int"):
        EmbeddingLoss(encoder(), 3)
    with pytest.raises(ObjectiveInputError, match=r"`proxy_lr_multiplier` must be > 0, got 0"):
        trainer_of("soft_triple", proxy_lr_multiplier=0.0)
    with pytest.raises(ModelError, match=r"have `embedding_dim` 8, but the model's embeddings have dim 16"):
        EmbeddingLoss(encoder(), lossmith.loss("proxy_nca", num_classes=2, embedding_dim=8))
    with pytest.raises(ModelError, match=r"memory of .* have `embedding_dim` 8"):
        EmbeddingLoss(encoder(), lossmith.loss("supcon", memory_size=4, embedding_dim=8))
    with pytest.raises(ObjectiveInputError, match=r"'supcon' is built already: give temperature to lossmith\.loss"):
        EmbeddingLoss(encoder(), lossmith.loss("supcon"), temperature=0.2)
    with pytest.raises(ConfigurationError, match=r"`train_dataset` must be one datasets\.Dataset .* got dict"):
        LossTrainer(encoder(), train_dataset={"one": rows_of(4)}, loss="supcon")
    with pytest.raises(
        ConfigurationError, match=r"`samples_per_class` must be >= 2 and at most half a batch, got 8 in"
    ):
        trainer_of("supcon", batch_sampler=PKBatches(8))
    with pytest.raises(ConfigurationError, match=r"need at least two classes with two rows or more, `label` has 1"):
        trainer_of("supcon", Dataset.from_dict({"text": list("abc"), "label": [0, 0, 1]}), batch_sampler=PKBatches())
    with pytest.raises(ConfigurationError, match=r"need at least two classes"):
        trainer_of("supcon", eval_dataset=rows_of(2), batch_sampler=PKBatches())


def test_a_module_without_a_stated_dimension_is_refused():
    with pytest.raises(ModelError, match="does not say how long its embeddings are"):
        EmbeddingLoss(SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"), "supcon")


def test_proxies_have_the_length_of_whole_embeddings_where_encode_truncates(encoder):
    model = encoder().eval()
    model.truncate_dim = 4
    loss = EmbeddingLoss(model, JOINT, num_classes=2)
    assert (loss.embedding_dim, model.truncate_dim) == (16, 4)
    features = model.preprocess(rows_of(4)["text"])
    assert math.isfinite(float(loss([features], torch.tensor([0, 1, 0, 1])).detach()))


def test_calls_of_the_vanilla_trainer_with_other_data_are_refused(encoder):
    model = encoder()
    loss, features = EmbeddingLoss(model, JOINT, num_classes=2), encoder().preprocess(["good film", "bad film"])
    with pytest.raises(
        ObjectiveInputError, match=r"takes one text column and the class of each text, got 2 text columns"
    ):
        loss([features, features], torch.tensor([0, 1]))
    with pytest.raises(ObjectiveInputError, match=r"needs the class of each sentence: give the data a `label` column"):
        EmbeddingLoss(model, "supcon")([features], None)
    with pytest.raises(ObjectiveInputError, match=r"`labels` must be integers \(class ids\), got torch.float32"):
        EmbeddingLoss(model, "supcon")([features], torch.tensor([0.0, 1.0]))


RANKED = {
    "coupled": "0.4*cross_entropy + 0.3*soft_triple + 0.3*supcon(gather=True)",
    "additive": "0.4*cross_entropy + 0.6*soft_triple(gather=True)",
}


def ranked_trainer(folder: Path, kind: str, seed: int) -> LossTrainer:
    """Two steps of plain SGD on class-balanced batches of 8; the loss is made under a seed of its own."""
    arguments = SentenceTransformerTrainingArguments(
        str(folder / "out"),
        per_device_train_batch_size=8,
        batch_sampler=PKBatches(),
        max_steps=2,
        optim="sgd",
        lr_scheduler_type="constant",
        learning_rate=1e-3,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = SentenceTransformer(modules=[Transformer(str(folder / "tiny")), Pooling(16, "mean")], device="cpu")
    torch.manual_seed(seed)
    loss = EmbeddingLoss(model, RANKED[kind], num_classes=2)
    return LossTrainer(model, args=arguments, train_dataset=rows_of(32), loss=loss)


def train_a_rank(rank: int, folder: Path, kind: str, port: int) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    trainer = ranked_trainer(folder, kind, seed=rank)
    record = Recorder(trainer)
    trainer.train()
    assert len(record.batches) == 2
    save_file({name: value.contiguous() for name, value in trainer.loss.own_state().items()}, folder / f"loss{rank}")
    save_file({name: value.contiguous() for name, value in trainer.model.state_dict().items()}, folder / f"model{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", RANKED)
def test_two_ranks_train_as_one_with_all_their_rows(tmp_path, kind):
    tiny.write_model(tmp_path / "tiny", dropout=0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_a_rank, args=(tmp_path, kind, port), nprocs=2)
    # By hand: batches 0 and 1 together, then batches 2 and 3; proxies and head learn ten times as fast.
    alone = ranked_trainer(tmp_path, kind, seed=0)
    data, loss = alone.train_dataset, alone.loss
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    batches = list(PKBatches()(data, 8, True, seed=alone.args.seed))
    for pair in (batches[0] + batches[1], batches[2] + batches[3]):
        loss.zero_grad()
        rows = data[pair]
        loss._kept_by_trainer = True
        loss([loss.model.preprocess(rows["text"])], torch.tensor(rows["label"])).backward()
        own = {id(value) for value in loss.named_own_parameters().values()}
        with torch.no_grad():
            for value in loss.parameters():
                if value.grad is not None:
                    value -= (1e-2 if id(value) in own else 1e-3) * value.grad
    for rank in (0, 1):
        trained = {
            **load_file(tmp_path / f"loss{rank}"),
            **{f"model.{name}": value for name, value in load_file(tmp_path / f"model{rank}").items()},
        }
        assert set(loss.own_state()) <= set(trained)
        for name, value in loss.state_dict().items():
            assert_close(trained[name], value, rtol=1e-6, atol=2e-7, msg=name)
    assert all(float((value - before[name]).abs().max()) > 1e-4 for name, value in loss.own_state().items())


def test_sharded_training_of_proxies_is_refused(trainer_of, monkeypatch):
    trainer = trainer_of("soft_triple")
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ConfigurationError, match=r"'soft_triple' owns parameters, which DeepSpeed and FSDP do not see"):
        trainer.train()


def test_contract_the_internals_of_sentence_transformers_that_are_relied_on(trainer_of):
    """ST 6.2: loss parameters are in the optimiser, their gradients are cleared, `_save` leaves the loss out."""
    from sentence_transformers.base import trainer as internals
    from sentence_transformers.base.sampler import DefaultBatchSampler

    assert {"get_optimizer_cls_and_kwargs", "_save", "_load_from_checkpoint", "prepare_loss", "call_model_init"} <= set(
        vars(internals.BaseTrainer)
    )
    assert "_OptimizerZeroGradCallback" in vars(internals)
    assert {"loss_is_scaled_for_ga", "get_batch_samples", "create_optimizer"} <= set(dir(internals.BaseTrainer))
    trainer = trainer_of(JOINT, max_steps=1)
    trainer.train()
    assert all(value.grad is None for value in trainer.loss.named_own_parameters().values())
    sampler = trainer.get_batch_sampler(rows_of(8), 8, False)
    assert isinstance(sampler, DefaultBatchSampler)
    assert SimpleNamespace(**trainer.args.to_dict()).learning_rate_mapping == {}
