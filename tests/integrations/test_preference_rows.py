"""Pairs as token rows: one prompt for both answers, what is cut and left out, and that it is said."""

import pytest
from transformers import AutoTokenizer

import tiny
from lossmith.errors import ConfigurationError
from lossmith.integrations.preference_rows import encode_pairs, pairs_sentence

CHAT = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    folder = tiny.write_causal_model(tmp_path_factory.mktemp("model") / "tiny")
    return AutoTokenizer.from_pretrained(folder)


def texts(tokenizer, ids):
    return tokenizer.decode(ids)


def test_prompt_and_answers_are_whole_where_they_fit(characters):
    found = encode_pairs(characters, [("1+1=", "2", "33")], max_length=8)
    (row,) = found.rows
    assert texts(characters, row.prompt_ids) == "1+1="
    assert texts(characters, row.chosen_ids) == "2<eos>"
    assert texts(characters, row.rejected_ids) == "33<eos>"
    assert pairs_sentence(found, "train") is None


def test_a_long_prompt_loses_its_left_alike_for_both_answers_and_it_is_counted(characters):
    found = encode_pairs(characters, [("abcdefghij", "x", "yyy"), ("ab", "x", "y")], max_length=10)
    assert texts(characters, found.rows[0].prompt_ids) == "efghij"
    assert texts(characters, found.rows[0].rejected_ids) == "yyy<eos>"
    assert (found.cut_prompts, found.cut_prompt_tokens, found.cut_answers) == (1, 4, 0)
    assert "1 of 2 train pairs" in pairs_sentence(found, "train")


def test_a_bound_for_prompts_comes_on_top(characters):
    found = encode_pairs(characters, [("abcdefghij", "x", "y")], max_length=20, max_prompt_length=3)
    assert texts(characters, found.rows[0].prompt_ids) == "hij"


def test_a_long_answer_loses_its_right_but_the_prompt_keeps_half(characters):
    found = encode_pairs(characters, [("abcdefghij", "x", "y" * 30)], max_length=10)
    assert texts(characters, found.rows[0].prompt_ids) == "fghij"
    assert texts(characters, found.rows[0].rejected_ids) == "yyyyy"
    assert texts(characters, found.rows[0].chosen_ids) == "x<eos>"
    assert (found.cut_answers, found.cut_answer_tokens) == (1, 26)
    assert "1 of 2 train answers was cut on the right" in pairs_sentence(found, "train")


def test_pairs_that_prefer_nothing_are_left_out_and_counted(characters):
    pairs = [("a", "same", "same"), ("a", " ", "x"), ("ab", "z" * 9 + "1", "z" * 9 + "2"), ("a", "x", "y")]
    found = encode_pairs(characters, pairs, max_length=8)
    assert (found.same, found.empty, found.places) == (2, 1, (3,))
    sentence = pairs_sentence(found, "test")
    assert "1 of 4 test pairs was left out: an answer is empty." in sentence
    assert "2 of 4 test pairs were left out: both answers are equal." in sentence


def test_chats_go_into_the_template_with_all_their_turns(characters):
    characters.chat_template = CHAT
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "1"}, {"role": "user", "content": "2"}]
    try:
        found = encode_pairs(characters, [(chat, "x", "y"), ("plain", "x", "y")], max_length=30)
    finally:
        characters.chat_template = None
    assert texts(characters, found.rows[0].prompt_ids) == "s:S;u:1;u:2;a:"
    assert texts(characters, found.rows[1].prompt_ids) == "plain"


def test_chats_without_a_template_and_lengths_out_of_range_are_refused(characters):
    with pytest.raises(ConfigurationError, match="1 of 1 prompts are chats, and the tokenizer has no chat template"):
        encode_pairs(characters, [([{"role": "user", "content": "1"}], "x", "y")], max_length=30)
    with pytest.raises(ConfigurationError, match="`max_prompt_length` must be >= 1 and < `max_length` = 30, got 30"):
        encode_pairs(characters, [("a", "x", "y")], max_length=30, max_prompt_length=30)
