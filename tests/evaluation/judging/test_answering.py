"""Answers written into a file, the same however often the work stops; offline judges with tiny models."""

import json

import pytest

import tiny
from lossmith.errors import ConfigurationError, DataError, EvidenceError, LossmithWarning
from lossmith.evaluation.judging import (
    AnswerRow,
    AnswerSet,
    AnswerSettings,
    Asked,
    classifier_score,
    likelihood_score,
    likelihood_win_rate,
    read_answers,
    write_answers,
)
from lossmith.evaluation.judging.sources import answers_from, questions_from, read_difficulties, read_gamed
from lossmith.integrations.causal_lm import load_causal_lm
from lossmith.integrations.models import ResolvedModel

QUESTIONS = [
    Asked(id="1", turns=("1+1?", "again"), category="writing"),
    Asked(id="2", turns=("2+2?", "again"), category="math"),
    Asked(id="3", turns=("3+3?", "again"), category="math"),
    Asked(id="4", turns=("4+4?",), category="math"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny")
    return load_causal_lm(ResolvedModel(name="tiny", location=str(folder), fingerprint="f"))


def written(model, out, questions=QUESTIONS, **settings):
    chosen = AnswerSettings(**{"max_new_tokens": 6, "batch_size": 1, **settings})
    return write_answers(*model, questions, out, name="tiny", fingerprint="f", settings=chosen)


def test_every_turn_is_answered_and_the_file_can_be_judged(model, tmp_path):
    out = tmp_path / "answers.jsonl"
    result = written(model, out)
    assert (result.answers, result.kept) == (4, 0)
    found = read_answers(out)
    assert found.model == "tiny"
    assert {name: len(row.answers) for name, row in found.rows.items()} == {"1": 2, "2": 2, "3": 2, "4": 1}
    assert found.rows["2"].turns == ("2+2?", "again")
    assert found.rows["1"].category == "writing"


def test_the_second_turn_sees_the_first_answer(model, tmp_path, monkeypatch):
    from lossmith.integrations import causal_lm

    prompts = []
    real = causal_lm.generate

    def spy(network, tokenizer, given, **settings):
        prompts.extend(tokenizer.decode(one) for one in given)
        return real(network, tokenizer, given, **settings)

    monkeypatch.setattr(causal_lm, "generate", spy)
    written(model, tmp_path / "answers.jsonl", QUESTIONS[:1])
    said = read_answers(tmp_path / "answers.jsonl").rows["1"].answers[0]
    assert prompts[0] == "### User:\n1+1?\n\n### Assistant:\n"
    assert prompts[1].startswith(prompts[0])
    assert said in prompts[1]
    assert prompts[1].endswith("### User:\nagain\n\n### Assistant:\n")


def test_categories_have_mt_benchs_temperatures(model, tmp_path):
    settings = AnswerSettings()
    assert [settings.temperature_of(Asked(id="x", turns=("a",), category=name)) for name in (
        "writing", "roleplay", "stem", "humanities", "math", "coding", "reasoning", "extraction", ""
    )] == [0.7, 0.7, 0.1, 0.1, 0, 0, 0, 0, 0]  # fmt: skip
    assert AnswerSettings(temperature=0.3).temperature_of(QUESTIONS[0]) == 0.3
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    written(model, first, seed=0)
    written(model, second, seed=1)
    ours, theirs = read_answers(first).rows, read_answers(second).rows
    assert ours["1"].answers != theirs["1"].answers  # sampled
    assert ours["2"].answers == theirs["2"].answers  # greedy


def test_a_file_goes_on_where_it_stopped_and_is_the_same(model, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    written(model, whole, batch_size=2)
    lines = whole.read_text().splitlines(keepends=True)
    torn.write_text(lines[0] + lines[1][: len(lines[1]) // 2])
    result = written(model, torn, batch_size=2)
    assert (result.answers, result.kept) == (4, 1)
    assert read_answers(torn).rows == read_answers(whole).rows
    assert sorted(torn.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_an_interrupt_keeps_what_is_finished(model, tmp_path):
    out = tmp_path / "answers.jsonl"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    settings = AnswerSettings(max_new_tokens=6, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        write_answers(*model, QUESTIONS, out, name="tiny", fingerprint="f", settings=settings, on_answers=stop)
    assert len(read_answers(out).rows) == 2
    assert written(model, out).kept == 2


def test_answers_of_other_settings_are_not_mixed(model, tmp_path):
    out = tmp_path / "answers.jsonl"
    written(model, out)
    for settings in ({"max_new_tokens": 5}, {"seed": 3}, {"temperature": 0.5}):
        with pytest.raises(EvidenceError, match="another model or with other settings: choose another --out"):
            written(model, out, **settings)
    out.write_text('{"id": "1"}\n')
    with pytest.raises(EvidenceError, match=r"Line 1 of .* is no answer of `lossmith answer`"):
        written(model, out)


def test_long_prompts_are_cut_and_no_room_is_refused(model, tmp_path):
    long = [Asked(id="1", turns=("x" * 300,))]
    assert written(model, tmp_path / "a.jsonl", long).cut_prompts == 1
    with pytest.raises(ConfigurationError, match="`max_new_tokens` must be < 128"):
        written(model, tmp_path / "b.jsonl", long, max_new_tokens=128)


def sides(ours: str, theirs: str) -> tuple[AnswerSet, AnswerSet]:
    return tuple(
        AnswerSet(model=name, rows={"1": AnswerRow(id="1", answers=(text,), turns=("1+1?",))})
        for name, text in (("ours", ours), ("theirs", theirs))
    )


def test_the_likelihood_is_that_of_the_answer_after_the_request(model):
    import torch

    network, tokenizer = model
    ids = tokenizer("1+1?\n", add_special_tokens=False)["input_ids"]
    answer = tokenizer("22", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logps = network(torch.tensor([ids + answer])).logits.double().log_softmax(-1)[0]
    expected = sum(float(logps[len(ids) - 1 + place, token]) for place, token in enumerate(answer))
    pairs = [("1+1?", "22"), ("1+1?", "")]
    summed = likelihood_score(network, tokenizer, per_token=False)(pairs)
    assert summed[0] == pytest.approx(expected, abs=1e-4)
    assert likelihood_score(network, tokenizer)(pairs)[0] == pytest.approx(expected / 2, abs=1e-4)
    assert summed[1] < 0
    result = likelihood_win_rate(*sides("2", "2222222222"), network, tokenizer, name="tiny", per_token=False)
    assert result.win_rate.mean == 1
    assert result.decided_by == "the likelihood in sum under 'tiny' (no judge)"


def test_a_classifier_scores_request_and_answer(tmp_path):
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tiny.write_model(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(folder, num_labels=1, initializer_range=1.0)
    network = BertForSequenceClassification(config).eval()
    pairs = [("the film", "good"), ("the film is very bad and so", "dull"), ("good", "the film")]
    scores = classifier_score(network, tokenizer, batch_size=2)(pairs)
    for (request, answer), score in zip(pairs, scores, strict=True):
        alone = network(**tokenizer(request, answer, return_tensors="pt")).logits.item()
        assert score == pytest.approx(alone, abs=1e-4)
    assert scores[0] != pytest.approx(scores[2], abs=1e-3)
    with pytest.raises(ConfigurationError, match="`label` must name one of the 1 classes"):
        classifier_score(network, tokenizer, label=0)
    most = max(len(tokenizer(*pair).input_ids) for pair in pairs)
    assert classifier_score(network, tokenizer, max_length=most)(pairs) == pytest.approx(scores, abs=1e-4)
    with pytest.warns(LossmithWarning, match=f"^1 of 3 pairs are longer than the {most - 1} tokens that the reward"):
        classifier_score(network, tokenizer, max_length=most - 1)(pairs)


def test_questions_by_name_and_from_files(tmp_path):
    asked = questions_from("mt_bench")
    assert (len(asked), len(asked[0].turns), asked[0].category) == (80, 2, "writing")
    path = tmp_path / "posts.jsonl"
    path.write_text('{"prompt": "A post. TL;DR:"}\n{"id": "x", "turns": ["a", "b"], "category": "c"}\n')
    assert questions_from(str(path)) == [
        Asked(id="0", turns=("A post. TL;DR:",)), Asked(id="x", turns=("a", "b"), category="c")
    ]  # fmt: skip
    for text, words in [
        ('{"text": "a"}', "row 1 must have `turns`"),
        ('{"turns": []}', "row 1 must have `turns`"),
        ('{"id": "1", "prompt": "a"}\n{"id": "1", "prompt": "b"}', "got '1' twice"),
    ]:
        path.write_text(text + "\n")
        with pytest.raises(DataError, match=words):
            questions_from(str(path))


def test_alpaca_eval_comes_from_a_folder(tmp_path):
    row = {
        "id": "alpaca_eval:0",
        "category": "oasst",
        "turns": ["Why?"],
        "output_gpt4_1106_preview": "So.",
        "output_b": "No.",
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    name = f"alpaca_eval:{tmp_path}"
    assert questions_from(name) == [Asked(id="alpaca_eval:0", turns=("Why?",), category="oasst")]
    assert answers_from(name).rows["alpaca_eval:0"].answers == ("So.",)
    assert answers_from(f"{name}#b").model == "b"
    with pytest.raises(DataError, match="must have the answers of 'c', got those of"):
        answers_from(f"{name}#c")


def test_posts_of_tldr_are_questions_and_the_preferred_summaries_answers(tmp_path):
    def row(number: int, post: str) -> str:
        info = {"id": f"t{number}", "subreddit": "pets", "title": "Cats", "post": post, "site": None, "article": None}
        summaries = [{"text": f" first {number}"}, {"text": f" second {number}"}]
        return json.dumps({"info": info, "summaries": summaries, "choice": number % 2})

    for split in ("train", "test"):
        rows = [row(number, f"My {split} cat {number // 2} sat.") for number in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    name = f"tldr:{tmp_path}"
    asked = questions_from(name)
    assert [f"My test cat {number} sat." in one.turns[0] for number, one in enumerate(asked)] == [True, True]
    found = answers_from(name)
    assert [found.rows[one.id].answers for one in asked] == [("first 0",), ("first 2",)]
    assert all(found.rows[one.id].turns == one.turns for one in asked)


def test_questions_of_pairs_are_what_the_user_says():
    asked, chosen = questions_from("pairs:polite_pairs"), answers_from("pairs:polite_pairs")
    assert len(asked) == len({one.turns for one in asked}) == len(chosen.rows) > 50
    assert not any(one.turns[0].startswith("user:") for one in asked)
    with pytest.raises(ConfigurationError, match="Did you mean 'polite_pairs'"):
        questions_from("pairs:polite_pair")


def test_difficulties_and_gamed_rows_are_read_as_alpaca_eval_writes_them(tmp_path):
    path = tmp_path / "instruction_difficulty.csv"
    path.write_text(",instruction_difficulty\n0,-0.5\n1,1.25\n")
    assert read_difficulties(path) == {"0": -0.5, "1": 1.25}
    path.write_text("id,instruction_difficulty\na,x\n")
    with pytest.raises(DataError, match="row 1 must have a number in `instruction_difficulty`, got 'x'"):
        read_difficulties(path)
    path.write_text("id,difficulty\na,1\n")
    with pytest.raises(DataError, match="must have the columns"):
        read_difficulties(path)
    gamed = tmp_path / "df_gamed.csv"
    gamed.write_text("model,index,preference,std_delta_len,instruction_difficulty\nm,0,0.25,-1.5,0.5\n")
    found = read_gamed(gamed)
    assert (found.preferences[0], found.lengths[0], found.difficulties[0]) == (0.25, -1.5, 0.5)
    gamed.write_text("preference,std_delta_len,instruction_difficulty\n1.5,0,0\n")
    with pytest.raises(DataError, match=r"preferences in \[0, 1\]"):
        read_gamed(gamed)
