"""A trained classifier asked again says what its study recorded, in every way; it abstains below the threshold only."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import tiny
from lossmith.errors import ConfigurationError, DataError, LossmithWarning, ModelError
from lossmith.evaluation.inference import INFERENCE_METHODS
from lossmith.studies import make_config, open_predictor, predict, predicting, train
from lossmith.tasks import load_task

# PEFT asks transformers for a name that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
JOINT = "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"


def trained(folder, model, data, loss=JOINT, **changes):
    """The record of a model that learned something, saved in `folder`."""
    settings = {
        "task": str(data),
        "model": str(model),
        "losses": [loss],
        "baseline": loss,
        "seeds": [1],
        "shots": 8,
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "device": "cpu",
    }
    return train(make_config(settings | changes), folder)


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_model, tiny_data):
    folder = tmp_path_factory.mktemp("own") / "saved"
    return folder, trained(folder, tiny_model, tiny_data)


@pytest.fixture(scope="module")
def tokens_with_lora(tmp_path_factory, tiny_model, tiny_data):
    folder = tmp_path_factory.mktemp("lora") / "saved"
    return folder, trained(
        folder, tiny_model, tiny_data, head="pooled", pooling="tokens", lora={"r": 4}, epochs=8, learning_rate=2e-2
    )


@pytest.fixture(scope="module")
def paired_data(tmp_path_factory) -> Path:
    first, second = tiny.sentences(80, 3), tiny.sentences(80, 4)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"first": a["text"], "second": b["text"], "label": a["label"]} for a, b in zip(first, second, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def paired(tmp_path_factory, tiny_model, paired_data):
    folder = tmp_path_factory.mktemp("paired") / "saved"
    changes = {"text_column": "first", "text_pair_column": "second", "calibration_examples": 0}
    learns = {"head": "pooled", "epochs": 8, "learning_rate": 2e-2}
    return folder, trained(folder, tiny_model, paired_data, "cross_entropy", **changes, **learns)


def right(found, labels, label_names):
    return [float(one.guess == label_names[label]) for one, label in zip(found, labels, strict=True)]


@pytest.mark.parametrize("kind", ["own", "tokens_with_lora"])
def test_every_way_says_what_the_study_recorded(kind, request, tiny_data):
    folder, record = request.getfixturevalue(kind)
    test = load_task(tiny_data).test
    names = tuple(record.label_names)
    for method in INFERENCE_METHODS:
        found = predict(folder, [row.text for row in test], method=method, device="cpu")
        correct = right(found, record.labels, names)
        if kind == "tokens_with_lora":
            assert {one.guess for one in found} == set(names), "the case tells nothing apart"
        prefix = "" if method == "head" else f"{method}_"
        assert sum(correct) / len(correct) == record.metrics[f"{prefix}accuracy"]
        if method == "head":
            assert [names.index(one.guess) for one in found] == record.predictions
        else:
            assert correct == record.scores[f"{method}_accuracy"]
        temperature = record.config["temperatures"][method]
        for one in found:
            calibrated = one.probabilities
            assert one.calibrated_probability == max(calibrated) == calibrated[names.index(one.guess)]
            # p ** T of a softmax at temperature T is that at 1, up to its sum.
            raw = calibrated**temperature
            assert one.probability == pytest.approx(max(raw / raw.sum()), rel=1e-6)
        nll = -np.mean([np.log(one.probabilities[label]) for one, label in zip(found, record.labels, strict=True)])
        if method == "head":
            assert nll == pytest.approx(record.metrics["calibrated_nll"], rel=1e-5)


def test_pairs_say_what_the_study_recorded_and_both_texts_count(paired, paired_data):
    folder, record = paired
    test = load_task(paired_data, text_column="first", text_pair_column="second").test
    first, second = [row.text for row in test], [row.pair for row in test]
    with pytest.warns(LossmithWarning, match="No temperature was fitted"):
        found = predict(folder, first, second, device="cpu")
    assert [record.label_names.index(one.guess) for one in found] == record.predictions
    nll = -np.mean([np.log(one.probabilities[label]) for one, label in zip(found, record.labels, strict=True)])
    assert nll == pytest.approx(record.metrics["nll"], rel=1e-6)
    assert all(one.calibrated_probability is None for one in found)
    with pytest.warns(LossmithWarning):
        others = predict(folder, first, second[::-1], device="cpu")
    assert [one.probability for one in others] != [one.probability for one in found]


def test_order_and_batches_change_nothing(own, monkeypatch):
    folder, _ = own
    # Of different lengths, so that batches are not made in the given order.
    texts = [" ".join(row["text"].split()[: 1 + place % 7]) for place, row in enumerate(tiny.sentences(30, 8))]
    predictor = open_predictor(folder, method="mixture", device="cpu")
    found = [one.probabilities for one in predictor.predict(texts)]
    seen = []
    monkeypatch.setattr(predicting, "TEXTS_AT_ONCE", 7)
    moved = lambda done, total: seen.append((done, total))  # noqa: E731
    pieces = [one.probabilities for one in predictor.predict(texts, batch_size=3, on_batch=moved)]
    alone = [predictor.predict([text])[0].probabilities for text in texts]
    assert len({round(float(row[0]), 4) for row in found}) > 15
    np.testing.assert_allclose(pieces, found, rtol=1e-4)
    np.testing.assert_allclose(alone, found, rtol=1e-4)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (30, 30)
    assert {total for _, total in seen} == {30}
    assert predictor.predict([]) == []


def test_it_abstains_exactly_below_the_threshold(own):
    folder, _ = own
    texts = [row["text"] for row in tiny.sentences(40, 9)]
    free = predict(folder, texts, method="proxies", device="cpu")
    assert all(one.label == one.guess and not one.abstained for one in free)
    calibrated = sorted(one.calibrated_probability for one in free)
    threshold = calibrated[15]
    assert calibrated[14] < threshold < calibrated[16]
    found = predict(folder, texts, method="proxies", threshold=threshold, device="cpu")
    assert found != free
    for one, before in zip(found, free, strict=True):
        assert one.abstained == (before.calibrated_probability < threshold)
        assert one.label == (None if one.abstained else before.guess)
        assert (one.guess, one.probability) == (before.guess, before.probability)
    assert sum(one.abstained for one in found) == 15
    # Another number than the model's own probability.
    assert sum(one.probability < threshold for one in free) != 15


def test_without_a_temperature_the_threshold_is_on_the_probability(own, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(own[0]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(own[0]).save_pretrained(tmp_path)
    texts = [row["text"] for row in tiny.sentences(20, 9)]
    threshold = sorted(one.probability for one in predict(own[0], texts, device="cpu"))[8]
    with pytest.warns(
        LossmithWarning, match="only its head can be asked, and its probabilities are not calibrated"
    ) as seen:
        found = predict(tmp_path, texts, threshold=threshold, device="cpu")
    assert "`threshold` acts on them as they are" in str(seen[0].message)
    assert sum(one.abstained for one in found) == sum(one.probability < threshold for one in found)
    assert all(one.calibrated_probability is None for one in found)
    assert [one.guess for one in found] == [one.guess for one in predict(own[0], texts, device="cpu")]
    with pytest.raises(ModelError, match="only 'head' can be asked"):
        predict(tmp_path, texts, method="neighbours")


def test_a_calibrated_model_says_nothing_beside(own):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        (found,) = predict(own[0], ["a film"], device="cpu", threshold=0.5)
    assert [str(one.message) for one in seen] == []
    assert found.calibrated_probability is not None
    assert found.abstained == (found.calibrated_probability < 0.5)


def test_a_head_that_was_never_trained_is_not_asked(tmp_path, tiny_model, tiny_data):
    folder = tmp_path / "saved"
    trained(folder, tiny_model, tiny_data, "supcon", metric="neighbours_accuracy", epochs=1)
    for method in ("head", "mixture"):
        with pytest.raises(ModelError, match="was never trained, since 'supcon' reads embeddings only"):
            predict(folder, ["a film"], method=method)
    assert predict(folder, ["a film"], method="neighbours", device="cpu")[0].label is not None


def test_without_reference_only_the_head_is_left(own, tmp_path):
    import shutil

    folder = tmp_path / "saved"
    shutil.copytree(own[0], folder)
    (folder / "reference.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks the embeddings of its training texts"):
        predict(folder, ["a film"], method="mixture")
    assert predict(folder, ["a film"], device="cpu") == predict(own[0], ["a film"], device="cpu")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ({"method": "head_"}, r"`method` must be one of head, .*, got 'head_'\. Did you mean 'head'\?"),
        ({"threshold": 0.0}, r"`threshold` must be in \(0, 1\]"),
        ({"threshold": 1.01}, r"`threshold` must be in \(0, 1\]"),
        ({"threshold": float("nan")}, r"`threshold` must be in \(0, 1\]"),
        ({"batch_size": 0}, r"`batch_size` must be an integer >= 1, got 0"),
        ({"device": "cuda"}, "`--device cuda` is not available here"),
        ({"pairs": ["a"]}, "was trained on single texts, got pairs"),
    ],
)
def test_bad_settings(own, words, part):
    with pytest.raises(ConfigurationError, match=part):
        predict(own[0], ["a film"], **words)


def test_bad_texts(own, paired):
    with pytest.raises(DataError, match="`texts` must be a list of strings, got one string"):
        predict(own[0], "a film")
    with pytest.raises(DataError, match="`texts` must hold strings, got int at index 1"):
        predict(own[0], ["a", 1])
    with pytest.warns(LossmithWarning), pytest.raises(ConfigurationError, match="was trained on pairs of texts"):
        predict(paired[0], ["a film"])
    with pytest.warns(LossmithWarning), pytest.raises(DataError, match="one text for each of the 2 `texts`, got 1"):
        predict(paired[0], ["a film", "b"], ["c"])


def test_scores_that_are_no_numbers(own, tmp_path):
    import shutil

    import safetensors.torch

    folder = tmp_path / "saved"
    shutil.copytree(own[0], folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gives scores that are not finite"):
        predict(folder, ["a film"], device="cpu")
