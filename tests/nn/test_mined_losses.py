"""Losses with a miner: scalar loops, nothing left, half precision, the string, refusals."""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from library import DIM, build, gradients, scores_for
from lossmith import ObjectiveInputError
from lossmith.engines.budget import set_chunk_budget
from lossmith.engines.similarity import TABLES
from lossmith.errors import LossmithWarning
from mined_cases import COUNTED, LABELS, MINED, WANG, clustered, spread
from scalar_oracles import dot, log_sum_exp, unit

pytestmark = pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")


@pytest.fixture
def budget() -> Iterator[Callable[[int], None]]:
    """Holds all tables of that many anchors of a batch of `LABELS`, or of their pairs, in float64."""
    yield lambda anchors: set_chunk_budget(anchors * TABLES * COUNTED * 8)
    set_chunk_budget(None)


# By hand: what is left of an anchor as two lists, and the formulas on them.


def _left(text: str, i: int, close: Callable[[int, int], float]) -> tuple[list[int], list[int]]:
    labels = LABELS.tolist()
    counted = [k for k in range(len(labels)) if labels[k] != -100]
    positives = [k for k in counted if k != i and labels[k] == labels[i]]
    negatives = [k for k in counted if labels[k] != labels[i]]
    if not positives:
        return [], []
    if "hard'" in text:
        return [min(positives, key=lambda p: close(i, p))], [max(negatives, key=lambda n: close(i, n))]
    nearest, farthest = max(close(i, n) for n in negatives), min(close(i, p) for p in positives)
    return (
        [p for p in positives if close(i, p) < nearest + 0.2],
        [n for n in negatives if close(i, n) > farthest - 0.2],
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _log_one_plus(exponents: list[float]) -> float:
    return log_sum_exp([0.0, *exponents])


def _anchor_loss(name: str, s: Callable[[int], float], d: Callable[[int], float], P: list, N: list) -> float:
    if name == "supcon":
        return _mean([log_sum_exp([10 * s(a) for a in P + N]) - 10 * s(p) for p in P])
    if name == "multi_similarity":
        pull = _log_one_plus([-2 * (s(p) - 0.5) for p in P]) / 2
        return pull + _log_one_plus([50 * (s(n) - 0.5) for n in N]) / 50
    if name == "circle":
        pull = log_sum_exp([-80 * max(0.0, 1.4 - s(p)) * (s(p) - 0.6) for p in P])
        return _log_one_plus([pull + log_sum_exp([80 * max(0.0, s(n) + 0.4) * (s(n) - 0.4) for n in N])])
    assert name == "nca"
    return log_sum_exp([-(d(a) ** 2) for a in P + N]) - log_sum_exp([-(d(p) ** 2) for p in P])


def _by_hand(text: str, rows: Tensor) -> float:
    name = text.partition("(")[0]
    points = [unit(row) for row in rows.tolist()]

    def s(i: int, k: int) -> float:
        return dot(points[i], points[k])

    def d(i: int, k: int) -> float:
        return math.dist(points[i], points[k])

    close = (lambda i, k: -d(i, k)) if "distances" in lossmith.objectives.get_record(name).reads else s
    left = {i: _left(text, i, close) for i in range(len(LABELS)) if LABELS[i] != -100}
    pairs = [(i, p) for i, (positives, _) in left.items() for p in positives]
    if name == "contrastive":
        pulls = [d(i, p) for i, p in pairs]
        pushes = [1 - d(i, n) for i, (_, negatives) in left.items() for n in negatives]
        return _mean(pulls) + _mean([push for push in pushes if push > 0])
    if name == "lifted_structure":
        near = {i: [1 - d(i, n) for n in negatives] for i, (_, negatives) in left.items()}
        return _mean([max(0.0, log_sum_exp(near[i] + near[p]) + d(i, p)) ** 2 / 2 for i, p in pairs])
    if name == "nt_xent":
        return _mean([_log_one_plus([(s(i, n) - s(i, p)) / 0.07 for n in left[i][1]]) for i, p in pairs])
    if name == "triplet_margin":
        gaps = [d(i, p) - d(i, n) + 0.4 for i, p in pairs for n in left[i][1]]
        return _mean([gap for gap in gaps if gap > 0])
    anchors = [i for i, (positives, _) in left.items() if positives]
    return _mean([_anchor_loss(name, lambda k: s(i, k), lambda k: d(i, k), *left[i]) for i in anchors])  # noqa: B023


@pytest.mark.parametrize("text", [text for text in MINED if "semi" not in text])
@pytest.mark.parametrize("tight", [False, True])
def test_by_hand(text: str, tight: bool) -> None:
    rows = clustered() if tight else spread()
    value = lossmith.loss(text)(rows, LABELS)
    assert value.item() == pytest.approx(_by_hand(text, rows.detach()), rel=1e-10)
    if tight:
        all_rows = lossmith.loss(text.partition("miner")[0].rstrip("(, ") + ")" * text.startswith("triplet"))
        assert abs(value.item() - all_rows(rows, LABELS).item()) > 1e-3


def test_wangs_slack_beyond_the_margin_leaves_out_no_violation() -> None:
    rows = clustered()
    whole = lossmith.loss("triplet_margin", margin=0.4)(rows, LABELS)
    values = [
        lossmith.loss("triplet_margin", margin=0.4, miner="multi_similarity", miner_epsilon=epsilon)(rows, LABELS)
        for epsilon in (0.4, 0.9)
    ]
    assert values[0] == values[1] == whole


@pytest.mark.parametrize("margin", [0.05, 0.4])
def test_semi_hard_triplets_by_hand(margin: float) -> None:
    rows, labels = spread(), LABELS.tolist()
    points = [unit(row) for row in rows.tolist()]
    counted = [i for i in range(len(labels)) if labels[i] != -100]
    gaps = []
    for i in counted:
        for p in counted:
            for n in counted:
                to_positive, to_negative = math.dist(points[i], points[p]), math.dist(points[i], points[n])
                if i != p and labels[i] == labels[p] != labels[n] and to_positive < to_negative < to_positive + margin:
                    gaps.append(to_positive - to_negative + margin)
    assert len(gaps) > 3
    items = lossmith.loss("triplet_margin", margin=margin, miner="semi_hard")(rows, LABELS, reduction="none")
    assert items.tolist() == pytest.approx(gaps, rel=1e-10)


def test_the_string_builds_the_loss_again_and_state_travels() -> None:
    text = "triplet_margin(margin=0.2, memory_size=8, miner='multi_similarity', miner_epsilon=0.2)"
    module = lossmith.loss("triplet_margin(margin=0.2)", **_keywords(), embedding_dim=DIM).double()
    assert str(module) == text
    assert repr(module.miner) == "Miner(name='multi_similarity', epsilon=0.2)"
    again = lossmith.loss(text, embedding_dim=DIM).double()
    assert (str(again), again.miner) == (text, module.miner)
    rows = spread()
    module(rows, LABELS)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(rows, LABELS), module(rows, LABELS))
    joint = lossmith.loss("0.4*cross_entropy + 0.6*supcon(miner='hard') + nt_xent", miner_epsilon=0.1)
    assert str(joint) == "0.4*cross_entropy + 0.6*supcon(miner='hard') + nt_xent"
    assert str(lossmith.loss("supcon", miner="none", miner_epsilon=0.1)) == "supcon"
    assert "miner" not in "".join(lossmith.loss("supcon(miner='hard')").state_dict())


