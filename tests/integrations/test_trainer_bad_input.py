"""What cannot work is said in one sentence, before any training step."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from causal_cases import DECODER, HIDDEN, VOCAB, Recorder, arguments, causal_model, padded, quick_trainers, ragged_rows
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import lossmith
from lossmith.errors import ConfigurationError, LossmithError, MissingExtraError, ModelError, ObjectiveInputError
from lossmith.integrations._versions import require_version
from lossmith.integrations.transformers import LossTrainer
from lossmith.integrations.transformers.setup import balance_weight

ROWS = ragged_rows()
BERT = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_labels": 3}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_trainers():
        yield


def bert(**settings: Any) -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**{**BERT, **settings}))


def classes(rows: list[Any]) -> dict[str, Any]:
    return {**padded()(rows), "labels": torch.tensor([len(row["input_ids"]) % 3 for row in rows])}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., LossTrainer]:
    def trainer(
        loss: Any, model: Any = None, *, collate: Any = None, after: Any = None, own: Any = None, **settings: Any
    ) -> LossTrainer:
        args = arguments(tmp_path, **settings)
        for name, value in (after or {}).items():
            setattr(args, name, value)
        return LossTrainer(
            causal_model("Llama") if model is None else model,
            args,
            train_dataset=ROWS,
            data_collator=collate or padded(),
            loss=loss,
            **(own or {}),
        )

    return trainer


def sentence(caught: Any) -> str:
    """The message, which is one sentence for the reader."""
    text = str(caught.value)
    assert isinstance(caught.value, LossmithError)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 330
    return text


# Settings


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings of a language model": (
        "`LlamaForCausalLM` is a causal language model, which has no embeddings of texts for 'supcon': use "
        "lossmith.integrations.sentence_transformers, or a sequence classifier.",
        {"loss": "supcon"},
    ),
    "label smoothing": (
        "`label_smoothing_factor` must be 0, got 0.1: write it into the loss, as 'cross_entropy(label_smoothing=0.1)'.",
        {"loss": "focal", "label_smoothing_factor": 0.1},
    ),
    "data parallel": (
        "torch's DataParallel splits batches that losses couple: start one process per GPU with torchrun, or show one "
        "GPU only (CUDA_VISIBLE_DEVICES=0).",
        {"loss": "focal", "after": {"_n_gpu": 2}},
    ),
    "compiled": (
        "`torch_compile` cannot follow the loss at the output embedding: leave it out, or use a plain Trainer with "
        "compute_loss.",
        {"loss": "focal", "after": {"torch_compile": True}},
    ),
    "regions by sequence": (
        "`average='sequence'` must be 'token' for 'dice': only token losses without label scopes can be averaged by "
        "sequence.",
        {"loss": "dice", "own": {"average": "sequence"}},
    ),
    "scopes by sequence": (
        "`average='sequence'` must be 'token' for 'focal[answer]': only token losses without label scopes can be "
        "averaged by sequence.",
        {"loss": "focal[answer]", "own": {"average": "sequence"}},
    ),
    "a scope under the name of an input": (
        "The label scopes of 'focal[attention]' would be read from `attention_mask`, which LlamaForCausalLM reads "
        "itself: name them otherwise.",
        {"loss": "focal[attention]"},
    ),
    "accumulated pairs": (
        "`gradient_accumulation_steps` must be 1 with 'nt_xent', got 2: how many pairs or triplets all micro-batches "
        "hold is not known before the last one.",
        {"loss": "nt_xent", "model": bert, "collate": classes, "gradient_accumulation_steps": 2},
    ),
    "accumulated triplets": (
        "`gradient_accumulation_steps` must be 1 with 'cross_entropy + triplet_margin', got 4: how many pairs or "
        "triplets all micro-batches hold is not known before the last one.",
        {"loss": "cross_entropy + triplet_margin", "model": bert, "collate": classes, "gradient_accumulation_steps": 4},
    ),
    "average": (
        "`average` must be one of 'token', 'sequence', got 'row'.",
        {"loss": "focal", "own": {"average": "row"}},
    ),
    "pooling": (
        "`pooling` must be one of 'mean', 'cls', 'last', 'tokens', got 'max'.",
        {"loss": "soft_triple", "model": bert, "own": {"pooling": "max"}},
    ),
    "engine": (
        "`impl` must be one of 'auto', 'dense', 'chunked', 'triton', got 'fused'.",
        {"loss": "focal", "own": {"impl": "fused"}},
    ),
    "two losses": (
        "`compute_loss_func` and `loss` both give a loss: leave one of them out.",
        {"loss": "focal", "own": {"compute_loss_func": lambda *args, **kwargs: None}},
    ),
    "preference": (
        "'lrml' is a preference loss, which a LossTrainer cannot train: use lossmith.integrations.trl.DPOTrainer.",
        {"loss": "cross_entropy + lrml"},
    ),
    "unpaired": (
        "'kto' is an unpaired loss, which a LossTrainer cannot train: use lossmith.integrations.trl.KTOTrainer.",
        {"loss": lambda: lossmith.loss("kto")},
    ),
    "a kind of item counted in two ways": (
        "'dice + jaccard(region='sequence')' counts its regions in two ways (`region` or `gather` differ between "
        "terms): give these terms the same.",
        {"loss": "dice + jaccard(region='sequence')"},
    ),
}


def given(value: Any) -> Any:
    return value() if callable(value) and not isinstance(value, nn.Module) else value


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:.*torch_compile.*")
def test_settings_that_cannot_work(make: Any, name: str) -> None:
    expected, settings = WRONG[name]
    how = {key: given(value) if key in ("loss", "model") else value for key, value in settings.items()}
    with pytest.raises(LossmithError) as caught:
        make(**how)
    assert sentence(caught) == expected


def pretend(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Change every trainer once it has its accelerator."""
    original = Trainer.create_accelerator_and_postprocess

    def changed(self: Any) -> None:
        original(self)
        change(self)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", changed)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ("cp_enabled", "Context and sequence parallelism split a sequence"),
        ("sp_enabled", "Context and sequence parallelism split a sequence"),
        ("tp_enabled", "Tensor parallelism splits the output embedding"),
    ],
)
def test_sequences_or_heads_over_ranks(make: Any, monkeypatch: pytest.MonkeyPatch, cut: str, said: str) -> None:
    off = {"cp_enabled": False, "sp_enabled": False, "tp_enabled": False, "sp_backend": None, "tp_size": 1}
    config = SimpleNamespace(**{**off, cut: True})
    getter = property(lambda self: config)
    pretend(monkeypatch, lambda self: monkeypatch.setattr(Accelerator, "parallelism_config", getter))
    with pytest.raises(ConfigurationError) as caught:
        make("focal")
    assert sentence(caught).startswith(f"{said} over ranks, which no lossmith trainer can follow: use data parallel")


