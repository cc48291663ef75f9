"""Prompts and targets as token rows: the boundary, what ends an answer, what a maximum length costs."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.integrations.causal_lm.encoding import (
    EncodedRow,
    EncodedSet,
    PromptFormat,
    cut_sentence,
    encode,
    encode_released,
)
from reference_inputs import tokenizer as word_tokenizer

BOS, EOS = 56, 58

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|s|>system\nHelp.<|e|>\n{% endif %}"
    "{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
"""Brings its own system prompt, as SmolLM2's does."""

GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|s|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|e|>\n{% endfor %}{% if add_generation_prompt %}<|s|>model\n{% endif %}"
)

THINKING = (
    "{% for m in messages %}<|s|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|e|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
"""Puts an empty thought before the last answer, as Qwen3's does."""

DEAF = (
    "{% for m in messages if m['role'] != 'system' %}{{ '[I]' + m['content'] + '[/I]' if m['role'] == 'user' else "
    "m['content'] }}{% endfor %}"
)
"""Shows no system message, has no generation prompt and puts no token behind an answer."""

BACKWARDS = "{% for m in messages | reverse %}{{ m['content'] }}<|e|>{% endfor %}"


def letters(template: str | None = None, *, eos: str | None = "<eos>", **special: str) -> Any:
    """A token per character, so that ids decode to exactly what was encoded."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    backend = Tokenizer(models.BPE({character: place for place, character in enumerate(characters)}, []))
    backend.decoder = decoders.Fuse()
    named: dict[str, Any] = {"additional_special_tokens": ["<|s|>", "<|e|>"], **special}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": eos} if eos else {}), **named)
    made.chat_template = template
    return made


def words(frame: str = "$A") -> Any:
    """A token per word, `w58` the end of a sequence; the frame is put around what is encoded with special tokens."""
    # Special tokens are found within words too: none of these begins another word of the tests.
    made = word_tokenizer(template=None, pad_token="w57", eos_token="w58", bos_token="w56")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("w56", BOS), ("w58", EOS)]
    )
    return made


def framing() -> Any:
    """BOS before and EOS behind whatever is encoded with special tokens."""
    return words("w56 $A w58")


def spaced() -> Any:
    """Spaces as `▁`, one put before every text, and a piece that joins a space with what follows it."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "A", ":", "#", "7", "▁#", "▁#7", "▁A"]
    backend = Tokenizer(models.Unigram([(piece, -1.0 - len(piece) % 2) for piece in pieces], 0))
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def text(form: PromptFormat, ids: list[int]) -> str:
    return form.tokenizer.decode(ids)


# Plain


def test_a_plain_prompt_is_the_prompt_and_a_target_ends_with_eos() -> None:
    form = PromptFormat(words())
    assert form.prompt_ids("w5 w6", "w9") == [5, 6]
    assert form.target_ids("w7 w8") == [7, 8, EOS]
    assert form.stop_token_id == EOS


def test_a_prompt_keeps_bos_and_never_ends_with_an_eos_that_the_tokenizer_appends() -> None:
    form = PromptFormat(framing())
    assert form.tokenizer("w5 w6").input_ids == [BOS, 5, 6, EOS]
    assert form.prompt_ids("w5 w6", "") == [BOS, 5, 6]
    assert form.target_ids("w7") == [7, EOS]


def test_no_token_spans_the_boundary_of_a_tokenizer_that_joins_spaces() -> None:
    tokenizer = spaced()
    form = PromptFormat(tokenizer)
    prompt, target = form.prompt_ids("A: ", ""), form.target_ids("#7")
    joint = tokenizer("A: #7").input_ids
    assert tokenizer.convert_ids_to_tokens(joint) == ["<s>", "▁A", ":", "▁#7"]
    assert tokenizer.convert_ids_to_tokens(prompt) == ["<s>", "▁A", ":", "▁"]
    assert tokenizer.convert_ids_to_tokens(target) == ["▁#7", "</s>"]
    assert tokenizer.decode(target, skip_special_tokens=True) == "#7"


def test_plain_exemplars_are_blocks_with_empty_lines_between() -> None:
    form = PromptFormat(letters(), exemplars=[("Q: a\nA: ", "a", "1"), ("Q: b\nA: ", "b", "22")])
    assert text(form, form.prompt_ids("Q: c\nA: ", "c")) == "Q: a\nA: 1\n\nQ: b\nA: 22\n\nQ: c\nA: "


# Chat


@pytest.mark.parametrize(
    ("template", "instruction", "prompt", "target"),
    [
        (CHATML, "", "<|s|>system\nHelp.<|e|>\n<|s|>user\nWhy?<|e|>\n<|s|>assistant\n", "42!<|e|>"),
        (CHATML, "Be brief.", "<|s|>system\nBe brief.<|e|>\n<|s|>user\nWhy?<|e|>\n<|s|>assistant\n", "42!<|e|>"),
        (GEMMA, "Be brief.", "<bos><|s|>user\nBe brief.\n\nWhy?<|e|>\n<|s|>model\n", "42!<|e|>"),
        (THINKING, "", "<|s|>user\nWhy?<|e|>\n<|s|>assistant\n<think>\n\n</think>\n\n", "42!<|e|>"),
        (DEAF, "Be brief.", "[I]Be brief.\n\nWhy?[/I]", "42!<eos>"),
    ],
)
def test_a_chat_prompt_and_its_answer_are_what_the_template_renders(
    template: str, instruction: str, prompt: str, target: str
) -> None:
    form = PromptFormat(letters(template, bos_token="<bos>"), chat=True, instruction=instruction)
    assert text(form, form.prompt_ids("not read", "Why?")) == prompt
    assert text(form, form.target_ids("42!")) == target
    assert form.stop_token_id == form.target_ids("42!")[-1]
    assert form.stop_token_id == form.tokenizer.convert_tokens_to_ids("<eos>" if template is DEAF else "<|e|>")


def test_chat_exemplars_are_earlier_turns_and_the_instruction_stands_before_them() -> None:
    solved = [("Q: a\nA: ", "a", "1")]
    form = PromptFormat(letters(CHATML), chat=True, instruction="Add.", exemplars=solved)
    turns = "<|s|>user\na<|e|>\n<|s|>assistant\n1<|e|>\n<|s|>user\nc<|e|>\n<|s|>assistant\n"
    assert text(form, form.prompt_ids("", "c")) == "<|s|>system\nAdd.<|e|>\n" + turns
    form = PromptFormat(letters(GEMMA, bos_token="<bos>"), chat=True, instruction="Add.", exemplars=solved)
    turns = "<|s|>user\nAdd.\n\na<|e|>\n<|s|>model\n1<|e|>\n<|s|>user\nc<|e|>\n<|s|>model\n"
    assert text(form, form.prompt_ids("", "c")) == "<bos>" + turns


def test_what_stands_between_an_answer_and_its_end_token_is_trained_too() -> None:
    spaced_end = CHATML.replace("{{ m['content'] }}<|e|>", "{{ m['content'] }} <|e|>")
    form = PromptFormat(letters(spaced_end), chat=True)
    assert text(form, form.target_ids("5")) == "5 <|e|>"


# What cannot be encoded


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no end-of-sequence token, .* set `eos_token` in its tokenizer_config.json"):
        PromptFormat(letters(eos=None))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode_released(letters(eos=None), [("a", "", "b")], 8)


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`chat=True` needs a tokenizer with a chat template"):
        PromptFormat(letters(), chat=True)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (BACKWARDS, "does not put an answer behind the prompt that it renders"),
        (CHATML.replace("<|s|>assistant", "<|s|>bot"), "does not put an answer behind"),
        (CHATML.replace("m['content']", "'-'"), "does not put an answer behind"),
        ("{{ raise_exception('No.') }}", r"refuses the prompt: No\.\."),
    ],
)
def test_a_template_that_cannot_be_trained_behind_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        PromptFormat(letters(template), chat=True)