def _keywords() -> dict[str, Any]:
    return {"memory_size": 8, "miner": "multi_similarity", "miner_epsilon": 0.2}


def test_a_sum_with_a_miner_trains() -> None:
    module = lossmith.loss("0.4*cross_entropy + 0.6*triplet_margin", miner="hard").double()
    logits, rows, labels = scores_for(build("focal"), 6), scores_for(module.terms[1], 6), torch.arange(6) % 3
    value = module(logits=logits, embeddings=rows, labels=labels)
    alone = 0.6 * lossmith.loss("triplet_margin(miner='hard')")(rows, labels)
    assert_close(value, 0.4 * lossmith.loss("cross_entropy")(logits, labels) + alone)
    assert all(bool(slope.any()) for slope in gradients(value, module, logits, rows))


# Nothing left.


@pytest.mark.parametrize("text", MINED)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, -100, -100, -100], [-100, -100, -100, -100]])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_batch_of_which_nothing_is_left(
    text: str, labels: list[int], reduction: str, budget: Callable[[int], None]
) -> None:
    rows = spread(4)
    module = lossmith.loss(text)
    for anchors in (100, 1):
        budget(anchors)
        value = module(rows, torch.tensor(labels), reduction=reduction)
        assert not bool(value.any())
        assert not bool(torch.autograd.grad(value.sum(), rows)[0].any())


