"""Rewards by any classifier of transformers, pairs labelled by them, and the reward that is trained here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import tiny
from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.evaluation.rewards import open_reward, positive_label
from lossmith.evaluation.sampling import SampledAnswer, label_pairs
from lossmith.studies.reward_model import trained_reward


def write_classifier(folder: Path, names: list[str]) -> Path:
    tiny.write_model(folder)
    torch.manual_seed(5)
    model = BertForSequenceClassification.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={name: place for place, name in enumerate(names)}
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("reward") / "three", ["NEUTRAL", "NEGATIVE", "POSITIVE"])


def test_the_reward_is_the_probability_of_the_positive_class(classifier):
    reward = open_reward(str(classifier))
    assert (reward.label, reward.max_length) == ("POSITIVE", 32)
    texts = ["good film", "the plot was awful and cold and very grim", "so"]
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        expected = [
            torch.softmax(model(**tokenizer([text], return_tensors="pt")).logits[0], -1)[2].item() for text in texts
        ]
    assert max(expected) - min(expected) > 0.01
    for batch_size in (1, 3):
        assert reward.score(texts, batch_size=batch_size) == pytest.approx(expected, abs=1e-6)
    negative = open_reward(str(classifier), label="NEGATIVE").score(texts)
    assert negative != pytest.approx(expected, abs=1e-3)
    assert reward.score(["good " * 100]) == pytest.approx(reward.score(["good " * 40]))


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays(classifier):
    reward = open_reward(str(classifier))
    prompt = "the film is " * 20
    good, bad = " good and warm", " awful and bad"
    found = reward.score_answers([(prompt + good, good), (prompt + bad, bad), ("so" + good, good)])
    assert (found.cut_prompts, found.cut_answers) == (2, 0)
    # [CLS], the last tokens of the prompt, the whole answer, [SEP]: 32 tokens.
    kept = " ".join((prompt + good).split()[-30:])
    assert found.values == pytest.approx(reward.score([kept, kept[: -len(good)] + bad, "so" + good]), abs=1e-6)
    assert found.values[0] != pytest.approx(found.values[1], abs=1e-3)
    assert found.sentence("test answers") == (
        "The reward reads 32 tokens: of 3 test answers 2 were scored without the beginning of their prompt."
    )
    assert reward.tokenizer.truncation_side == "right"
    assert reward.score_answers([]).values == []


def test_an_answer_that_is_too_long_alone_loses_its_end_and_the_prompt(classifier):
    reward = open_reward(str(classifier))
    answer = "good film " * 10 + "bad plot " * 20
    found = reward.score_answers([("awful " + answer, answer), ("the cast", "")])
    assert (found.cut_prompts, found.cut_answers) == (0, 1)
    assert found.values == pytest.approx(reward.score([" ".join(answer.split()[:30]), "the cast"]), abs=1e-6)
    assert "1 was scored without the end of its own text" in str(found.sentence("test answers"))
    assert reward.score_answers([("the cast", "")]).sentence("test answers") is None


def test_what_a_template_puts_behind_an_answer_stays_with_it(classifier):
    reward = open_reward(str(classifier))
    text = "film " * 40 + "so good the end"
    # The template took the blanks around the answer away.
    found = reward.score_answers([(text, "  so good "), (text, "not there"), (text, "")])
    assert (found.cut_prompts, found.cut_answers) == (3, 0)
    assert found.values == pytest.approx(reward.score(["film " * 26 + "so good the end"]) * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("names", "found"),
    [(("pos", "neg"), "pos"), (("LABEL_0", "LABEL_1"), "LABEL_1"), (("LABEL_1", "Positive"), "Positive")],
)
def test_known_names_of_a_positive_class(names, found):
    assert positive_label(names, None, name="mine") == found


def test_a_class_that_cannot_be_found_is_one_sentence():
    with pytest.raises(ConfigurationError, match=r"say which one.*`reward_label`.*joy, anger"):
        positive_label(("joy", "anger"), None, name="mine")
    with pytest.raises(ConfigurationError, match=r"got 'joi'\. Did you mean 'joy'"):
        positive_label(("joy", "anger"), "joi", name="mine")
    with pytest.raises(ModelError, match="two classes or more, got 1"):
        positive_label(("LABEL_0",), None, name="mine")


def answers(*texts: str) -> list[SampledAnswer]:
    return [
        SampledAnswer(prompt_ids=(1,), ids=(place, 9), answer=text, whole="a" + text, stopped=True)
        for place, text in enumerate(texts)
    ]


def test_pairs_are_best_and_worst_and_what_gives_none_is_counted():
    prompts = [(f"train:{number}", "a") for number in range(4)]
    found = label_pairs(
        prompts,
        [answers(" b", " c", " d"), answers(" b", " b"), answers(" b", " c"), answers(" b", " ")],
        [[0.4, 0.9, 0.1], [0.5, 0.5], [0.7, 0.7], [0.2, 0.8]],
    )
    assert (found.equal, found.ties, found.empty) == (1, 1, 1)
    (pair,) = found.pairs
    assert (pair.pair.chosen, pair.pair.rejected, pair.pair.chosen_score) == (" c", " d", 0.9)
    assert (pair.chosen_ids, pair.rejected_ids, pair.pair.id) == ((1, 9), (2, 9), "train:0")


def test_a_constant_reward_leaves_no_pair():
    with pytest.raises(
        DataError, match="No pair is left of 2 prompts: 0 have equal answers, 2 answers of equal reward"
    ):
        label_pairs([("1", "a"), ("2", "a")], [answers(" b", " c")] * 2, [[0.5, 0.5]] * 2)


SMALL = {"shots_total": None, "learning_rate": 1e-2, "epochs": 12, "max_length": None, "test_fraction": 0.25}


def test_the_trained_reward_is_made_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    own = SMALL | {
        "task": str(tiny.write_data(tmp_path / "films.jsonl")),
        "model": str(tiny.write_model(tmp_path / "tiny")),
    }
    said: list[str] = []
    made = trained_reward(settings=own, say=said.append)
    assert (len(said), made.test_examples) == (1, 20)
    assert made.test_accuracy > 0.9
    assert f"{100 * made.test_accuracy:.1f}% of 20" in made.sentence
    weights = (made.folder / "model.safetensors").stat().st_mtime_ns
    assert trained_reward(settings=own, say=said.append) == made
    assert (len(said), (made.folder / "model.safetensors").stat().st_mtime_ns) == (1, weights)
    good, bad = open_reward(str(made.folder)).score(["the film was good and great", "the film was awful and bad"])
    assert good > 0.6 > 0.4 > bad
    other = trained_reward(settings=own | {"epochs": 1})
    assert other.folder != made.folder
    # Nothing but the two whole folders and their locks is left.
    assert len(list((tmp_path / "cache" / "rewards").iterdir())) == 4


def test_two_processes_make_one_reward(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    own = SMALL | {
        "task": str(tiny.write_data(tmp_path / "films.jsonl")),
        "model": str(tiny.write_model(tmp_path / "tiny")),
    }
    code = (
        "from lossmith.studies.reward_model import trained_reward\n"
        f"trained_reward(settings={own!r}, say=lambda _: print('trained', flush=True))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.strip() for text in said) == ["", "trained"]
