"""Generated answers against one token at a time without batch or cache; draws, stops, and what stays as it was."""

import warnings

import numpy as np
import pytest
import torch
from causal_cases import VOCAB, causal_model
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.integrations.causal_lm.generation import Generated, generate, stop_ids

# What transformers 5.23 says of its own older names, which PEFT uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

STOP = 2
LENGTHS = (3, 9, 1, 5, 14, 5, 2)


class Words:
    """A tokenizer whose texts are its token numbers."""

    def __init__(self, pad: int | None = 0, stop: int | None = STOP):
        self.pad_token_id, self.eos_token_id = pad, stop

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return " ".join(str(token) for token in ids if token not in (self.eos_token_id, self.pad_token_id))


def prompts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (length,), generator=draw).tolist() for length in lengths]


@torch.no_grad()
def by_hand(model, prompt: list[int], stops: list[int], room: int) -> list[int]:
    """The most likely token, one after the other, from the whole text each time."""
    ids = list(prompt)
    for _ in range(room):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].tolist()
        ids.append(max(range(len(logits)), key=logits.__getitem__))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def llama():
    return causal_model("Llama")


def ids_of(answer: Generated) -> list[int]:
    return [int(word) for word in answer.text.split()]


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "OPT", "Gemma2"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_greedy_answers_are_those_of_one_token_at_a_time(kind, batch_size):
    model, prompts = causal_model(kind), prompts_of()
    free = [by_hand(model, prompt, [], 9) for prompt in prompts]
    # Stops that some answers meet in the middle, some at once, and some never.
    stops = sorted({STOP, free[0][3], free[2][0]})
    expected = [by_hand(model, prompt, stops, 9) for prompt in prompts]
    model.generation_config.eos_token_id = stops
    answers = generate(model, Words(), prompts, max_new_tokens=9, batch_size=batch_size)
    for found, ids in zip(answers, expected, strict=True):
        assert len(found) == 1
        assert ids_of(found[0]) == [token for token in ids if token not in (0, STOP)]
        assert found[0].tokens == len(ids)
        assert found[0].stopped == (ids[-1] in stops)
    if kind == "Llama":
        assert {row[0].stopped for row in answers} == {True, False}


def test_settings_of_the_checkpoint_do_not_change_greedy_answers(llama):
    model = causal_model("Llama")
    plain = generate(llama, Words(), prompts_of(), max_new_tokens=6, batch_size=4)
    changed = {
        "do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 7.0, "forced_eos_token_id": 9,
        "min_new_tokens": 5, "max_length": 4, "suppress_tokens": [ids_of(plain[0][0])[0]], "no_repeat_ngram_size": 1,
        "use_cache": False,
    }  # fmt: skip
    for name, value in changed.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, Words(), prompts_of(), max_new_tokens=6, batch_size=4) == plain
    assert model.generation_config.to_dict() == before


def test_without_a_padding_token_the_answers_are_the_same(llama):
    with_pad = generate(llama, Words(), prompts_of(), max_new_tokens=6, batch_size=4)
    assert generate(llama, Words(pad=None), prompts_of(), max_new_tokens=6, batch_size=4) == with_pad


