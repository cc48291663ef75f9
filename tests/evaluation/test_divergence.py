"""Divergences of sampled answers against every answer of a tiny model, enumerated."""

import math
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.evaluation.divergence import divergence, kl_per_token, released_kl, sampled_kl, sequence_kl
from lossmith.evaluation.sampling import sample_answers
from lossmith.integrations.causal_lm.divergence import RowDivergence, row_divergences

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))
from causal_cases import causal_model

# What transformers 5.23 says of its own older names, which PEFT uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

VOCAB, STOP, LONGEST = 5, 2, 3
PROMPT = [3, 1]


class Words:
    """A tokenizer whose texts are its token numbers."""

    pad_token_id, eos_token_id = 0, STOP

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        return " ".join(str(token) for token in ids if token != STOP)


@pytest.fixture(scope="module")
def models():
    return causal_model("Llama", seed=1, vocab_size=VOCAB), causal_model("Llama", seed=2, vocab_size=VOCAB)


def every_answer() -> list[list[int]]:
    """All answers: they end with the stop token, or at the most tokens."""
    found = []
    for length in range(1, LONGEST + 1):
        for ids in product(range(VOCAB), repeat=length):
            inner = ids[:-1]
            if STOP not in inner and (ids[-1] == STOP or length == LONGEST):
                found.append(list(ids))
    return found


def next_probabilities(model, ids: list[int]) -> list[float]:
    return _next(model, tuple(ids))


@cache
@torch.no_grad()
def _next(model, ids: tuple[int, ...]) -> list[float]:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().tolist()
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def probability(model, answer: list[int]) -> float:
    whole = 1.0
    for place, token in enumerate(answer):
        whole *= next_probabilities(model, PROMPT + answer[:place])[token]
    return whole


def kl_of(left: list[float], right: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(left, right, strict=True))


def compared(models, answers, batch_size=7, **more):
    rows = [(PROMPT + answer, len(PROMPT)) for answer in answers]
    return row_divergences(*models, rows, padding=0, batch_size=batch_size, **more)


def test_both_estimators_have_the_exact_divergence_as_their_expectation(models):
    answers = every_answer()
    chances = [probability(models[0], answer) for answer in answers]
    assert sum(chances) == pytest.approx(1.0, abs=1e-6)
    others = [probability(models[1], answer) for answer in answers]
    exact = sum(p * math.log(p / q) for p, q in zip(chances, others, strict=True))
    assert exact > 0.5
    rows = compared(models, answers)
    for estimator in (sequence_kl, sampled_kl):
        terms = [estimator([row]) for row in rows]
        assert sum(p * term for p, term in zip(chances, terms, strict=True)) == pytest.approx(exact, rel=1e-5)
    # The one that decides is never negative, and closer to the truth.
    spread = {
        estimator: sum(p * (estimator([row]) - exact) ** 2 for p, row in zip(chances, rows, strict=True))
        for estimator in (sequence_kl, sampled_kl)
    }
    assert spread[sequence_kl] < 0.5 * spread[sampled_kl]
    assert min(sequence_kl([row]) for row in rows) >= 0
    assert min(sampled_kl([row]) for row in rows) < 0
    # The other direction is another number, so that a swap would be seen.
    assert abs(sum(q * math.log(q / p) for p, q in zip(chances, others, strict=True)) - exact) > 0.05


def test_sampled_answers_estimate_the_exact_divergence(models):
    answers = every_answer()
    exact = sum(
        p * math.log(p / probability(models[1], answer)) for answer in answers if (p := probability(models[0], answer))
    )
    drawn = sample_answers(
        models[0], Words(), [PROMPT], seed=4, max_new_tokens=LONGEST, batch_size=500, per_prompt=2000
    )[0]
    assert {answer.ids for answer in drawn} <= {tuple(answer) for answer in answers}
    rows = compared(models, [list(answer.ids) for answer in drawn], batch_size=500)
    assert sequence_kl(rows) == pytest.approx(exact, rel=0.05)
    assert sampled_kl(rows) == pytest.approx(exact, rel=0.15)


