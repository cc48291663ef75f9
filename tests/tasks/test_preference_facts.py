"""Lengths by hand, and rows that repeat or contradict: counted, in the split where they are."""

import pytest

from lossmith.errors import DataError
from lossmith.tasks import Message, Pair, PreferenceTask, Rated, UnpairedTask, preference_facts, unpair
from lossmith.tasks.preference_facts import PARTS, pair_lengths, rated_warnings, task_warnings


def pair(prompt, chosen, rejected, **scores):
    return Pair(id=prompt, prompt=prompt, chosen=chosen, rejected=rejected, **scores)


TEST = (pair("z", "one", "two"),)


def test_lengths_are_those_of_a_hand_count():
    train = (pair("a", "one two three", "four"), pair("b", "a b", "abc"), pair("c", "x", "a  b c"))
    (first, last) = preference_facts(PreferenceTask(name="t", train=train, test=TEST)).rows
    assert (first.split, first.pairs, last.split, last.pairs) == ("train", 3, "test", 1)
    assert (first.chosen_words, first.rejected_words) == ((3 + 2 + 1) / 3, (1 + 1 + 3) / 3)
    assert (first.chosen_characters, first.rejected_characters) == ((13 + 3 + 1) / 3, (4 + 3 + 6) / 3)
    assert (first.chosen_longer, first.same_length) == (1 / 3, 1 / 3)
    assert (first.chosen_tokens, first.rejected_tokens) == (None, None)


def test_the_spread_of_lengths_and_repeats_are_those_of_a_hand_count():
    train = (*(pair("q" * n, "c" * (10 * n), "r" * (n * n)) for n in range(1, 5)), pair("Q", "c" * 10, "r"))
    (first, last) = pair_lengths(PreferenceTask(name="t", train=train, test=TEST))
    # Prompts of 1 1 2 3 4 characters, chosen of ten times as many, rejected of 1 1 4 9 16.
    assert (first.medians, last.medians) == (
        {"prompt": 2, "chosen": 20, "rejected": 4},
        dict.fromkeys(PARTS, 3) | {"prompt": 1},
    )
    assert first.highs == pytest.approx({"prompt": 3.8, "chosen": 38, "rejected": 14.6})
    assert (first.repeated, last.repeated) == (1, 0)


def test_tokens_are_the_tokenizers_without_special_ones():
    class Letters:
        def encode(self, text, *, add_special_tokens):
            return [0] * (len(text) + 2 * add_special_tokens)

    row = preference_facts(
        PreferenceTask(name="t", train=(pair("a", "four", "x"),), test=TEST), tokenizer=Letters()
    ).rows
    assert (row[0].chosen_tokens, row[0].rejected_tokens) == (4, 1)


def test_sentences_say_which_is_longer():
    train = (pair("a", "longer", "x"), pair("b", "xy", "ab"), pair("c", "xyz", "abcd"), pair("d", "yes", "n"))
    facts = preference_facts(PreferenceTask(name="t", train=train, test=TEST))
    assert facts.sentences == (
        "The chosen answer is longer in 50% of the train pairs, as long in 25% (3.5 against 2.0 characters on "
        "average).",
        "The chosen answer is longer in 0% of the test pairs, as long in 100% (3.0 against 3.0 characters on average).",
    )


def test_answers_of_few_kinds_are_listed():
    train = tuple(pair(f"Q{n}", "Yes" if n % 3 else "No", "No" if n % 3 else "Yes") for n in range(6))
    facts = preference_facts(PreferenceTask(name="t", train=train, test=(pair("z", "No", "Yes"),)))
    assert facts.sentences[-1] == "All answers are one of 2: 'No', 'Yes'."


def test_repeats_and_contradictions_are_counted_where_they_are():
    splits = {
        "train": (
            pair("Ask  me", "a", "b"),
            pair("ask me ", "a", "b"),  # repeats the first: prompts count as the same
            pair("ask me", "b", "a"),  # contradicts it
            pair("ask me", "a", "B"),  # another answer
            pair("other", "b", "a"),
        ),
        "validation": (pair("other", "x", "y"),),
        "test": (pair("ASK ME", "q", "r"), pair("OTHER", "q", "r"), pair("new", "q", "r")),
    }
    assert task_warnings(splits) == (
        "1 of 5 train pairs repeat prompt and answers of another.",
        "1 of 5 train pairs contradict another: the same two answers, preferred otherwise.",
        "2 of 3 test pairs have a prompt of train.",
        "1 of 3 test pairs have a prompt of validation.",
    )


def test_a_prompt_that_all_pairs_share_is_suspected():
    # The released training on TL;DR puts the text "example['prompt']" in place of every post.
    train = tuple(pair("example['prompt']\n\nTL;DR:", f"a{n}", f"b{n}") for n in range(4))
    assert task_warnings({"train": train, "test": TEST}) == ("All 4 train pairs have the same prompt.",)


def test_chats_are_told_apart_by_all_their_turns():
    def chat(first, last):
        turns = (Message("user", first), Message("assistant", "Yes?"), Message("user", last))
        return Pair(id=first, prompt=turns, chosen="a", rejected="b")

    assert task_warnings({"train": (chat("a", "c"), chat("b", "c")), "test": (chat("c", "c"),)}) == ()
    assert task_warnings({"train": (chat("a", "c"), chat("b", "c")), "test": (chat("b", "C "),)}) == (
        "1 of 1 test pairs have a prompt of train.",
    )


def test_unpaired_rows_that_are_empty_or_both_are_counted():
    def rated(prompt, completion, label):
        return Rated(id=prompt, prompt=prompt, completion=completion, label=label)

    train = (rated("a", "x", True), rated("A", "x", False), rated("b", " ", False))
    assert rated_warnings({"train": train, "test": (rated("B", "y", True),)}) == (
        "1 of 3 train rows have an empty answer.",
        "1 answers of train are said to be good and bad.",
        "1 of 1 test rows have a prompt of train.",
    )


def test_fingerprints_follow_rows_and_nothing_else():
    train, other = (pair("a", "x", "y"), pair("b", "x", "y")), (pair("a", "x", "y"), pair("b", "y", "x"))
    one = PreferenceTask(name="t", train=train, test=TEST)
    assert one.fingerprint == PreferenceTask(name="u", train=train, test=TEST, source="s", warnings=("w",)).fingerprint
    assert one.fingerprint != PreferenceTask(name="t", train=other, test=TEST).fingerprint
    assert one.fingerprint != PreferenceTask(name="t", train=train[::-1], test=TEST).fingerprint
    assert one.fingerprint != PreferenceTask(name="t", train=train, validation=TEST, test=TEST).fingerprint
    assert one.fingerprint != PreferenceTask(name="t", train=train[:1], test=(*train[1:], *TEST)).fingerprint
    unpaired = UnpairedTask(name="t", train=unpair(train), test=unpair(TEST))
    assert unpaired.fingerprint == UnpairedTask(name="u", train=unpair(train), test=unpair(TEST)).fingerprint
    assert unpaired.fingerprint != UnpairedTask(name="t", train=unpair(other), test=unpair(TEST)).fingerprint


def test_splits_without_rows_are_refused():
    with pytest.raises(DataError, match="Task 't' has no pair in `test`: give it at least one"):
        PreferenceTask(name="t", train=TEST)
    with pytest.raises(DataError, match="Task 't' has no row in `train`: give it at least one"):
        UnpairedTask(name="t", train=(), test=unpair(TEST))