def test_mode_gradients_and_generators_are_left_alone():
    model = causal_model("GPT2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    quiet = generate(model, Words(), prompts_of(), max_new_tokens=5, batch_size=4)
    model.train()
    model.transformer.h[0].eval()
    model.gradient_checkpointing_enable()
    torch.manual_seed(3)
    np.random.seed(3)
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    asked = {"max_new_tokens": 5, "batch_size": 4}
    assert generate(model, Words(), prompts_of(), **asked) == quiet
    generate(model, Words(), prompts_of(), votes=3, temperature=1.0, **asked)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert model.training
    assert model.transformer.h[1].training
    assert not any(module.training for module in model.transformer.h[0].modules())
    assert torch.is_grad_enabled()
    model(input_ids=torch.tensor([[4, 5, 6]]), labels=torch.tensor([[4, 5, 6]])).loss.backward()


def test_votes_are_seeded_and_differ(llama):
    asked = {"max_new_tokens": 6, "batch_size": 4, "votes": 5, "temperature": 1.5}
    first = generate(llama, Words(), prompts_of(), seed=1, **asked)
    torch.manual_seed(99)
    assert generate(llama, Words(), prompts_of(), seed=1, **asked) == first
    assert generate(llama, Words(), prompts_of(), seed=2, **asked) != first
    assert [len(row) for row in first] == [5] * len(LENGTHS)
    assert all(len({sample.text for sample in row}) > 1 for row in first)


def test_a_low_temperature_or_a_small_top_p_is_greedy(llama):
    greedy = generate(llama, Words(), prompts_of(), max_new_tokens=5, batch_size=4)
    for few in ({"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}):
        sampled = generate(llama, Words(), prompts_of(), max_new_tokens=5, batch_size=4, votes=2, **few)
        assert sampled == [row * 2 for row in greedy]


def test_draws_have_the_probabilities_of_all_tokens(llama):
    prompt, count, temperature = prompts_of()[4], 4000, 1.3
    drawn = generate(
        llama,
        Words(pad=None, stop=60),
        [prompt],
        max_new_tokens=1,
        batch_size=500,
        votes=count,
        temperature=temperature,
    )[0]
    with torch.no_grad():
        scores = llama(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature
    expected = torch.softmax(scores, -1)
    seen = torch.bincount(torch.tensor([ids_of(one)[0] for one in drawn if one.text]), minlength=VOCAB) / count
    kept = torch.arange(VOCAB) != 60
    # Five standard deviations of a share; without the 11 least likely tokens (top-k 50) it would still fit, so they are
    # asked for alone.
    assert ((seen - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-3)[kept].all()


def test_rare_tokens_are_drawn_too():
    model = causal_model("Llama")
    with torch.no_grad():
        # Nearly uniform, without ties: of equal scores none would be left out.
        model.lm_head.weight.mul_(1e-2)
    drawn = generate(model, Words(), [[5, 6]], max_new_tokens=1, batch_size=500, votes=1000, temperature=1.0, seed=4)[0]
    assert len({one.text for one in drawn}) > 55


def test_progress_counts_answers(llama):
    seen: list[tuple[int, int]] = []
    generate(
        llama, Words(), prompts_of(), max_new_tokens=2, batch_size=4, votes=2, temperature=1.0,
        on_batch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(4, 14), (8, 14), (12, 14), (14, 14)]
    assert generate(llama, Words(), [], max_new_tokens=2, batch_size=4) == []


def lora(model):
    torch.manual_seed(5)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, target_modules="all-linear")
    )
    return adapted.eval()


def test_adapters_speak_merged_or_not():
    adapted = lora(causal_model("Llama"))
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    expected = [by_hand(adapted, prompt, [STOP], 6) for prompt in prompts_of()]
    plain = [by_hand(causal_model("Llama"), prompt, [STOP], 6) for prompt in prompts_of()]
    for merge in (False, True):
        answers = generate(adapted, Words(), prompts_of(), max_new_tokens=6, batch_size=3, merge=merge)
        assert [ids_of(row[0]) for row in answers] == [[t for t in ids if t not in (0, STOP)] for ids in expected]
        exact = all(torch.equal(before[name], value) for name, value in adapted.state_dict().items())
        assert exact or merge
        assert all(torch.allclose(before[name], value, atol=1e-6) for name, value in adapted.state_dict().items())
    assert expected != plain


def test_stops_come_from_tokenizer_and_model():
    model = causal_model("Llama")
    model.generation_config.eos_token_id = [7, STOP]
    assert stop_ids(model, Words(stop=9)) == [2, 7, 9]
    assert stop_ids(lora(model), Words(stop=9)) == [2, 7, 9]
    model.generation_config.eos_token_id = 5
    assert stop_ids(model, Words(stop=None)) == [5]
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match=r"set `eos_token` in tokenizer_config\.json"):
        stop_ids(model, Words(stop=None))


def test_stops_that_are_given_take_their_place(llama):
    free = generate(llama, Words(), prompts_of(), max_new_tokens=6, batch_size=4)
    third = ids_of(free[0][0])[2]
    found = generate(llama, Words(), prompts_of(), max_new_tokens=6, batch_size=4, stop_token_ids=[third])[0][0]
    assert (found.tokens, found.stopped) == (3, True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"votes": 3}, r"`votes` is 3 and `temperature` 0, at which all 3 answers would be the same"),
        ({"top_p": 0.5}, r"`top_p` is 0.5 and `temperature` 0, at which nothing is drawn"),
        ({"top_p": 0.0, "temperature": 1.0}, r"`top_p` must be in \(0, 1\], got 0.0"),
        ({"temperature": -0.1}, r"`temperature` must be a number >= 0, got -0.1"),
        ({"temperature": float("nan")}, r"`temperature` must be a number >= 0, got nan"),
        ({"votes": 0}, r"`votes` must be >= 1, got 0"),
        ({"max_new_tokens": 0}, r"`max_new_tokens` must be >= 1, got 0"),
        ({"batch_size": 0}, r"`batch_size` must be >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused(llama, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        generate(llama, Words(), prompts_of(), **{"max_new_tokens": 4, "batch_size": 2, **settings})


def test_prompts_that_do_not_fit_are_refused():
    model = causal_model("GPT2")
    with pytest.raises(
        ModelError, match="reads at most 64 tokens, and a prompt of 60 with `max_new_tokens` 5 is longer"
    ):
        generate(model, Words(), [[5] * 60], max_new_tokens=5, batch_size=1)
    assert generate(model, Words(), [[5] * 60], max_new_tokens=4, batch_size=1)
    with pytest.raises(DataError, match="Prompt 1 has no token"):
        generate(model, Words(), [[5], []], max_new_tokens=5, batch_size=1)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="adapter of virtual tokens"):
        generate(tuned, Words(), [[5]], max_new_tokens=5, batch_size=1)