def test_the_row_whose_answer_leaves_no_room_is_named() -> None:
    form = PromptFormat(words())
    rows = [("w5", "", "w6"), ("w5 w5", "", "w6 w7 w8")]
    expected = (
        "Row 'second' has an answer of 4 tokens, its stop token included, which leaves its prompt no room within "
        "`max_length=4`: raise `max_length`, or remove the row."
    )
    with pytest.raises(DataError) as found:
        encode(form, rows, 4, ["first", "second"])
    assert str(found.value) == expected
    with pytest.raises(DataError, match="Row 1 has an answer"):
        encode(form, rows, 4)
    assert encode(form, rows, 5).rows[1] == EncodedRow([5, 6, 7, 8, EOS], 1)


def test_a_prompt_of_no_tokens_and_a_length_of_one_are_refused() -> None:
    form = PromptFormat(words())
    with pytest.raises(DataError, match="Row 'a' has a prompt of no tokens"):
        encode(form, [("  ", "", "w6")], 8, ["a"])
    with pytest.raises(ConfigurationError, match="`max_length` must be >= 2 tokens, got 1"):
        encode(form, [("w5", "", "w6")], 1)
    with pytest.raises(ConfigurationError, match="room for at least 1 token, got a limit of 0"):
        form.prompt_cut([5, 6], 0)


# Lengths


