"""Prompts from reviews and the files of sampled pairs."""

import json
from pathlib import Path

import pytest

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks.preference import Pair
from lossmith.tasks.sentiment import SampledPair, load_review_prompts, read_pairs, write_pairs

REVIEWS = [f"film {number} was {'good' if number % 2 else 'bad'} and number {number} ended" for number in range(40)]


class Words:
    """Tokens are words; the word `odd` does not come back as it was."""

    def __init__(self):
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids) -> str:
        return " ".join(self.words[place].replace("odd", "") for place in ids)


def write(folder: Path, train: list[str], test: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, texts in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"review": text}) + "\n" for text in texts))
    return folder


def prompts(reviews: Path, **changes):
    words = Words()
    settings = {"train_prompts": 20, "test_prompts": 5, "seed": 1} | changes
    return load_review_prompts(str(reviews), words.encode, words.decode, **settings)


def test_prompts_are_short_beginnings_and_disjoint(tmp_path):
    folder = write(tmp_path / "films", REVIEWS[:30], REVIEWS[25:])
    found = prompts(folder)
    train, test = [[prompt.text for prompt in split] for split in (found.train, found.test)]
    assert (len(train), len(test)) == (20, 5)
    assert not set(train) & set(test)
    assert len(set(train)) == 20
    lengths = {prompt.tokens for prompt in (*found.train, *found.test)}
    assert min(lengths) >= 2
    assert max(lengths) <= 8
    assert len(lengths) > 3
    for prompt in found.train:
        assert REVIEWS[int(prompt.id.removeprefix("train:"))].startswith(prompt.text)
        assert len(prompt.text.split()) == prompt.tokens
    assert found.name == "films"


def test_draws_follow_the_seed_and_the_test_does_not_follow_the_training(tmp_path):
    folder = write(tmp_path / "films", REVIEWS[:30], REVIEWS[25:])
    assert prompts(folder).train == prompts(folder).train != prompts(folder, seed=2).train
    fewer = prompts(folder, train_prompts=7)
    assert fewer.test == prompts(folder).test
    assert fewer.train == prompts(folder).train[:7]
    assert fewer.fingerprint != prompts(folder).fingerprint


def test_beginnings_that_do_not_come_back_or_stand_twice_are_left_out(tmp_path):
    folder = write(tmp_path / "films", ["odd film", "the film", "the film"], ["a film"])
    found = prompts(folder, train_prompts=1, test_prompts=1, shortest=2, longest=2)
    assert [prompt.text for prompt in found.train] == ["the film"]
    with pytest.raises(DataError, match="give 1 different beginnings of 2 to 2 tokens"):
        prompts(folder, train_prompts=2, test_prompts=1, shortest=2, longest=2)
    # A test prompt is no training prompt.
    folder = write(tmp_path / "same", ["a film"], ["a film"])
    with pytest.raises(DataError, match="`train_prompts` is 1"):
        prompts(folder, train_prompts=1, test_prompts=1, shortest=2, longest=2)


def test_reviews_of_known_sets_files_and_what_is_none(tmp_path):
    letters = (lambda text: [ord(letter) for letter in text], lambda ids: "".join(map(chr, ids)))
    shipped = load_review_prompts("mr", *letters, train_prompts=3, test_prompts=2)
    assert "Pang" in shipped.attribution
    (tmp_path / "films.csv").write_text("text\n" + "\n".join(REVIEWS) + "\n")
    assert len(prompts(tmp_path / "films.csv").train) == 20
    folder = write(tmp_path / "films", REVIEWS[:30], REVIEWS[25:])
    assert load_review_prompts("imdb", *letters, data=str(folder), train_prompts=3, test_prompts=2).name == "imdb"
    with pytest.raises(DataError, match="not shipped"):
        load_review_prompts("imdb", *letters, train_prompts=3, test_prompts=2)
    with pytest.raises(DataError, match="must be a known set"):
        prompts(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match=r"got \[5, 2\]"):
        prompts(folder, shortest=5, longest=2)
    write(tmp_path / "empty", ["", " "], ["a"])
    with pytest.raises(DataError, match="field `text` or `review` or `sentence`"):
        prompts(tmp_path / "empty")


def test_pairs_come_back_as_they_were_written(tmp_path):
    pair = Pair(
        id="train:3", prompt="A film", chosen=" w\u2028as\n good", rejected='"', chosen_score=0.9, rejected_score=0.1
    )
    found = SampledPair(pair=pair, prompt_ids=(1, 2), chosen_ids=(3, 4, 0), rejected_ids=(5,))
    write_pairs(tmp_path / "pairs.jsonl", [found, found])
    assert read_pairs(tmp_path / "pairs.jsonl") == (found, found)
    row = json.loads((tmp_path / "pairs.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert (row["prompt"], row["chosen"], row["chosen_score"]) == ("A film", " w\u2028as\n good", 0.9)
    (tmp_path / "pairs.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match="holds no sampled pairs"):
        read_pairs(tmp_path / "pairs.jsonl")
