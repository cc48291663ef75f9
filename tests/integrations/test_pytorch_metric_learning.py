"""The bridge to pytorch-metric-learning: our losses under their call are theirs, with miners; theirs behave as ours.

Internals of theirs that are relied on (2.9): `BaseMetricLossFunction.compute_loss` and the reduction "already_reduced";
`loss_and_miner_utils.convert_to_weights` and `convert_to_pos_pairs_with_unique_labels`; wrappers that go by the name of
a loss's class; `CrossBatchMemory.queue_idx` and `has_been_filled`.
"""

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, trainers
from pytorch_metric_learning.utils import distributed, loss_and_miner_utils
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lossmith
import tiny
from lossmith.errors import LossmithWarning
from lossmith.integrations.arguments import training_arguments
from lossmith.integrations.classification import encode, make_trainer
from lossmith.integrations.pytorch_metric_learning import THEIR_NAMES, FromPml, from_pml, joint, to_pml

LABELS = torch.tensor([0, 1, 0, 2, 1, 2, 0, 2])
PAIRS = {
    "contrastive": (losses.ContrastiveLoss(0.1, 1.2), {"pos_margin": 0.1, "neg_margin": 1.2}),
    "triplet_margin": (losses.TripletMarginLoss(margin=0.3), {"margin": 0.3}),
    "supcon": (losses.SupConLoss(temperature=0.4), {"temperature": 0.4}),
    "nt_xent": (losses.NTXentLoss(temperature=0.4), {"temperature": 0.4}),
    "multi_similarity": (losses.MultiSimilarityLoss(3.0, 7.0, 0.2), {"alpha": 3.0, "beta": 7.0, "base": 0.2}),
    "circle": (losses.CircleLoss(m=0.3, gamma=5.0), {"margin": 0.3, "gamma": 5.0}),
    "lifted_structure": (losses.LiftedStructureLoss(1.3, 0.2), {"neg_margin": 1.3, "pos_margin": 0.2}),
}
"""Theirs, and the same hyper-parameters in our words."""


def _rows(count: int = len(LABELS), seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def _indices(kind: str, rows: Tensor, labels: Tensor = LABELS) -> tuple[Tensor, ...] | None:
    """What real miners find."""
    made = {
        "none": lambda: None,
        "pairs": lambda: miners.MultiSimilarityMiner(epsilon=0.2)(rows, labels),
        "triplets": lambda: miners.TripletMarginMiner(margin=0.3, type_of_triplets="hard")(rows, labels),
        "repeated": lambda: tuple(part.repeat(2)[:-1] for part in miners.PairMarginMiner(0.5, 1.5)(rows, labels)),
    }
    return made[kind]()


def _same(ours, theirs, inputs: tuple, leaves: list[Tensor], tolerance: float = 1e-10) -> Tensor:
    value, expected = ours(*inputs), theirs(*inputs)
    assert_close(value, expected, rtol=tolerance, atol=tolerance)
    for mine, wanted in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert float(wanted.abs().max()) > 1e-4
        assert_close(mine, wanted, rtol=tolerance, atol=tolerance)
    return value.detach()


@pytest.mark.parametrize("kind", ["none", "pairs", "triplets", "repeated"])
@pytest.mark.parametrize("name", PAIRS)
def test_ours_is_theirs_on_mined_pairs_and_triplets(name: str, kind: str) -> None:
    theirs, settings = PAIRS[name]
    rows = _rows()
    ours, indices = to_pml(name, **settings), _indices(kind, rows)
    if name == "lifted_structure" and kind in ("triplets", "repeated"):
        with pytest.raises(lossmith.ObjectiveInputError, match=r"reads `indices_tuple` as pairs that occur once, got"):
            ours(rows, LABELS, indices)
        return
    value = _same(ours, theirs, (rows, LABELS, indices), [rows])
    if kind != "none":  # The indices do restrict: the value is not that of all pairs.
        assert abs(value - ours(rows, LABELS)) > 1e-3


@pytest.mark.parametrize("name", PAIRS)
def test_float32_to_1e_6(name: str) -> None:
    theirs, settings = PAIRS[name]
    rows = _rows(dtype=torch.float32)
    _same(to_pml(name, **settings), theirs, (rows, LABELS, _indices("pairs", rows)), [rows], tolerance=2e-6)


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "lifted_structure"])
def test_rows_compared_with_other_rows(name: str, mined: bool) -> None:
    theirs, settings = PAIRS[name]
    rows, others = _rows(), _rows(6, seed=2)
    other_labels = torch.tensor([2, 0, 0, 1, 2, 1])
    indices = miners.MultiSimilarityMiner(0.3)(rows, LABELS, others, other_labels) if mined else None
    _same(to_pml(name, **settings), theirs, (rows, LABELS, indices, others, other_labels), [rows, others])