@pytest.mark.parametrize(
    "text", [text for text in MINED if text.partition("(")[0] not in ("contrastive", "lifted_structure")]
)
def test_an_anchor_of_which_nothing_is_left_does_not_count(text: str) -> None:
    module, rows = lossmith.loss(text), clustered()
    if module.items != ("anchor",):
        return
    items = module(rows, LABELS, reduction="none")
    nothing = (LABELS == -100) | (LABELS == 7) | ((LABELS == 1) & (WANG in text))
    assert torch.equal(items == 0, nothing)
    assert_close(module(rows, LABELS), items.sum() / int((~nothing).sum()), rtol=1e-12, atol=0)
    weights = torch.linspace(1, 2, len(LABELS), dtype=torch.float64)
    wanted = (items * weights).sum() / weights[~nothing].sum()
    assert_close(module(rows, LABELS, weights=weights), wanted, rtol=1e-12, atol=0)


def test_an_ignored_row_is_never_chosen() -> None:
    for text in MINED:
        module, rows, twin = lossmith.loss(text), clustered(), clustered()
        with torch.no_grad():
            twin[10] = -twin[10] * math.nan
        assert torch.equal(module(rows, LABELS), module(twin, LABELS))
        assert not bool(torch.autograd.grad(module(rows, LABELS), rows)[0][10].any())


def test_who_has_no_positive_is_warned_of() -> None:
    module = lossmith.loss("multi_similarity(miner='multi_similarity', miner_epsilon=2)")
    rows, labels = scores_for(build("supcon"), 3), torch.arange(3) // 2
    with pytest.warns(LossmithWarning, match="'multi_similarity': some rows have no other row .* and do not count"):
        items = module(rows, labels, reduction="none")
    assert (items == 0).tolist() == [False, False, True]
    assert_close(module(rows, labels), items.sum() / 2)


@pytest.mark.parametrize("text", MINED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings(text: str, dtype: torch.dtype) -> None:
    module, rows = lossmith.loss(text), clustered(dtype)
    value = module(rows, LABELS)
    assert value.dtype == torch.float32
    assert_close(value, module(rows.detach().float(), LABELS), rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(value, rows)
    assert slope.dtype == dtype
    assert bool(torch.isfinite(slope).all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(module(rows, LABELS), value)


# Refusals.


@pytest.mark.parametrize("text", ["soft_triple", "proxy_anchor", "n_pairs", "focal", "dice", "dpo", "kto"])
def test_a_loss_without_rows_to_choose_from_refuses(text: str) -> None:
    message = (
        rf"^'{text}' has no `miner`: a miner chooses among the rows .* such as triplet_margin, multi_similarity or"
    )
    with pytest.raises(ObjectiveInputError, match=message) as caught:
        lossmith.loss(text, miner="hard")
    assert str(caught.value).count(".") == 1
    with pytest.raises(ObjectiveInputError, match=message):
        lossmith.loss(f"{text}(miner='hard')")


def test_what_else_is_refused() -> None:
    with pytest.raises(ObjectiveInputError, match=r"^`miner` of 'supcon' is given in the string and as a keyword\.$"):
        lossmith.loss("supcon(miner='hard')", miner="hard")
    with pytest.raises(ObjectiveInputError, match=r"^`miner` must be of type str, got 1"):
        lossmith.loss("supcon(miner=1)")
    with pytest.raises(ObjectiveInputError, match=r"^'supcon' cannot use miner='semi_hard'"):
        lossmith.loss("supcon", miner="semi_hard")
    with pytest.raises(ObjectiveInputError, match=r"^'supcon' has no hyper-parameter `minner`. Did you mean 'miner'\?"):
        lossmith.loss("supcon", minner="hard")