@pytest.mark.parametrize("wrapper", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_deepspeed_and_fsdp_do_not_train_proxies(make: Any, monkeypatch: pytest.MonkeyPatch, wrapper: str) -> None:
    pretend(monkeypatch, lambda self: setattr(self, wrapper, True))
    with pytest.raises(ConfigurationError) as caught:
        make("soft_triple", bert(), collate=classes)
    assert sentence(caught) == (
        "'soft_triple' owns parameters, which FSDP and DeepSpeed would neither train nor save: use DDP."
    )
    make("supcon", bert(), collate=classes)


def test_a_learning_rate_for_proxies(make: Any) -> None:
    trainer = make("soft_triple", bert(), collate=classes, own={"proxy_lr_multiplier": -1.0})
    with pytest.raises(ObjectiveInputError, match=r"`proxy_lr_multiplier` must be > 0, got -1\.0\."):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_optimizer_without_the_proxies(make: Any) -> None:
    """Regression 27: proxies that nobody trains stay random without a word."""
    model = bert()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError) as caught:
        make("soft_triple", model, collate=classes, own={"optimizers": (sgd, None)})
    assert sentence(caught) == (
        "`optimizers` must also hold the parameters of 'soft_triple', or they would stay as they began: leave it out, "
        "or make the loss with lossmith.loss, give it as `loss` and its param_groups(lr) to the optimizer."
    )
    loss = lossmith.loss("soft_triple", num_classes=3, embedding_dim=HIDDEN)
    sgd.add_param_group(loss.param_groups(0.1)[0])
    before = next(loss.parameters()).detach().clone()
    make(loss, model, collate=classes, own={"optimizers": (sgd, None)}).train()
    assert not torch.equal(next(loss.parameters()), before)
    make("supcon", model, collate=classes, own={"optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)})


# Models


def frozen(model: Any, *kept: str) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in kept))
    return model