def test_pairs_need_no_labels() -> None:
    rows = _rows()
    indices = _indices("pairs", rows)
    _same(to_pml("supcon", temperature=0.4), PAIRS["supcon"][0], (rows, None, indices), [rows])


PROXIES = {
    "soft_triple": (losses.SoftTripleLoss(3, 5, centers_per_class=2), {"centers_per_class": 2}),
    "proxy_nca": (losses.ProxyNCALoss(3, 5, softmax_scale=2.0), {"scale": 2.0}),
    "normalized_softmax": (losses.NormalizedSoftmaxLoss(3, 5, temperature=0.3), {"temperature": 0.3}),
    "cosface": (losses.CosFaceLoss(3, 5, margin=0.2, scale=4.0), {"margin": 0.2, "scale": 4.0}),
    "arcface": (losses.ArcFaceLoss(3, 5, margin=20.0, scale=4.0), {"margin": 20.0, "scale": 4.0}),
}


@pytest.mark.parametrize("kind", ["none", "pairs", "triplets"])
@pytest.mark.parametrize("name", PROXIES)
def test_proxies_weigh_the_anchors_that_a_miner_names(name: str, kind: str) -> None:
    theirs, settings = PROXIES[name]
    ours = to_pml(name, num_classes=3, embedding_dim=5, **settings).double()
    proxies = ours.objective.proxies.data
    parameter = next(theirs.parameters())
    parameter.data = proxies.flatten(0, -2).T if parameter.shape[0] == 5 else proxies.flatten(0, -2)
    rows = _rows()
    _same(ours, theirs.double(), (rows, LABELS, _indices(kind, rows)), [rows], tolerance=1e-8)


@pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")
@pytest.mark.parametrize("kind", ["none", "pairs", "triplets"])
def test_nca_weighs_anchors_and_n_pairs_takes_a_pair_per_class(kind: str) -> None:
    rows = _rows()
    labels = torch.tensor([0, 1, 0, 2, 1, 3, 0, 2])  # One class has a single row.
    indices = _indices(kind, rows, labels)
    _same(to_pml("nca", scale=2.0), losses.NCALoss(softmax_scale=2.0), (rows, labels, indices), [rows])
    theirs = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    _same(to_pml("n_pairs"), theirs, (rows, labels, indices), [rows])


def test_ignored_rows_are_removed_from_pairs_too() -> None:
    rows, labels = _rows(), LABELS.clone()
    labels[[2, 5]] = -100
    keep = labels != -100
    with torch.no_grad():
        rows[2] = math.nan
    for name in ("supcon", "triplet_margin"):
        ours = to_pml(name)
        clean = rows.detach()[keep].requires_grad_()
        for kind in ("pairs", "triplets"):
            indices = _indices(kind, _rows())  # Found without knowing which rows do not count.
            places = keep.cumsum(0) - 1
            expected = ours(clean, labels[keep], _without(indices, keep, places))
            value = ours(rows, labels, indices)
            assert_close(value, expected)
            (slope,), (wanted,) = torch.autograd.grad(value, rows), torch.autograd.grad(expected, clean)
            assert torch.equal(slope[~keep], torch.zeros(2, 5, dtype=slope.dtype))
            assert_close(slope[keep], wanted)


