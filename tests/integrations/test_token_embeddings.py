"""Every token of a text as an anchor, class-balanced batches, and embeddings beside logits."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lossmith
import tiny
from lossmith.errors import ConfigurationError, ObjectiveInputError
from lossmith.integrations.arguments import training_arguments
from lossmith.integrations.batches import token_labels
from lossmith.integrations.classification import balanced_batches, encode, make_trainer, predict_logits, predict_outputs

JOINT = "0.4*cross_entropy + 0.6*proxy_nca"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.0)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    texts = ["good film", "the plot was very dull", "a warm and lovely scene", "poor cast"]
    return model, AutoTokenizer.from_pretrained(folder), texts, [1, 0, 1, 0]


def trainer_of(parts, tmp_path, loss, *, pooling="tokens", accumulation=1, batch_size=4, mark=True, **extra):
    model, tokenizer, texts, labels = parts
    arguments = training_arguments(
        {"save_strategy": "no", "report_to": "none"},
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        use_cpu=True,
        seed=0,
    )
    rows = encode(tokenizer, texts, labels, 32, mark_special=mark)
    return make_trainer(model, tokenizer, rows, arguments, loss=loss, pooling=pooling, **extra), rows


def batch_of(trainer, rows):
    return trainer.data_collator([dict(row) for row in rows])


def test_padding_and_special_tokens_have_no_label():
    labels = token_labels(
        {
            "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
            "special_tokens_mask": torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1]]),
        },
        torch.tensor([5, 7]),
    )
    assert labels.tolist() == [[-100, 5, -100, -100], [-100, 7, 7, -100]]


def test_the_loss_of_tokens_is_that_of_their_hidden_states(parts, tmp_path):
    torch.manual_seed(0)
    loss = lossmith.loss(JOINT, num_classes=2, embedding_dim=16)
    trainer, rows = trainer_of(parts, tmp_path, loss)
    model = parts[0].eval()
    value = trainer.compute_loss(model, batch_of(trainer, rows))
    by_hand = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        outputs = model(input_ids=ids, output_hidden_states=True)
        own = outputs.hidden_states[-1][0, 1:-1]
        by_hand.append((outputs.logits, own, torch.full((len(own),), row["labels"])))
    logits, tokens, labels = (torch.cat(column) for column in zip(*by_hand, strict=True))
    expected = 0.4 * torch.nn.functional.cross_entropy(logits, torch.tensor([row["labels"] for row in rows]))
    expected = expected + 0.6 * loss.terms[1](tokens, labels)
    assert_close(value, expected)


def test_micro_batches_of_tokens_are_one_batch(parts, tmp_path):
    def gradients(accumulation: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        loss = lossmith.loss(JOINT, num_classes=2, embedding_dim=16)
        trainer, rows = trainer_of(parts, tmp_path, loss, accumulation=accumulation, batch_size=4 // accumulation)
        size = 4 // accumulation
        batches = [batch_of(trainer, rows[start : start + size]) for start in range(0, 4, size)]
        model = parts[0].eval()
        model.zero_grad()
        _, divisors = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        for batch in batches:
            trainer.compute_loss(model, batch, num_items_in_batch=divisors).backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    whole, split = gradients(1), gradients(2)
    for name, gradient in whole.items():
        assert_close(split[name], gradient, rtol=1e-5, atol=1e-7)


def test_tokens_without_a_mask_of_special_ones_are_refused(parts, tmp_path):
    loss = lossmith.loss(JOINT, num_classes=2, embedding_dim=16)
    trainer, rows = trainer_of(parts, tmp_path, loss, mark=False)
    with pytest.raises(ObjectiveInputError, match=r"special_tokens_mask.*return_special_tokens_mask=True"):
        trainer.compute_loss(parts[0], batch_of(trainer, rows))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "tokens"])
def test_outputs_come_in_the_order_given_with_the_embedding_of_each_text(parts, pooling):
    model, tokenizer, texts, labels = parts
    rows = encode(tokenizer, texts, labels, 32, mark_special=pooling == "tokens")
    found = predict_outputs(model, tokenizer, rows, 2, pooling=pooling)
    assert_close(found.logits, predict_logits(model, tokenizer, rows, 3))
    for place, row in enumerate(rows):
        with torch.no_grad():
            outputs = model(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True)
        hidden = outputs.hidden_states[-1][0]
        own = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "tokens": hidden[1:-1].mean(0)}
        assert_close(found.embeddings[place], own[pooling], rtol=1e-4, atol=1e-6)


def test_pairs_are_encoded_together(parts):
    _, tokenizer, _, _ = parts
    (row,) = encode(tokenizer, ["good film"], [1], 32, pairs=["dull plot"])
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words == ["[CLS]", "good", "film", "[SEP]", "dull", "plot", "[SEP]"]
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_balanced_batches_hold_classes_alike_and_are_as_many_as_shuffled_ones():
    labels = [0] * 30 + [1] * 6 + [2] * 3 + [3]
    batches = list(balanced_batches(labels, batch_size=12, samples_per_class=4, seed=1))
    assert len(batches) == 4
    for batch in batches:
        counts = {c: sum(labels[i] == c for i in batch) for c in {labels[i] for i in batch}}
        assert set(counts.values()) == {4}
        assert 3 not in counts


def test_two_classes_share_a_batch_in_halves():
    (batch,) = balanced_batches([0] * 10 + [1] * 10, batch_size=20, samples_per_class=2, seed=0)
    assert sorted(batch) == list(range(20))


@pytest.mark.parametrize(
    ("labels", "size", "sentence"),
    [
        ([0, 0, 1], 4, "two classes with two training texts or more, got 1"),
        ([0, 0, 1, 1], 3, "half of `batch_size`, 3"),
    ],
)
def test_batches_that_cannot_be_balanced_are_refused(labels, size, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        balanced_batches(labels, batch_size=size, samples_per_class=2, seed=0)


def test_a_balanced_trainer_sees_balanced_batches(parts, tmp_path):
    loss = lossmith.loss("cross_entropy")
    trainer, _ = trainer_of(parts, tmp_path, loss, pooling="mean", mark=False, samples_per_class=2)
    (batch,) = list(trainer.get_train_dataloader())
    assert sorted(batch["labels"].tolist()) == [0, 0, 1, 1]
