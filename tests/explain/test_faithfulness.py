import math

import numpy as np
import pytest
import torch
from text_models import LinearBag, tiny_classifier, tiny_folder

import tiny
from lossmith.errors import DataError
from lossmith.explain import (
    Faithfulness,
    TokenAttributions,
    attribute_tokens,
    attribution_stability,
    measure_faithfulness,
)
from lossmith.explain.attributions import AttributedText
from lossmith.explain.faithfulness import _infidelity, _subsets
from lossmith.explain.stability import rank_agreement

TEXTS = [row["text"] for row in tiny.sentences(4, 1)] + ["bad film", "cold"]
SHARES = (0.05, 0.3, 0.5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_classifier(tiny_folder(tmp_path_factory))


def probability(model, ids, target):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
    return float(logits[0].softmax(-1)[target])


def test_erasure_takes_the_top_tokens_out_of_the_text(bert):
    model, tokenizer = bert
    found = attribute_tokens(model, tokenizer, TEXTS)
    frame = measure_faithfulness(model, tokenizer, found, shares=SHARES).frame().set_index("method")
    for method in found.methods:
        gone, kept = [], []
        for one, text in zip(found.texts, TEXTS, strict=True):
            ids = tokenizer(text)["input_ids"]
            whole, weights = probability(model, ids, one.target), one.weights[method].tolist()
            order = sorted(range(len(weights)), key=lambda place: -weights[place])
            for share in SHARES:
                top = set(order[: math.ceil(share * len(weights))])
                middle = list(enumerate(ids[1:-1]))
                rest = [ids[0], *[token for place, token in middle if place not in top], ids[-1]]
                only = [ids[0], *[token for place, token in middle if place in top], ids[-1]]
                gone.append(whole - probability(model, rest, one.target))
                kept.append(whole - probability(model, only, one.target))
        assert frame.loc[method, "comprehensiveness"] == pytest.approx(sum(gone) / len(gone), abs=1e-6)
        assert frame.loc[method, "sufficiency"] == pytest.approx(sum(kept) / len(kept), abs=1e-6)
    assert set(frame.index) == {*found.methods, "random"}
    assert math.isnan(frame.loc["random", "infidelity"])


def test_infidelity_is_the_gap_of_what_masking_subsets_does(bert):
    model, tokenizer = bert
    found = attribute_tokens(model, tokenizer, TEXTS)
    frame = measure_faithfulness(model, tokenizer, found, subsets=5, seed=9).frame().set_index("method")
    gaps, shares = [], []
    for number, (one, text) in enumerate(zip(found.texts, TEXTS, strict=True)):
        ids = tokenizer(text)["input_ids"]
        whole = math.log(probability(model, ids, one.target))
        added, changed = [], []
        for subset in _subsets(len(ids) - 2, 5, 9 + number).tolist():
            masked = [
                tokenizer.mask_token_id if 0 < place <= len(subset) and subset[place - 1] else token
                for place, token in enumerate(ids)
            ]
            changed.append(whole - math.log(probability(model, masked, one.target)))
            added.append(
                sum(weight for weight, chosen in zip(one.weights["occlusion"].tolist(), subset, strict=True) if chosen)
            )
        gaps.append(sum((a - c) ** 2 for a, c in zip(added, changed, strict=True)) / 5)
        factor = sum(a * c for a, c in zip(added, changed, strict=True)) / sum(a * a for a in added)
        left = sum((factor * a - c) ** 2 for a, c in zip(added, changed, strict=True))
        shares.append(left / sum(c * c for c in changed))
    assert frame.loc["occlusion", "infidelity"] == pytest.approx(sum(gaps) / len(gaps), rel=2e-3)
    assert frame.loc["occlusion", "unexplained"] == pytest.approx(sum(shares) / len(shares), rel=2e-3)


def test_subsets_are_never_empty_and_of_all_sizes():
    sizes = [int(row.sum()) for row in _subsets(6, 400, 0)]
    assert set(sizes) == {1, 2, 3, 4, 5, 6}


def test_weights_of_a_linear_model_explain_everything(bert):
    model, tokenizer = LinearBag(len(bert[1])), bert[1]
    found = attribute_tokens(model, tokenizer, TEXTS, score="logit", steps=3)
    frame = measure_faithfulness(model, tokenizer, found).frame().set_index("method")
    for method in ("integrated_gradients", "occlusion"):
        assert frame.loc[method, "infidelity"] < 1e-8
        assert frame.loc[method, "unexplained"] < 1e-6
    assert frame.loc["gradient_x_input", "infidelity"] > 1e-3
    assert frame.loc["integrated_gradients", "relative_completeness_error"] < 1e-4
    assert frame.loc["integrated_gradients", "comprehensiveness"] > frame.loc["random", "comprehensiveness"]


def test_captum_s_infidelity_agrees(bert):
    from captum.metrics import infidelity

    model, tokenizer = bert
    found = attribute_tokens(model, tokenizer, TEXTS[:1])
    one = found.texts[0]
    subsets = _subsets(len(one.text.content), 8, 4)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    draws = iter(torch.tensor(subsets, dtype=torch.float32))

    def value(kept):
        rows = torch.where(kept.bool(), ids[:, 1:-1], tokenizer.mask_token_id)
        rows = torch.cat([ids[:, :1], rows, ids[:, -1:]], 1)
        return model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.log_softmax(-1)[:, one.target]

    def perturb(kept):
        gone = next(draws)[None]
        return gone, kept - gone

    weights = torch.tensor(one.weights["occlusion"], dtype=torch.float32)[None]
    with torch.no_grad():
        theirs = infidelity(
            value, perturb, torch.ones(1, len(one.text.content)), weights, n_perturb_samples=8,
            max_examples_per_batch=1,
        )  # fmt: skip
        changes = np.array(
            [one.value - float(value(torch.ones(1, subsets.shape[1]) - torch.tensor(row)[None])) for row in subsets]
        )
    assert _infidelity(one, "occlusion", subsets, changes)[0] == pytest.approx(float(theirs), rel=1e-3)


def test_several_models_join_and_are_drawn(bert):
    found = attribute_tokens(*bert, TEXTS, methods=("integrated_gradients",))
    seen = []
    parts = [
        measure_faithfulness(*bert, found, name=name, seed_of_run=seed, subsets=2, on_text=seen.append)
        for name in ("cross_entropy", "focal")
        for seed in (0, 1)
    ]
    assert sum(seen) == 4 * len(TEXTS)
    joined = Faithfulness.joined(parts)
    assert len(joined.frame()) == 8
    assert len(joined.plot(baseline="focal").axes) == 3
    with pytest.raises(DataError, match="`method` must be one of integrated_gradients, random, got 'occlusion'"):
        joined.plot(method="occlusion")
    with pytest.raises(DataError, match=r"`shares` must be in \(0, 1\]"):
        measure_faithfulness(*bert, found, shares=(0.0,))


def with_weights(found, change, targets=None):
    """The same texts with other weights."""
    texts = tuple(
        AttributedText(
            text=one.text,
            target=one.target if targets is None else targets[place],
            value=one.value,
            empty_value=one.empty_value,
            weights={"occlusion": np.asarray(change(one.weights["occlusion"]), dtype=float)},
        )
        for place, one in enumerate(found.texts)
    )
    return TokenAttributions(texts=texts, methods=("occlusion",), score=found.score, baseline=found.baseline)


def spearman(a, b):
    """Pearson's correlation of the ranks, for numbers without ties."""
    ranks = [[sorted(values).index(value) for value in values] for values in (a, b)]
    mean = (len(a) - 1) / 2
    top = sum((x - mean) * (y - mean) for x, y in zip(*ranks, strict=True))
    return top / sum((x - mean) ** 2 for x in ranks[0])


def test_stability_is_the_rank_correlation_of_tokens(bert):
    found = attribute_tokens(*bert, TEXTS)
    same = with_weights(found, lambda weights: np.exp(weights))
    turned = with_weights(found, lambda weights: -weights)
    shuffled = with_weights(found, lambda weights: np.random.default_rng(0).permutation(weights))
    stable = attribution_stability({"focal": {0: found, 3: same, 7: turned, 9: shuffled}})
    frame = stable.frame().set_index("seeds")["correlation"]
    assert frame["0 3"] == pytest.approx(1)
    assert frame["0 7"] == pytest.approx(-1)
    # Texts of one and two tokens do not count.
    long = [
        (a.weights["occlusion"].tolist(), b.weights["occlusion"].tolist())
        for a, b in zip(found.texts, shuffled.texts, strict=True)
    ][:4]
    assert frame["0 9"] == pytest.approx(sum(spearman(*pair) for pair in long) / 4)
    assert [pair.texts for pair in stable.pairs] == [4] * 6
    stable.plot()


def test_texts_whose_predicted_class_changes_do_not_count(bert):
    found = attribute_tokens(*bert, TEXTS)
    other = [1 - one.target for one in found.texts]
    moved = with_weights(found, lambda weights: weights, targets=[other[0], *[one.target for one in found.texts[1:]]])
    assert math.isnan(rank_agreement(found.texts[0], moved.texts[0], "occlusion"))
    (pair,) = attribution_stability({"focal": {0: found, 1: moved}}).pairs
    assert pair.texts == 3
    flat = with_weights(found, np.zeros_like)
    (pair,) = attribution_stability({"focal": {0: found, 1: flat}}).pairs
    assert math.isnan(pair.correlation)


def test_other_texts_cannot_be_compared(bert):
    one, other = (attribute_tokens(*bert, texts, methods=("occlusion",)) for texts in (TEXTS, TEXTS[::-1]))
    with pytest.raises(DataError, match="`attributions` of 'focal' must be of the same texts, seeds 0 and 1 differ"):
        attribution_stability({"focal": {0: one, 1: other}})
    assert attribution_stability({}).frame().empty