def _without(indices, keep: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    """Entry by entry, in Python."""
    groups = [indices] if len(indices) == 3 else [indices[:2], indices[2:]]
    made = []
    for group in groups:
        entries = [entry for entry in zip(*(part.tolist() for part in group), strict=True) if keep[list(entry)].all()]
        made += [torch.tensor([int(places[e[side]]) for e in entries], dtype=torch.long) for side in range(len(group))]
    return tuple(made)


def test_nothing_mined_is_a_zero_with_a_graph() -> None:
    rows, empty = _rows(), torch.empty(0, dtype=torch.long)
    for name in PAIRS:
        for indices in ((empty,) * 3, (empty,) * 4):
            if name == "lifted_structure" and len(indices) == 3:
                continue
            value = to_pml(name)(rows, LABELS, indices)
            assert value.item() == 0
            assert torch.equal(torch.autograd.grad(value, rows)[0], torch.zeros_like(rows))


def test_a_sum_of_ours_under_their_call() -> None:
    rows = _rows()
    total = to_pml("0.3*supcon + 0.7*triplet_margin")
    for kind in ("none", "triplets"):
        indices = _indices(kind, rows)
        parts = 0.3 * to_pml("supcon")(rows, LABELS, indices) + 0.7 * to_pml("triplet_margin")(rows, LABELS, indices)
        assert_close(total(rows, LABELS, indices), parts)


@pytest.mark.parametrize("mine", [False, True])
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "lifted_structure"])
def test_inside_their_cross_batch_memory(name: str, mine: bool) -> None:
    theirs, settings = PAIRS[name]
    both = []
    for loss in (to_pml(name, **settings), theirs):
        miner = miners.MultiSimilarityMiner(0.3) if mine else None
        memory = losses.CrossBatchMemory(loss, embedding_size=5, memory_size=20, miner=miner).double()
        values = [memory(_rows(seed=seed), LABELS.roll(seed)) for seed in range(4)]
        rows = _rows(seed=9)
        last = memory(rows, LABELS)
        both.append((*values, last, torch.autograd.grad(last, rows)[0]))
    for mine_, wanted in zip(*both, strict=True):
        assert_close(mine_, wanted, rtol=1e-8, atol=1e-8)  # Their softplus is linear above 20.


def test_inside_their_other_wrappers() -> None:
    rows, views = _rows(), _rows(seed=4)
    theirs, settings = PAIRS["nt_xent"]
    for symmetric in (True, False):
        pair = [
            losses.SelfSupervisedLoss(loss, symmetric=symmetric) for loss in (to_pml("nt_xent", **settings), theirs)
        ]
        _same(*pair, (rows, views), [rows, views])
    several = [
        losses.MultipleLosses([loss, losses.TripletMarginLoss()], miners=[miners.TripletMarginMiner(0.3), None])
        for loss in (to_pml("nt_xent", **settings), theirs)
    ]
    _same(*several, (rows, LABELS), [rows])
    with pytest.warns(UserWarning, match="non-distributed"):
        value = distributed.DistributedLossWrapper(to_pml("supcon"))(rows, LABELS)
    assert_close(value, lossmith.loss("supcon")(rows, LABELS))


@pytest.mark.parametrize(("ours", "theirs"), THEIR_NAMES.items())
def test_their_wrappers_go_by_these_names(ours: str, theirs: str) -> None:
    assert theirs in losses.CrossBatchMemory.supported_losses()
    assert theirs in losses.SelfSupervisedLoss.supported_losses()
    assert type(to_pml(ours)).__name__ == type(getattr(losses, theirs)()).__name__


def test_what_is_built_can_be_copied() -> None:
    theirs = to_pml("soft_triple", num_classes=3, embedding_dim=5)
    rows = _rows(dtype=torch.float32)
    other = copy.deepcopy(theirs)
    assert torch.equal(other(rows, LABELS), theirs(rows, LABELS))
    assert other.objective.proxies is not theirs.objective.proxies
    assert repr(to_pml("supcon")).startswith("SupConLoss(\n  supcon")


@pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning", "ignore:Converting a tensor with requires_grad")
def test_in_their_trainer_proxies_and_model_learn(tmp_path) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(6), torch.tensor(row % 3)) for row in range(24)]
    for name, sizes in (("soft_triple", {"num_classes": 3, "embedding_dim": 5}), ("triplet_margin", {})):
        loss = to_pml(name, **sizes)
        model, trunk = torch.nn.Linear(5, 5), torch.nn.Linear(6, 5)
        optimizers = {
            "trunk_optimizer": torch.optim.SGD(trunk.parameters(), 0.1),
            "embedder_optimizer": torch.optim.SGD(model.parameters(), 0.1),
        }
        if sizes:
            optimizers["metric_loss_optimizer"] = torch.optim.SGD(loss.parameters(), 0.1)
        before = [p.detach().clone() for p in (*trunk.parameters(), *loss.parameters())]
        trainers.MetricLossOnly(
            models={"trunk": trunk, "embedder": model},
            optimizers=optimizers,
            batch_size=12,
            loss_funcs={"metric_loss": loss},
            mining_funcs={"tuple_miner": miners.TripletMarginMiner(margin=0.5)},
            dataset=data,
            dataloader_num_workers=0,
            data_device=torch.device("cpu"),
        ).train(num_epochs=2)
        for old, new in zip(before, (*trunk.parameters(), *loss.parameters()), strict=True):
            assert not torch.equal(old, new)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("focal", r"^`loss` must be a metric loss to be called as theirs, 'focal' reads `logits`, `labels`\.$"),
        (
            "supcon[answer]",
            r"^`loss` must be without label scopes, which their call has not, got 'supcon\[answer\]'\.$",
        ),
    ],
)
def test_what_cannot_go_under_their_call(loss: str, sentence: str) -> None:
    with pytest.raises(lossmith.ObjectiveInputError, match=sentence):
        to_pml(loss)


def test_settings_belong_to_a_name() -> None:
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`loss` must be a name or a module .* got int\.$"):
        to_pml(3)
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`temperature` must be given with a name, 'supcon' is "):
        to_pml(lossmith.loss("supcon"), temperature=0.2)


@pytest.mark.parametrize(
    ("name", "settings", "given", "sentence"),
    [
        (
            "proxy_anchor",
            {"num_classes": 3, "embedding_dim": 5},
            "indices",
            "needs the whole batch at once: it takes no",
        ),
        ("soft_triple", {"num_classes": 3, "embedding_dim": 5}, "others", "with its proxies: it takes no `ref_emb`"),
        ("lifted_structure", {}, "others", "compares the rows of a batch with each other or"),
        ("supcon", {"memory_size": 8, "embedding_dim": 5}, "indices", "build it without `gather` and `memory_size`"),
        ("supcon", {"gather": True}, "others", "build it without `gather` and `memory_size`"),
        ("nca", {}, "both", "with all of `ref_emb`, themselves included: give one"),
        ("nca", {}, "no labels", r"'nca' reads `labels`, got None\.$"),
        (
            "supcon",
            {},
            "others without labels",
            "needs `ref_labels` beside `ref_emb` where no `indices_tuple` is given",
        ),
        (
            "supcon -> nt_xent @ 0.5",
            {},
            "indices",
            "changes over training: it takes no `indices_tuple` and no `ref_emb`",
        ),
        ("supcon", {}, "two", r"^`indices_tuple` must be 3 tensors \(triplets\) or 4 \(pairs\), got 2\.$"),
    ],
)
def test_what_a_loss_cannot_do_it_says(name: str, settings: dict, given: str, sentence: str) -> None:
    rows, loss = _rows(), to_pml(name, **settings).double()
    indices = _indices("pairs", rows)
    calls = {
        "indices": (rows, LABELS, indices),
        "others": (rows, LABELS, None, _rows(seed=2), LABELS),
        "both": (rows, LABELS, indices, _rows(seed=2), LABELS),
        "no labels": (rows, None, indices),
        "others without labels": (rows, LABELS, None, _rows(seed=2), None),
        "two": (rows, LABELS, indices[:2]),
    }
    with pytest.raises(lossmith.ObjectiveInputError, match=sentence):
        loss(*calls[given])


# Theirs as ours.


def test_theirs_with_a_miner_without_ignored_rows() -> None:
    theirs, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner(0.2)
    module = from_pml(theirs, miner)
    rows, labels = _rows(), LABELS.clone()
    labels[[0, 3]] = -100
    keep = labels != -100
    with torch.no_grad():
        rows[0] = math.nan
    clean = rows.detach()[keep].requires_grad_()
    expected = theirs(clean, labels[keep], miner(clean, labels[keep]))
    value = module(embeddings=rows, labels=labels)
    assert_close(value, expected)
    (slope,), (wanted,) = torch.autograd.grad(value, rows), torch.autograd.grad(expected, clean)
    assert_close(slope[keep], wanted)
    assert torch.equal(slope[~keep], torch.zeros(2, 5, dtype=slope.dtype))
    assert str(module) == "from_pml(MultiSimilarityLoss, MultiSimilarityMiner)"
    assert (module.inputs, module.required, module.items) == (
        ("embeddings", "labels"),
        ("embeddings", "labels"),
        ("batch",),
    )
    assert list(module.breakdown(rows, labels)) == [str(module)]


