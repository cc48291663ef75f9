"""Log-probabilities of options and answers against rows run alone through the plain model, in double precision."""

import math

import pytest
import torch
from causal_cases import VOCAB, causal_model

from lossmith.engines import LinearLogits
from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.integrations.causal_lm.likelihood import completion_nll, option_logps


class Padded:
    pad_token_id, eos_token_id = 0, 2


class Unpadded:
    pad_token_id, eos_token_id = None, 2


@torch.no_grad()
def by_hand(model, prompt: list[int], option: list[int]) -> float:
    """Sum over the option's tokens of score minus log-sum-exp, each from the plain logits of one row alone."""
    logits = model(input_ids=torch.tensor([[*prompt, *option]])).logits[0].double().tolist()
    total = 0.0
    for place, token in enumerate(option, start=len(prompt)):
        scores = logits[place - 1]
        total += scores[token] - math.log(sum(math.exp(score) for score in scores))
    return total


def drawn(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=draw).tolist() for length in lengths]


PROMPTS = drawn([4, 11, 1, 7, 6])
OPTIONS = [
    drawn([1, 1, 1, 1], 1),
    drawn([3, 1, 5], 2),
    drawn([2, 2], 3),
    [[9], [9, 9], [9, 8]],
    drawn([1, 1, 6], 4),
]


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "OPT", "Gemma2"])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_options_have_the_sum_of_their_tokens_log_probabilities(kind, batch_size):
    model = causal_model(kind)
    found = option_logps(model, Padded(), PROMPTS, OPTIONS, batch_size=batch_size)
    for prompt, options, values in zip(PROMPTS, OPTIONS, found, strict=True):
        assert values == pytest.approx([by_hand(model, prompt, option) for option in options], rel=2e-6, abs=2e-5)
    unpadded = option_logps(model, Unpadded(), PROMPTS, OPTIONS, batch_size=batch_size)
    for values, same in zip(found, unpadded, strict=True):
        assert same == pytest.approx(values)


def test_options_of_one_token_share_one_pass_over_their_prompt():
    model, rows = causal_model("Llama"), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    seen: list[tuple[int, int]] = []
    option_logps(
        model, Padded(), PROMPTS[:2], [OPTIONS[0], OPTIONS[0]], batch_size=8, on_batch=lambda *at: seen.append(at)
    )
    assert rows == [(2, 11)]
    assert seen == [(2, 2)]
    rows.clear()
    seen.clear()
    option_logps(model, Padded(), PROMPTS, OPTIONS, batch_size=4, on_batch=lambda *at: seen.append(at))
    assert sum(count for count, _ in rows) == 4 + 7
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_no_logits_of_all_positions_are_built(monkeypatch):
    model, built, results = causal_model("Llama"), [], []
    dense = LinearLogits.dense
    monkeypatch.setattr(LinearLogits, "dense", lambda logits: (built.append(tuple(logits.shape)), dense(logits))[1])
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, result: results.append(tuple(result.shape)))
    option_logps(model, Padded(), PROMPTS, [OPTIONS[0]] * 5, batch_size=8)
    assert built == results == [(5, VOCAB)]
    completion_nll(model, Padded(), [(row, 2) for row in drawn([9, 6])], batch_size=8)
    assert (len(built), results[1:]) == (1, [(7 + 4,)])


def test_answers_have_the_nats_of_their_tokens():
    model = causal_model("GPT2", resid_pdrop=0.5)
    rows = list(zip(drawn([9, 3, 12, 5, 5]), [4, 1, 11, 5, 0], strict=True))
    expected = [-by_hand(model, ids[: max(start, 1)], ids[max(start, 1) :]) for ids, start in rows]
    model.train()
    state = torch.random.get_rng_state()
    for batch_size in (1, 2, 9):
        nats, tokens = completion_nll(model, Padded(), rows, batch_size=batch_size)
        assert tokens == 5 + 2 + 1 + 0 + 4
        assert nats == pytest.approx(sum(expected), rel=1e-6)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert completion_nll(model, Padded(), [], batch_size=2) == (0.0, 0)
    assert completion_nll(model, Padded(), [([5, 6], 2)], batch_size=2) == (0.0, 0)


def test_what_cannot_be_scored_is_refused():
    model = causal_model("GPT2")
    with pytest.raises(DataError, match="one list of options per prompt, got 2 and 1"):
        option_logps(model, Padded(), [[5], [6]], [[[7]]], batch_size=1)
    with pytest.raises(DataError, match="An option of prompt 1 has no token"):
        option_logps(model, Padded(), [[5], [6]], [[[7]], [[7], []]], batch_size=1)
    with pytest.raises(DataError, match="Row 0 has no token"):
        option_logps(model, Padded(), [[]], [[[7]]], batch_size=1)
    with pytest.raises(ConfigurationError, match="`batch_size` must be >= 1, got 0"):
        option_logps(model, Padded(), [[5]], [[[7]]], batch_size=0)
    with pytest.raises(ModelError, match="reads at most 64 tokens, got 66"):
        completion_nll(model, Padded(), [([5] * 66, 3)], batch_size=1)
