"""What a policy prefers: log-probabilities beside dense logits, metrics by hand, histograms of margins."""

import math
import random

import numpy as np
import pytest
import torch

from lossmith.evaluation.answer_logps import answer_logps
from lossmith.evaluation.preferences import (
    PairLogps,
    margin_histogram,
    preference_metrics,
    score_pairs,
    stored_scores,
)
from lossmith.integrations.preference_rows import PairRow
from lossmith.integrations.reference_cache import StaleReferenceError
from reference_inputs import llama, tokenizer


def rows(count: int = 7) -> list[PairRow]:
    draw = random.Random(5)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(1, 50) for _ in range(draw.randint(low, high))]

    return [PairRow(ids(2, 5), ids(1, 6), ids(1, 6)) for _ in range(count)]


def by_hand(model, prompt: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    logs = logits - logits.logsumexp(-1, keepdim=True)
    return sum(logs[len(prompt) + place - 1, token].item() for place, token in enumerate(answer))


def test_log_probabilities_are_those_of_dense_logits_row_by_row_in_the_order_given():
    model, pairs = llama().eval(), rows()
    found = score_pairs(model, pairs, pad_token_id=0, batch_size=4)
    for place, row in enumerate(pairs):
        assert found.chosen[place] == pytest.approx(by_hand(model, row.prompt_ids, row.chosen_ids), abs=1e-4)
        assert found.rejected[place] == pytest.approx(by_hand(model, row.prompt_ids, row.rejected_ids), abs=1e-4)
    assert found.chosen_lengths.tolist() == [len(row.chosen_ids) for row in pairs]
    single = score_pairs(model, pairs, pad_token_id=0, batch_size=1)
    assert np.allclose(single.rejected, found.rejected, atol=1e-4)


def test_stored_log_probabilities_are_computed_once_and_belong_to_their_rows(tmp_path, monkeypatch):
    model, pairs = llama().eval(), rows()
    words = tokenizer(template=None, pad_token="w57", eos_token="w58")
    first = stored_scores(model, words, pairs, batch_size=4, name="test", folder=tmp_path)
    assert np.allclose(first.chosen, score_pairs(model, pairs, pad_token_id=57, batch_size=4).chosen, atol=1e-4)
    scored = []

    def counted(network, answers, **settings):
        scored.append(len(answers))
        return answer_logps(network, answers, **settings)

    monkeypatch.setattr("lossmith.evaluation.answer_logps.answer_logps", counted)
    again = stored_scores(model, words, pairs, batch_size=4, name="test", folder=tmp_path)
    assert (again.chosen.tolist(), again.rejected.tolist()) == (first.chosen.tolist(), first.rejected.tolist())
    assert scored == []
    with pytest.raises(StaleReferenceError, match="were computed with"):
        stored_scores(model, words, [*pairs[1:], PairRow([1, 2], [3], [4])], batch_size=4, name="test", folder=tmp_path)
    stored_scores(model, words, pairs, batch_size=4, name="other", folder=tmp_path)
    assert sum(scored) == 2 * len(pairs)


def test_metrics_are_those_of_a_loop_over_pairs():
    policy = PairLogps(*(np.array(v) for v in ([-8.0, -9.5, -3.0], [-5.0, -4.0, -2.0], [4.0, 2.0, 3], [8.0, 1, 5])))
    reference = PairLogps(np.array([-9.0, -8.0, -3.5]), np.array([-5.5, -6.0, -1.5]), *(np.ones(3),) * 2)
    metrics, scores = preference_metrics(policy, reference)
    chosen, rejected = [1.0, -1.5, 0.5], [0.5, 2.0, -0.5]
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert scores["margin"] == pytest.approx(margins)
    assert metrics["margin"] == pytest.approx(math.fsum(margins) / 3)
    assert metrics["chosen_shift"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["rejected_shift"] == pytest.approx(2 / 3)
    assert metrics["margin_per_token"] == pytest.approx((1 / 4 - 0.5 / 8 + -1.5 / 2 - 2.0 / 1 + 0.5 / 3 + 0.5 / 5) / 3)
    assert scores["preference_accuracy"] == [1.0, 0.0, 1.0]
    assert metrics["policy_accuracy"] == 0.0
    # Chosen is the shorter answer in the first and the last pair.
    assert metrics["length_controlled_accuracy"] == 1.0
    assert metrics["nll"] == pytest.approx(20.5 / 9)


def test_the_reference_itself_is_half_right_and_pairs_without_a_shorter_chosen_have_no_such_accuracy():
    same = PairLogps(np.array([-3.0, -2.0]), np.array([-4.0, -1.0]), np.array([3.0, 2]), np.array([2.0, 2]))
    metrics, _ = preference_metrics(same, same)
    assert metrics["preference_accuracy"] == 0.5
    assert metrics["policy_accuracy"] == 0.5
    assert "length_controlled_accuracy" not in metrics


def test_a_histogram_holds_every_finite_margin_once_in_its_part_of_training():
    draw = random.Random(1)
    seen = [(step, [draw.gauss(step, 1) for _ in range(4)]) for step in range(12)]
    seen[3] = (3, [math.nan, 1.0, math.inf, 2.0])
    found = margin_histogram(seen, stages=3, bins=10)
    assert found is not None
    assert [sum(counts) for counts in found["counts"]] == [14, 16, 16]
    assert found["edges"][0] == min(v for _, values in seen for v in values if math.isfinite(v))
    assert margin_histogram([]) is None