def test_nothing_to_train(make: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make("focal", frozen(causal_model("Llama")))
    assert sentence(caught) == (
        "No parameter of LlamaForCausalLM asks for a gradient: unfreeze some, or add an adapter (LoRA)."
    )


def test_a_frozen_head_without_proxies(make: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make("supcon", frozen(bert(), "bert."), collate=classes)
    assert sentence(caught) == (
        "The classification head of BertForSequenceClassification is frozen and 'supcon' owns no proxies, so nothing "
        "learns the classes: unfreeze the head, or use a loss with proxies, such as soft_triple."
    )
    make("soft_triple", frozen(bert(), "bert."), collate=classes)
    make("supcon", frozen(bert(), "classifier"), collate=classes)


def test_an_encoder_decoder(make: Any) -> None:
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(ModelError) as caught:
        make("focal", T5ForConditionalGeneration(config))
    assert sentence(caught) == (
        "T5ForConditionalGeneration is an encoder-decoder, which no lossmith trainer can train yet: use a causal "
        "language model or a classifier, or a plain Trainer with compute_loss(loss, shift=False)."
    )


def test_a_head_that_is_not_linear(make: Any) -> None:
    model = causal_model("Llama")
    model.lm_head = nn.Embedding(VOCAB, HIDDEN)
    with pytest.raises(ModelError, match=r"The output embedding of LlamaForCausalLM must be a linear map"):
        make("focal", model)


def test_a_head_that_turns_out_to_be_more(make: Any) -> None:
    model = causal_model("Llama")
    model.lm_head = nn.Sequential(nn.Linear(HIDDEN, VOCAB), nn.Tanh())
    trainer = make("focal", model)
    with pytest.raises(ModelError, match=r"'lm_head' of LlamaForCausalLM is no linear map: train it on dense logits"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_balance_of_unknown_weight() -> None:
    model = causal_model("Mixtral", router_aux_loss_coef=0.25)
    assert balance_weight(model) == 0.25
    with pytest.raises(ModelError) as caught:
        balance_weight(causal_model("Llama"))
    assert sentence(caught).startswith("LlamaForCausalLM returns an `aux_loss` whose weight is not known")


class NoStates(nn.Module):
    """A classifier that returns nothing but its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = BertModel(BertConfig(**BERT))
        self.config = self.inner.config
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        return SequenceClassifierOutput(logits=self.head(self.inner(input_ids, attention_mask).pooler_output))


def test_a_model_without_logits(make: Any) -> None:
    trainer = make(
        "focal", BertForQuestionAnswering(BertConfig(**{**BERT, "num_labels": 2})), remove_unused_columns=False
    )
    with pytest.raises(ModelError) as caught:
        trainer.train()
    assert sentence(caught) == (
        "BertForQuestionAnswering returns no `logits`, only `start_logits`, `end_logits`: use a causal language model "
        "or a classifier of texts or tokens."
    )
    assert trainer.state.global_step == 0


def test_a_model_without_hidden_states(make: Any) -> None:
    trainer = make("soft_triple", NoStates(), collate=classes, remove_unused_columns=False)
    with pytest.raises(ModelError) as caught:
        trainer.train()
    assert sentence(caught) == "'soft_triple' reads embeddings, but NoStates returns no hidden states."
    plain = make("focal", NoStates(), collate=classes, remove_unused_columns=False)
    plain.train()


# Batches: said before the first step


def without(name: str, collate: Any = None) -> Any:
    def made(rows: list[Any]) -> dict[str, Any]:
        return {key: value for key, value in (collate or padded())(rows).items() if key != name}

    return made


def refused_at_once(trainer: Any) -> Any:
    """Train, see it refused, and see that nothing was changed."""
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.add_callback(recorder := Recorder(trainer.model))
    with pytest.raises(LossmithError) as caught:
        trainer.train()
    assert trainer.state.global_step == 0
    assert recorder.steps == []
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    return caught


BATCHES: dict[str, tuple[str, Any]] = {
    "labels missing": (
        "A batch must hold `labels`, got `input_ids`, `attention_mask`: add a column `labels`, or a collator that "
        "makes them (transformers' DataCollatorForLanguageModeling(mlm=False) for plain text).",
        lambda make: make("focal", collate=without("labels")),
    ),
    "mask of a scope missing": (
        "A batch must hold `answer_mask` of the shape of `labels`, (8, 13), for the label scope [answer], got nothing.",
        lambda make: make("cross_entropy + focal[answer]"),
    ),
    "regression": (
        "`labels` must be integers (class ids), got torch.float32.",
        lambda make: make(
            "cross_entropy",
            bert(num_labels=1),
            collate=lambda rows: {**padded()(rows), "labels": torch.linspace(0, 1, len(rows))},
        ),
    ),
    "more classes than the model": (
        "`labels` reach 7 but `vocab` is 3.",
        lambda make: make(
            "cross_entropy", bert(), collate=lambda rows: {**padded()(rows), "labels": torch.arange(len(rows))}
        ),
    ),
    "no attention mask": (
        "A batch must hold `attention_mask`, from which the embeddings for 'soft_triple' are pooled, got `input_ids`.",
        lambda make: make("soft_triple", bert(), collate=without("attention_mask", classes)),
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_do_not_fit(make: Any, name: str) -> None:
    expected, build = BATCHES[name]
    assert sentence(refused_at_once(build(make))) == expected


def test_a_decoder_for_regression(make: Any) -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**DECODER, num_labels=1))
    collate = lambda rows: {**padded()(rows), "labels": torch.linspace(0, 1, len(rows))}  # noqa: E731
    assert "must be integers" in sentence(refused_at_once(make("focal", model, collate=collate)))


# Losses


def test_losses_that_are_none(make: Any) -> None:
    for loss, text in {
        "focall": "No objective named 'focall'. Did you mean 'focal'?",
        "0.5*": "",
        "focal(gama=1)": "gama",
    }.items():
        with pytest.raises(ObjectiveInputError) as caught:
            make(loss)
        assert text in str(caught.value)
    with pytest.raises(ObjectiveInputError) as caught:
        make(nn.CrossEntropyLoss())
    assert sentence(caught) == (
        "`loss` must be a string such as 'focal' or a module from lossmith.loss, got CrossEntropyLoss."
    )


def test_another_loss_than_that_of_the_checkpoint(make: Any, tmp_path: Path) -> None:
    trained = make("focal", save_strategy="steps", save_steps=1)
    trained.train()
    checkpoint = tmp_path / "checkpoint-1"
    with pytest.raises(ConfigurationError, match=r"was trained with 'focal', this trainer has 'dft': give the same"):
        make("dft").train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "lossmith.json").unlink()
    with pytest.raises(ConfigurationError, match=r"holds no lossmith\.json: it was not saved with a lossmith loss\."):
        make("focal").train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_that_lost_its_proxies(make: Any, tmp_path: Path) -> None:
    make("soft_triple", bert(), collate=classes, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1" / "loss.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"lacks loss\.safetensors, the state of 'soft_triple' \(proxies\)\."):
        make("soft_triple", bert(), collate=classes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# Versions


@pytest.mark.parametrize("version", ["4.57.6", "6.0.0", "6.0.0rc1", "7.1"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(ConfigurationError) as caught:
        require_version("transformers", "5.2", "6", extra="train")
    assert sentence(caught) == (
        f"`transformers` must be >= 5.2 and < 6 for this integration, got {version}: "
        f"pip install 'transformers>=5.2,<6'."
    )


def test_versions_within_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    within = ["5.2.0", "5.23.0", "5.24.0.dev0", "5.99.1"]
    accepted = []
    for version in ["5.1.9", *within, "6.0.0.dev1"]:
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        with contextlib.suppress(ConfigurationError):
            require_version("transformers", "5.2", "6", extra="train")
            accepted.append(version)
    assert accepted == within


def test_what_is_not_installed() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require_version("no-such-package", "1", "2", extra="train")
    assert sentence(caught) == (
        "`no-such-package` is needed for this integration and is not installed: pip install 'lossmith[train]'."
    )


def test_the_package_asks_for_its_version_when_imported() -> None:
    """In a process of its own, where transformers says that it is another one."""
    code = (
        "from importlib import metadata\n"
        "true = metadata.version\n"
        "metadata.version = lambda name: '4.57.0' if name == 'transformers' else true(name)\n"
        "try:\n"
        "    import lossmith.integrations.transformers\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("ConfigurationError `transformers` must be >= 5.2 and < 6")