def test_nothing_that_counts_is_a_zero_with_a_graph() -> None:
    module = from_pml(losses.ProxyAnchorLoss(3, 5))
    rows = torch.full((4, 5), math.nan, requires_grad=True)
    value = module(rows, torch.full((4,), -100))
    slopes = torch.autograd.grad(value, [rows, *module.parameters()])
    assert value.item() == 0
    assert all(not slope.any() for slope in slopes)


def test_half_precision_goes_up() -> None:
    rows = _rows(dtype=torch.float32).detach().bfloat16().requires_grad_()
    for theirs in (losses.TripletMarginLoss(), losses.ProxyNCALoss(3, 5)):
        value = from_pml(theirs)(rows, LABELS)
        assert_close(value, theirs(rows.float(), LABELS))
        assert value.dtype == torch.float32
        assert torch.autograd.grad(value, rows)[0].dtype == torch.bfloat16


def test_their_proxies_learn_and_travel() -> None:
    torch.manual_seed(3)
    module, rows = from_pml(losses.ProxyAnchorLoss(3, 5)), _rows(dtype=torch.float32)
    (group,) = module.param_groups(lr=0.01, proxy_lr_multiplier=10.0)
    assert (group["lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]]) == (0.1, 0.0, [(3, 5)])
    optimizer, before = torch.optim.SGD([group]), module(rows, LABELS).item()
    for _ in range(5):
        optimizer.zero_grad()
        module(rows, LABELS).backward()
        optimizer.step()
    assert module(rows, LABELS).item() < before - 0.01
    other = from_pml(losses.ProxyAnchorLoss(3, 5))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(rows, LABELS), module(rows, LABELS))


def test_their_memory_resumes_where_it_stood() -> None:
    def made() -> FromPml:
        return from_pml(losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, memory_size=20))

    straight, resumed = made(), made()
    batches = [(_rows(seed=seed, dtype=torch.float32), LABELS.roll(seed)) for seed in range(6)]
    values = [straight(*batch) for batch in batches]
    interrupted = made()
    for batch in batches[:4]:  # 32 rows: the queue of 20 is full and goes on at 12.
        interrupted(*batch)
    resumed.load_state_dict(interrupted.state_dict())
    assert [resumed(*batch).item() for batch in batches[4:]] == [value.item() for value in values[4:]]


def test_their_memory_is_not_filled_in_evaluation() -> None:
    made = from_pml(losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, memory_size=12))
    made(_rows(dtype=torch.float32), LABELS)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.eval()
    other = _rows(seed=2, dtype=torch.float32)
    first, second = made(other, LABELS), made(other, LABELS)
    assert first.item() == second.item() > 0
    first.backward()
    assert other.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    made.train()(other, LABELS)
    assert made.memory_places.tolist() == [[4, 1]]


def test_reductions_and_number_of_items() -> None:
    module, rows = from_pml(losses.SupConLoss()), _rows()
    whole = module(rows, LABELS)
    assert torch.equal(module(rows, LABELS, reduction="sum"), whole)
    with pytest.warns(LossmithWarning, match="couples the items of a batch: 1 of `num_items` = 4 here"):
        assert_close(module(rows, LABELS, num_items=4), whole / 4)
    with pytest.raises(
        lossmith.ObjectiveInputError, match=r"`num_items` names \['token'\], but 'from_pml\(.*counts batch"
    ):
        module(rows, LABELS, num_items={"token": 8})
    with pytest.raises(lossmith.ObjectiveInputError, match=r"`reduction` must be 'mean' or 'sum', got 'none'\.$"):
        module(rows, LABELS, reduction="none")
    with pytest.raises(lossmith.ObjectiveInputError, match="takes no `weights`: pytorch-metric-learning has none"):
        module(rows, LABELS, weights=torch.ones(8))


def test_ours_with_their_miner() -> None:
    rows, miner = _rows(), miners.TripletMarginMiner(margin=0.3)
    module = from_pml("triplet_margin", miner)
    assert_close(module(rows, LABELS), losses.TripletMarginLoss()(rows, LABELS, miner(rows, LABELS)))
    assert str(module) == "from_pml(triplet_margin, TripletMarginMiner)"


