"""Two gloo ranks with uneven batches are one rank with all rows: the mean over ranks of values and gradients."""

import os
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.testing import assert_close

import lossmith
from lossmith.nn import LossModule

METRIC = [
    "supcon",
    "nt_xent",
    "triplet_margin",
    "multi_similarity",
    "circle",
    "nca",
    "contrastive",
    "lifted_structure",
    "n_pairs",
    "proxy_anchor",
    "soft_triple",
    "proxy_nca",
]
REGION = ["lovasz_softmax", "generalized_dice", "dice", "focal_tversky"]
LABELS = torch.tensor([0, 1, 2, 1, -100, 0, 2, 1, 0, 2, 1])
CALLS = [{}, {"reduction": "sum"}, {"num_items": 13}]
CUT = 4
"""Rank 0 has four rows, one of them alone in its class there; rank 1 has seven, one of them ignored."""


def _rows(columns: int) -> Tensor:
    return torch.randn(len(LABELS), columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _module(name: str, *, gather: bool) -> LossModule:
    torch.manual_seed(11)
    record = lossmith.objectives.get_record(name)
    sizes = {"num_classes": 3, "embedding_dim": 6} if record.proxy_shape else {}
    return lossmith.loss(name, gather=gather, **sizes).double()


def _value_and_gradients(
    name: str, rows: Tensor, labels: Tensor, *, gather: bool, **call
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Value, gradients of a linear map in front of the loss and of its proxies, and gradient of the rows."""
    module = _module(name, gather=gather)
    rows = rows.clone().requires_grad_()
    mix = torch.eye(rows.shape[1], dtype=torch.float64) + 0.1
    mix.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = module(rows @ mix, labels, **call)
    slopes = torch.autograd.grad(value, [mix, *module.parameters(), rows])
    return value.detach(), list(slopes[:-1]), slopes[-1]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(0, CUT) if rank == 0 else slice(CUT, None)
    out = {}
    for name in METRIC + REGION:
        for place, call in enumerate(CALLS):
            columns = 6 if name in METRIC else 5
            out[name, place] = _value_and_gradients(name, _rows(columns)[mine], LABELS[mine], gather=True, **call)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            mp.spawn(_rank, args=(folder,), nprocs=2)
        finally:
            os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", METRIC + REGION)
def test_two_ranks_are_one(name: str, ranks: list[dict]) -> None:
    for place, call in enumerate(CALLS):
        rows = _rows(6 if name in METRIC else 5)
        value, slopes, of_rows = _value_and_gradients(name, rows, LABELS, gather=False, **call)
        both = [rank[name, place] for rank in ranks]
        assert_close((both[0][0] + both[1][0]) / 2, value, rtol=1e-12, atol=1e-14)
        for one, other, whole in zip(both[0][1], both[1][1], slopes, strict=True):
            assert_close((one + other) / 2, whole, rtol=1e-10, atol=1e-13)
        assert_close(torch.cat([both[0][2], both[1][2]]) / 2, of_rows, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["supcon", "lovasz_softmax"])
def test_without_ranks_gather_changes_nothing(name: str) -> None:
    rows = _rows(6)
    alone, gathered = (_value_and_gradients(name, rows, LABELS, gather=gather) for gather in (False, True))
    assert torch.equal(alone[0], gathered[0])
    assert torch.equal(alone[2], gathered[2])


def test_a_sequence_cannot_be_gathered() -> None:
    with pytest.raises(lossmith.ObjectiveInputError, match=r"^`gather=True` needs `region='batch'`: a sequence lies"):
        lossmith.loss("dice", gather=True, region="sequence")