def test_only_prompts_are_cut_on_their_left_and_it_is_counted() -> None:
    form = PromptFormat(words())
    rows = [("w10 w11 w12 w13", "", "w20 w21"), ("w10 w11", "", "w20 w21"), ("w10 w11 w12", "", "w22")]
    found = encode(form, rows, 5)
    expected = (
        EncodedRow([12, 13, 20, 21, EOS], 2),
        EncodedRow([10, 11, 20, 21, EOS], 2),
        EncodedRow([10, 11, 12, 22, EOS], 3),
    )
    assert found == EncodedSet(expected, cut_rows=1, cut_tokens=2, max_length=5)
    assert encode(form, rows, 4).cut_rows == 3
    assert encode(form, rows, 4).cut_tokens == 3 + 1 + 1
    assert found.examples[0] == {"input_ids": [12, 13, 20, 21, EOS], "answer_start": 2}
    assert encode(form, [], 4) == EncodedSet((), 0, 0, 4)


def test_bos_stays_in_front_of_a_cut_prompt() -> None:
    form = PromptFormat(framing())
    found = encode(form, [("w10 w11 w12 w13", "", "w20")], 5)
    assert found == EncodedSet((EncodedRow([BOS, 12, 13, 20, EOS], 3),), cut_rows=1, cut_tokens=2, max_length=5)
    assert encode(form, [("w10 w11", "", "w20")], 3).rows == (EncodedRow([BOS, 20, EOS], 1),)


def test_a_prompt_for_generation_is_cut_like_one_for_training() -> None:
    form = PromptFormat(framing())
    prompt = form.prompt_ids("w10 w11 w12 w13", "")
    assert form.prompt_cut(prompt, 3) == ([BOS, 12, 13], 2)
    assert form.prompt_cut(prompt, 1) == ([BOS], 4)
    assert form.prompt_cut(prompt, 5) == (prompt, 0)
    row = encode(form, [("w10 w11 w12 w13", "", "w20")], 5).rows[0]
    assert row.input_ids[: row.answer_start] == form.prompt_cut(prompt, 3)[0]


# As released


def test_released_rows_are_one_text_and_their_answer_is_measured_alone() -> None:
    tokenizer = spaced()
    found = encode_released(tokenizer, [("A: ", "", "#7")], 16)
    # `▁#7` holds the space of the prompt; alone, target and EOS are <s> ▁#7 </s>, three tokens with their own BOS.
    ids = tokenizer.convert_tokens_to_ids(["<s>", "▁A", ":", "▁#7", "</s>"])
    assert found == EncodedSet((EncodedRow(ids, 2),), 0, 0, 16)


def test_released_rows_lose_their_left_behind_bos_and_those_without_a_prompt_are_left_out() -> None:
    tokenizer = words("w56 $A")
    rows = [("w10 w11 w12 ", "", "w20"), ("w10 ", "", "w20 w21 w22"), ("w10 ", "", "w20 w21")]
    found = encode_released(tokenizer, rows, 5)
    expected = EncodedRow([BOS, 11, 12, 20, EOS], 2), EncodedRow([BOS, 10, 20, 21, EOS], 1)
    assert found == EncodedSet(expected, cut_rows=1, cut_tokens=1, max_length=5, dropped_rows=1)
    assert encode_released(tokenizer, rows, 4).dropped_rows == 2


def test_joint_prompts_leave_their_blank_to_the_answer() -> None:
    apart, joint = PromptFormat(spaced()), PromptFormat(spaced(), joint=True)
    pieces = joint.tokenizer.convert_ids_to_tokens
    assert pieces(apart.prompt_ids("A: ", ""))[-1] == "▁"
    assert pieces(joint.prompt_ids("A: ", ""))[-1] == ":"
    assert pieces(joint.option_ids("7\nA: ", "A")) == ["▁A"]
    assert pieces(joint.option_ids("A: ", "#7"))[0].startswith("▁#")
    assert apart.option_ids("A: ", "A") == apart.target_ids("A")[:-1]


# What is said


def test_the_sentence_about_cuts_counts_all_rows_of_the_split() -> None:
    row = EncodedRow([5, 6], 1)
    assert cut_sentence(EncodedSet((row,) * 9, 0, 0, 8), "test") is None
    one = "1 of 10 test rows was cut on the left to 8 tokens (1 token of questions lost), which concerns their NLL."
    assert cut_sentence(EncodedSet((row,) * 10, 1, 1, 8), "test") == one
    both = (
        "2 of 1,003 train rows were cut on the left to 1,024 tokens (1,200 tokens of questions lost). 3 of 1,003 train "
        "rows were left out: an answer alone fills 1,024 tokens."
    )
    assert cut_sentence(EncodedSet((row,) * 1000, 2, 1200, 1024, 3), "train") == both