def test_a_sum_with_our_terms() -> None:
    theirs = from_pml(losses.ProxyAnchorLoss(3, 5), miners.MultiSimilarityMiner())
    total = joint("0.4*cross_entropy + 0.1*soft_triple", theirs, weight=0.5, num_classes=3, embedding_dim=5)
    rows, logits = _rows(dtype=torch.float32), _rows(seed=2, dtype=torch.float32)[:, :3]
    value = total(logits=logits, embeddings=rows, labels=LABELS)
    alone = [term(rows, LABELS) for term in (total.terms[1], theirs)]
    assert_close(value, 0.4 * torch.nn.functional.cross_entropy(logits, LABELS) + 0.1 * alone[0] + 0.5 * alone[1])
    assert [tuple(p.shape) for p in total.param_groups(lr=0.1)[0]["params"]] == [(3, 10, 5), (3, 5)]
    assert total.items == ("token", "anchor", "batch")
    assert str(total).endswith("+ 0.5*from_pml(ProxyAnchorLoss, MultiSimilarityMiner)")
    with pytest.raises(lossmith.ObjectiveInputError, match="sum without a schedule"):
        joint("cross_entropy -> focal @ 0.5", theirs)
    with pytest.raises(lossmith.ObjectiveInputError, match=r"`theirs` must be what `from_pml` returns, got SupConLoss"):
        joint("cross_entropy", losses.SupConLoss())


@pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_in_our_trainer_their_proxies_learn_and_are_saved(accumulation: int, tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "tiny", dropout=0.0)
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), tiny.sentences(16, 1)
    labels = [int(row["label"] == "positive") for row in rows]
    theirs = from_pml(losses.ProxyAnchorLoss(2, 16), miners.MultiSimilarityMiner())
    before = theirs.loss.proxies.detach().clone()
    arguments = training_arguments(
        {"save_strategy": "epoch", "report_to": "none"},
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=1e-3,
        use_cpu=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    examples = encode(tokenizer, [row["text"] for row in rows], labels, 32)
    make_trainer(model, tokenizer, examples, arguments, loss=joint("0.5*cross_entropy", theirs, weight=0.5)).train()
    assert not torch.equal(theirs.loss.proxies, before)
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert torch.equal(load_file(checkpoint / "loss.safetensors")["terms.1.loss.proxies"], theirs.loss.proxies)


@pytest.mark.parametrize(
    ("loss", "miner", "sentence"),
    [
        (
            torch.nn.CrossEntropyLoss(),
            None,
            r"^`loss` must be a loss of pytorch-metric-learning that .*, got CrossEntropy",
        ),
        (
            losses.SupConLoss(),
            losses.SupConLoss(),
            r"^`miner` must be a miner of pytorch-metric-learning, got SupConLoss",
        ),
        ("focal", None, r"^`loss` must be a metric loss to be called as theirs"),
    ],
)
def test_what_is_no_loss_of_theirs(loss, miner, sentence: str) -> None:
    with pytest.raises(lossmith.ObjectiveInputError, match=sentence):
        from_pml(loss, miner)


def test_wrong_inputs() -> None:
    unreduced = from_pml(losses.TripletMarginLoss(reducer=reducers.DoNothingReducer()))
    with pytest.raises(lossmith.ObjectiveInputError, match=r"must return one number, got dict: give it a reducer that"):
        unreduced(_rows(), LABELS)
    module = from_pml(losses.SupConLoss())
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`embeddings` must be a floating-point tensor \[anchors"):
        module(torch.zeros(8, 5).long(), LABELS)
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`labels` must have one entry per row of `embeddings`"):
        module(_rows(), LABELS[:3])


def test_their_weights_count_what_a_miner_names() -> None:
    """Contract: 1 for the row that is named most often, its share of that for the others, 1 for all where none is."""
    given = (torch.tensor([0, 0, 1]), torch.tensor([2, 2, 4]), torch.tensor([3, 4, 5]))
    weights = loss_and_miner_utils.convert_to_weights(given, LABELS, dtype=torch.float64)
    assert weights.tolist() == [1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss_and_miner_utils.convert_to_weights(None, LABELS, dtype=torch.float64).tolist() == [1.0] * 8
