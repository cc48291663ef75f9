"""Saved classifiers say after loading what they said before, in every way; broken folders get one sentence."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import lossmith
import tiny
from lossmith.errors import ModelError
from lossmith.evaluation.inference import INFERENCE_METHODS, SupportSet, inference_scores
from lossmith.integrations.classification import encode, predict_outputs
from lossmith.integrations.classifiers import Inference, load_network, load_saved, save_classifier, trained_scores
from lossmith.integrations.models import resolve_model

# PEFT asks transformers for a name that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CLASSES = ("bad", "good", "odd")
LOSS = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"
HANDED_ON = "0.9*cross_entropy + 0.1*soft_triple -> 0.1*cross_entropy + 0.9*soft_triple @ 0.3"
LORA = {"r": 2, "alpha": 8.0, "dropout": 0.1}
KNOWN = [row["text"] for row in tiny.sentences(9, 1)]
ASKED = [row["text"] for row in tiny.sentences(7, 2)]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return resolve_model(str(tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")))


def outputs_of(model, tokenizer, texts, pooling, pairs=None):
    rows = encode(tokenizer, texts, [0] * len(texts), 32, pairs=pairs, mark_special=pooling == "tokens")
    return predict_outputs(model, tokenizer, rows, 4, pooling=pooling)


def scores_of(model, tokenizer, loss, support, pooling, mixture, texts=ASKED):
    outputs = outputs_of(model, tokenizer, texts, pooling)
    own = trained_scores(loss, outputs.embeddings)
    return inference_scores(
        logits=outputs.logits.numpy(),
        embeddings=outputs.embeddings.numpy(),
        proxy_scores=None if own is None else own.numpy(),
        support=SupportSet(embeddings=support[0].numpy(), labels=support[1].numpy()),
        mixture=mixture,
    )


def made(base, *, head="own", pooling="mean", lora=None, text=LOSS, names=CLASSES):
    """A classifier with nothing at its initial value, its loss and its support."""
    torch.manual_seed(5)
    model, tokenizer = load_network(base, names, head=head, pooling=pooling, lora=lora)
    with torch.no_grad():
        for parameter in model.parameters():  # also the second matrix of adapters, which begins at 0
            parameter += 0.3 * torch.randn_like(parameter)
    needed = {"num_classes": len(names), "embedding_dim": 16} if "soft_triple" in text else {}
    loss = lossmith.loss(text, **needed)
    support = (outputs_of(model, tokenizer, KNOWN, pooling).embeddings, LABELS)
    return model, tokenizer, loss, support


def inference_of(head="own", pooling="mean", **changes):
    settings = {"mixture": 0.3, "max_length": 32, "pairs": False, "task": "films", "temperatures": {"head": 1.5}}
    return Inference(**{**settings, "head": head, "pooling": pooling, **changes})


@pytest.fixture
def saved(base, tmp_path):
    """The folder of a classifier with its own head."""
    folder = tmp_path / "saved"
    folder.mkdir()
    model, tokenizer, loss, support = made(base)
    save_classifier(model, tokenizer, loss, folder, inference=inference_of(), support=support)
    return folder


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("head", "pooling"),
    [("own", "mean"), ("own", "tokens"), ("pooled", "cls"), ("pooled", "last"), ("pooled", "tokens")],
)
def test_every_method_says_the_same_after_loading(base, tmp_path, head, pooling, lora):
    model, tokenizer, loss, support = made(base, head=head, pooling=pooling, lora=lora)
    before = scores_of(model, tokenizer, loss, support, pooling, 0.3)
    inference = inference_of(head, pooling)
    save_classifier(model, tokenizer, loss, tmp_path, inference=inference, support=support)
    loaded = load_saved(tmp_path)
    assert loaded.label_names == CLASSES
    assert loaded.inference == inference
    assert not loaded.model.training
    assert loaded.support is not None
    assert torch.equal(loaded.support[0], support[0])
    assert torch.equal(loaded.support[1], LABELS)
    after = scores_of(loaded.model, loaded.tokenizer, loaded.loss, loaded.support, pooling, loaded.inference.mixture)
    for method in INFERENCE_METHODS:
        # Adapters are added to the weights when saved, which rounds once: in proportion to the largest scores, near 10.
        np.testing.assert_allclose(after.of(method), before.of(method), rtol=1e-4, atol=1e-4, err_msg=method)
        spread = np.ptp(before.of(method), axis=1)
        assert spread.min() > 1e-2, "the case tells nothing apart"


def test_transformers_loads_what_its_own_head_is_part_of(saved):
    loaded = load_saved(saved)
    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    inputs = AutoTokenizer.from_pretrained(saved)(ASKED, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**inputs).logits
    expected = outputs_of(loaded.model, loaded.tokenizer, ASKED, "mean").logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_transformers_loads_the_trunk_of_a_pooled_one(base, tmp_path):
    model, tokenizer, loss, support = made(base, head="pooled", pooling="mean")
    save_classifier(model, tokenizer, loss, tmp_path, inference=inference_of("pooled"), support=support)
    trunk = AutoModel.from_pretrained(tmp_path).eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path)(ASKED, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = trunk(**inputs).last_hidden_state
    keep = inputs["attention_mask"].unsqueeze(-1)
    means = (hidden * keep).sum(1) / keep.sum(1)
    torch.testing.assert_close(means, outputs_of(model, tokenizer, ASKED, "mean").embeddings, rtol=1e-4, atol=1e-5)


def test_a_pooled_head_is_a_linear_map_of_the_embeddings(base):
    for pooling in ("mean", "cls", "last"):
        model, tokenizer, _, _ = made(base, head="pooled", pooling=pooling)
        outputs = outputs_of(model, tokenizer, ASKED, pooling)
        weight, bias = model.classifier.weight, model.classifier.bias
        torch.testing.assert_close(outputs.logits, (outputs.embeddings @ weight.T + bias).detach())


def test_with_lora_only_adapters_and_head_are_trained(base):
    for head in ("own", "pooled"):
        model, _ = load_network(base, CLASSES, head=head, pooling="mean", lora=LORA)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        adapters = {name for name in trained if "lora_" in name}
        assert adapters
        assert all("encoder" in name or "pooler" in name for name in adapters)
        assert trained - adapters
        assert all("classifier" in name for name in trained - adapters)


@pytest.mark.parametrize("head", ["own", "pooled"])
def test_names_that_transformers_does_not_write_down(base, tmp_path, head):
    names = ("LABEL_0", "LABEL_1")
    torch.manual_seed(0)
    model, tokenizer = load_network(base, names, head=head, pooling="mean", lora=None)
    loss = lossmith.loss("cross_entropy")
    save_classifier(model, tokenizer, loss, tmp_path, inference=inference_of(head), support=None)
    assert load_saved(tmp_path).label_names == names


def test_a_loss_without_proxies_and_without_a_reference(base, tmp_path):
    model, tokenizer, loss, _ = made(base, text="focal(gamma=1.5)")
    save_classifier(model, tokenizer, loss, tmp_path, inference=inference_of(temperatures={}), support=None)
    loaded = load_saved(tmp_path)
    assert str(loaded.loss) == "focal(gamma=1.5)"
    assert loaded.support is None
    assert loaded.inference is not None
    assert loaded.inference.temperatures == {}
    assert trained_scores(loaded.loss, torch.randn(3, 16)) is None


def test_scores_of_several_terms_with_proxies_are_averaged():
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "embedding_dim": 4}
    loss = lossmith.loss("0.5*soft_triple(centers_per_class=2) + 0.5*proxy_anchor", **sizes)
    embeddings = torch.randn(5, 4)
    alone = [part.class_scores(embeddings) for part in loss.modules() if getattr(part, "scores_classes", False)]
    assert len(alone) == 2
    averaged = trained_scores(loss, embeddings)
    expected = (alone[0].softmax(-1).log() + alone[1].softmax(-1).log()) / 2
    torch.testing.assert_close(averaged, expected)
    assert trained_scores(None, embeddings) is None


def test_terms_that_training_has_left_behind_score_no_classes():
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "embedding_dim": 4}
    embeddings = torch.randn(5, 4)
    handed_on = "0.9*cross_entropy + 0.1*{} -> 0.1*cross_entropy + 0.9*{} @ 0.3".format
    loss = lossmith.loss(handed_on("soft_triple", "proxy_anchor"), **sizes)
    left, kept = (part for part in loss.modules() if getattr(part, "scores_classes", False))
    torch.testing.assert_close(trained_scores(loss, embeddings), kept.class_scores(embeddings))
    assert not torch.allclose(kept.class_scores(embeddings), left.class_scores(embeddings))
    same = lossmith.loss(handed_on("soft_triple", "soft_triple"), **sizes)
    torch.testing.assert_close(trained_scores(same, embeddings), same.terms[3].class_scores(embeddings))
    assert trained_scores(lossmith.loss("soft_triple -> cross_entropy @ 0.3", **sizes), embeddings) is None


def test_a_hand_over_with_proxies_says_after_loading_what_it_said_before(base, tmp_path):
    model, tokenizer, loss, support = made(base, text=HANDED_ON)
    loss.set_progress(0.9)
    before = scores_of(model, tokenizer, loss, support, "mean", 0.3)
    save_classifier(model, tokenizer, loss, tmp_path, inference=inference_of(), support=support)
    loaded = load_saved(tmp_path)
    assert str(loaded.loss) == HANDED_ON
    after = scores_of(loaded.model, loaded.tokenizer, loaded.loss, loaded.support, "mean", 0.3)
    for method in INFERENCE_METHODS:
        np.testing.assert_allclose(after.of(method), before.of(method), rtol=1e-4, atol=1e-4, err_msg=method)


def test_a_classifier_of_transformers_alone_has_only_a_head(base, tmp_path):
    model, tokenizer, _, _ = made(base)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_saved(tmp_path)
    assert loaded.label_names == CLASSES
    assert (loaded.loss, loaded.inference, loaded.support) == (None, None, None)
    expected = outputs_of(model, tokenizer, ASKED, "mean").logits
    torch.testing.assert_close(outputs_of(loaded.model, loaded.tokenizer, ASKED, "mean").logits, expected)


def test_a_decoder_with_a_head_reads_padded_batches(tmp_path):
    base = resolve_model(str(tiny.write_causal_model(tmp_path / "causal")))
    torch.manual_seed(0)
    model, tokenizer = load_network(base, CLASSES, head="own", pooling="last", lora=None)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    loaded = load_saved(tmp_path / "plain")
    texts = ["a", "a longer text", "two"]
    together = outputs_of(loaded.model, loaded.tokenizer, texts, "last").logits
    alone = torch.cat([outputs_of(loaded.model, loaded.tokenizer, [text], "last").logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def refused(folder) -> str:
    with pytest.raises(ModelError) as error:
        load_saved(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_hold_no_trained_classifier(base, tmp_path):
    assert "got no folder" in refused(tmp_path / "nowhere")
    assert "got no folder" in refused(tmp_path / ("m" * 300))
    (tmp_path / "empty").mkdir()
    assert "got one without" in refused(tmp_path / "empty")
    causal = tiny.write_causal_model(tmp_path / "causal")
    assert "lacks score.weight: it is no trained classifier" in refused(causal)
    message = refused(tmp_path / "model" if (tmp_path / "model").exists() else tiny.write_model(tmp_path / "model"))
    assert "lacks classifier.bias, classifier.weight: it is no trained classifier" in message


def rewritten(file, change) -> None:
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(change(tensors), file)


def test_proxies_of_a_model_with_other_classes(saved, base, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    model, tokenizer, _, support = made(base, names=("a", "b", "c", "d"))
    loss = lossmith.loss(LOSS, num_classes=4, embedding_dim=16)
    save_classifier(model, tokenizer, loss, other, inference=inference_of(), support=support)
    shutil.copy(other / "loss.safetensors", saved / "loss.safetensors")
    message = refused(saved)
    assert "does not fit its model, which has 3 classes" in message
    assert "(4, 2, 16)" in message


def test_reference_of_another_model(saved):
    rewritten(saved / "reference.safetensors", lambda found: found | {"labels": found["labels"] + 1})
    assert "they belong to another model" in refused(saved)
    rewritten(
        saved / "reference.safetensors",
        lambda found: {"labels": found["labels"] - 1, "embeddings": found["embeddings"][:, :7].contiguous()},
    )
    assert "width 7" in refused(saved)


def test_a_head_of_another_model(base, tmp_path):
    model, tokenizer, loss, support = made(base, head="pooled")
    save_classifier(model, tokenizer, loss, tmp_path, inference=inference_of("pooled"), support=support)
    rewritten(tmp_path / "head.safetensors", lambda found: {name: value[:2] for name, value in found.items()})
    assert "it belongs to another one" in refused(tmp_path)
    (tmp_path / "head.safetensors").unlink()
    assert "lacks head.safetensors" in refused(tmp_path)


def settings_changed(folder, **changes) -> None:
    file = folder / "lossmith.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_damaged_files(saved):
    settings_changed(saved, pooling="median")
    assert "pooling 'median', which this version does not know" in refused(saved)
    settings_changed(saved, pooling="mean")
    for name in ("loss.safetensors", "reference.safetensors", "model.safetensors", "lossmith.json", "config.json"):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: len(whole) // 2])
        assert str(saved) in refused(saved), name
        (saved / name).write_bytes(whole)
    load_saved(saved)


def test_classes_that_do_not_match_the_weights(saved):
    file = saved / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    file.write_text(json.dumps(config), encoding="utf-8")
    assert "cannot be loaded as a classifier" in refused(saved)