def test_numbers_of_a_row_are_those_of_one_token_at_a_time(models):
    answer = [4, 0, STOP]
    (row,) = compared(models, [answer])
    ids = PROMPT + answer
    behind = [tuple(next_probabilities(model, ids[: place + 1]) for model in models) for place in range(len(ids))]
    for place, (token, logp, ref_logp, kl) in enumerate(zip(answer, row.logps, row.ref_logps, row.kl, strict=True)):
        own, other = behind[len(PROMPT) - 1 + place]
        assert logp == pytest.approx(math.log(own[token]), abs=1e-5)
        assert ref_logp == pytest.approx(math.log(other[token]), abs=1e-5)
        assert kl == pytest.approx(kl_of(own, other), abs=1e-5)
    assert row.reverse_kl == pytest.approx([kl_of(other, own) for own, other in behind], abs=1e-5)
    # As the released code: every position whose token is no end of sequence, the prompt's too, of both directions the
    # reference's.
    others = [kl_of(other, own) for token, (own, other) in zip(ids, behind, strict=True) if token != STOP]
    assert released_kl([row], [ids], left_out={STOP}) == pytest.approx(sum(others) / 4, abs=1e-5)


def test_means_over_rows_of_different_lengths():
    long = RowDivergence(
        logps=[-1.0, -1.0, -1.0], ref_logps=[-2.0, -2.0, -2.0], kl=[0.6, 0.0, 0.3], reverse_kl=[1.0] * 5
    )
    short = RowDivergence(logps=[-1.0], ref_logps=[-0.5], kl=[0.1], reverse_kl=[3.0, 3.0, 3.0])
    found = divergence([long, short], [[7, 8, 1, 1, 9], [7, 8, 9]], left_out={9})
    assert found.kl == pytest.approx(0.5)
    assert found.kl_sampled == pytest.approx(1.25)
    assert found.kl_per_token == pytest.approx(0.25)
    assert found.kl_released == pytest.approx((4 * 1.0 + 2 * 3.0) / 6)
    assert found.per_answer == pytest.approx((0.9, 0.1))
    assert kl_per_token([short]) == pytest.approx(0.1)


def test_batches_and_padding_do_not_matter(models):
    answers = [[1, 4, 3], [STOP], [0, STOP], [4, 4, 4]]
    one, all_ = compared(models, answers, batch_size=1), compared(models, answers, batch_size=9)
    for left, right in zip(one, all_, strict=True):
        assert left.kl == pytest.approx(right.kl, abs=1e-5)
        assert left.reverse_kl == pytest.approx(right.reverse_kl, abs=1e-5)


def test_chunks_do_not_matter(models, monkeypatch):
    whole = compared(models, [[1, 4, 3], [0, STOP]])
    monkeypatch.setattr("lossmith.integrations.causal_lm.divergence.CHUNK_ELEMENTS", 2 * VOCAB)
    assert [row.kl for row in compared(models, [[1, 4, 3], [0, STOP]])] == [pytest.approx(row.kl) for row in whole]


def test_without_a_reference_the_adapters_are_switched_off():
    base = causal_model("Llama", seed=1, vocab_size=VOCAB)
    twin = causal_model("Llama", seed=1, vocab_size=VOCAB)
    torch.manual_seed(0)
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    (row,) = compared((policy, None), [[1, 4, 3]])
    assert max(row.kl) == pytest.approx(0.0, abs=1e-6)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    policy.train()
    (row,), (other,) = compared((policy, None), [[1, 4, 3]]), compared((policy, twin), [[1, 4, 3]])
    assert min(row.kl) > 1e-3
    assert row.kl == pytest.approx(other.kl, abs=1e-5)
    assert row.ref_logps == pytest.approx(other.ref_logps, abs=1e-5)
    assert policy.training
    assert not policy.base_model.model.lm_head.disable_adapters


def test_bad_input_is_one_sentence(models):
    with pytest.raises(DataError, match="must begin within"):
        row_divergences(*models, [([1, 2], 0)], padding=0, batch_size=1)
    with pytest.raises(ConfigurationError, match="adapters"):
        row_divergences(models[0], None, [([1, 2], 1)], padding=0, batch_size=1)
    with pytest.raises(ModelError, match="5 and 6"):
        row_divergences(models[0], causal_model("Llama", vocab_size=6), [([1, 2], 1)], padding=0, batch_size=1)
    with pytest.raises(ModelError, match="at most"):
        row_divergences(*models, [([1] * 3000, 1)], padding=0, batch_size=1)
    bad = RowDivergence(logps=[float("nan")], ref_logps=[0.0], kl=[0.0], reverse_kl=[0.0, 0.0])
    with pytest.raises(ModelError, match="diverged"):
        divergence([bad], [[1, 2]])
