"""One rank is two gloo ranks under DDP and under FSDP2, family by family: gradients, parameter by parameter.

Plain modules whose forward returns the loss; logits are `LinearLogits` of the head's weight and never built. Both
wrappers average gradients over ranks, so a rank divides its sum by the items of all ranks over the number of ranks.

Relied on (torch 2.9 to 2.13): inside the forward of the module that `fully_shard` wrapped, parameters of its group are
whole plain tensors; outside they are sharded `DTensor`s.
"""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import lossmith
from lossmith.engines.gather import gather_rows

WORLD = 2
VOCAB, HIDDEN, SEQ, ROWS, CLASSES = 37, 16, 7, 8, 3
CUT = 3
"""Rank 0 has three rows, rank 1 five."""
TOLERANCE = 1e-6
WRAPPERS = ("ddp", "fsdp2")


class Model(nn.Module):
    """A toy language model; `step` turns hidden states into a loss."""

    def __init__(self, case: "Case"):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.block = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN))
        if case.head:
            self.head = nn.Linear(HIDDEN, VOCAB, bias=not case.tied)
        if case.tied:
            self.head.weight = self.embed.weight
        self.loss = lossmith.loss(case.loss, **case.settings)
        self.step = case.step

    def forward(self, batch: dict[str, Tensor], ranks: int) -> Tensor:
        return self.step(self, self.block(self.embed(batch["tokens"])), batch, ranks)

    def logits(self, hidden: Tensor) -> lossmith.LinearLogits:
        return lossmith.LinearLogits(hidden, self.head.weight, self.head.bias)


Step = Callable[[Model, Tensor, dict[str, Tensor], int], Tensor]


@dataclass(frozen=True)
class Case:
    loss: str
    step: Step
    settings: dict[str, Any] = field(default_factory=dict)
    head: bool = True
    tied: bool = False
    silent_rank: bool = False
    """Whether the first rank's labels are all ignored."""


def _over_ranks(number: int, ranks: int) -> float:
    """What a rank divides its sum by, so that the mean over ranks is the mean over all items."""
    count = torch.tensor(float(number))
    if ranks > 1:
        dist.all_reduce(count)
    return float(count) / ranks


def _tokens(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    items = _over_ranks(int((batch["labels"] != -100).sum()), ranks)
    return model.loss(model.logits(hidden), batch["labels"], num_items=items)


def _gathered_region(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    return model.loss(model.logits(hidden), batch["labels"])


def _sequence_regions(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    items = _over_ranks(int((batch["labels"] != -100).any(-1).sum()), ranks)
    return model.loss(model.logits(hidden), batch["labels"], num_items=items)


def _gathered_rows(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    return model.loss(hidden.mean(1), batch["classes"])


def _proxies(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    items = _over_ranks(int((batch["classes"] != -100).sum()), ranks)
    return model.loss(hidden.mean(1), batch["classes"], num_items=items)


def _joint(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    tokens = _over_ranks(int((batch["classes"] != -100).sum()), ranks)
    return model.loss(
        logits=model.logits(hidden[:, -1]),
        embeddings=hidden.mean(1),
        labels=batch["classes"],
        num_items={"token": tokens, "anchor": tokens},
    )


def _completion_logps(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    return -lossmith.loss("cross_entropy")(model.logits(hidden), labels, reduction="none").sum(-1)


def _pairs(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    chosen = _completion_logps(model, hidden, batch["labels"])
    rejected = _completion_logps(model, hidden, batch["labels"].roll(1, dims=-1))
    refs = batch["ref"] - 20, batch["ref"] - 21
    return model.loss(chosen, rejected, *refs, num_items=_over_ranks(len(chosen), ranks))


def _completions(model: Model, hidden: Tensor, batch: dict[str, Tensor], ranks: int) -> Tensor:
    logps = _completion_logps(model, hidden, batch["labels"])
    # The KL estimate is that of all ranks.
    kl = gather_rows((logps - batch["ref"] + 22).detach())
    items = _over_ranks(len(logps), ranks)
    return model.loss(logps, batch["ref"] - 20, batch["desirable"], kl, num_items=items)


SIZES = {"num_classes": CLASSES, "embedding_dim": HIDDEN}
CASES = {
    "token": Case("0.6*cross_entropy + 0.4*focal", _tokens),
    "token tied": Case("poly1", _tokens, tied=True),
    "token silent": Case("cross_entropy", _tokens, silent_rank=True),
    "region gathered": Case("lovasz_softmax", _gathered_region, {"gather": True}),
    "region gathered mass": Case("dice", _gathered_region, {"gather": True}),
    "region sequence": Case("generalized_dice", _sequence_regions, {"region": "sequence"}),
    "metric gathered": Case("supcon", _gathered_rows, {"gather": True}, head=False),
    "triplets gathered": Case("triplet_margin", _gathered_rows, {"gather": True, "margin": 0.5}, head=False),
    "proxies": Case("soft_triple", _proxies, SIZES, head=False),
    "proxies gathered": Case("proxy_anchor", _gathered_rows, {**SIZES, "gather": True}, head=False),
    "joint": Case("0.4*cross_entropy + 0.6*soft_triple", _joint, SIZES),
    "preference": Case("dpo", _pairs),
    "unpaired": Case("kto", _completions),
}


def _batch(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, VOCAB, (ROWS, SEQ), generator=generator)
    labels[torch.rand(ROWS, SEQ, generator=generator) < 0.4] = -100  # Uneven over the ranks: see the test of it.
    if case.silent_rank:
        labels[:CUT] = -100
    return {
        "tokens": torch.randint(0, VOCAB, (ROWS, SEQ), generator=generator),
        "labels": labels,
        "classes": torch.tensor([0, 1, 2, 1, -100, 0, 2, 0]),
        "ref": torch.randn(ROWS, generator=generator),
        "desirable": torch.tensor([True, False, False, True, True, False, True, True]),
    }


def _model(case: Case) -> Model:
    torch.manual_seed(7)
    return Model(case)


def _gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    value.backward()
    made = {"value": value.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        made[name.removeprefix("module.")] = grad.contiguous()
    return made


def _wrapped(model: Model, wrapper: str) -> nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _mine(case: Case) -> dict[str, Tensor]:
    mine = slice(0, CUT) if dist.get_rank() == 0 else slice(CUT, None)
    return {name: value[mine] for name, value in _batch(case).items()}


def _alone(case: Case) -> dict[str, Tensor]:
    model = _model(case)
    return _gradients(model, model(_batch(case), 1))


class LossHead(nn.Linear):
    """A head that is a unit of FSDP2 of its own computes the loss in its own forward, where its weight is whole."""

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        return lossmith.loss("focal")(lossmith.LinearLogits(input, self.weight, self.bias), labels, num_items=17)


def _head_of_its_own(sharded: bool) -> dict[str, Tensor]:
    case = CASES["token"]
    model = _model(case)
    model.head = LossHead(HIDDEN, VOCAB)
    model.step = lambda model, hidden, batch, ranks: model.head(hidden, batch["labels"]) * ranks
    if not sharded:
        return _gradients(model, model(_batch(case), 1))
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.head, mesh=mesh)
    return _gradients(model, fully_shard(model, mesh=mesh)(_mine(case), WORLD))


def _proxies_of_their_own() -> dict[str, Tensor]:
    case = CASES["proxies"]
    model, mesh = _model(case), init_device_mesh("cpu", (WORLD,))
    fully_shard(model.loss, mesh=mesh)
    return _gradients(model, fully_shard(model, mesh=mesh)(_mine(case), WORLD))


def _in_their_wrapper(ranks: int) -> dict[str, Tensor]:
    """Ours in pytorch-metric-learning's DistributedLossWrapper, whose ranks must hold equally many rows."""
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    from lossmith.integrations.pytorch_metric_learning import to_pml

    case = CASES["metric gathered"]
    mine = slice(None) if ranks == 1 else slice(dist.get_rank() * ROWS // 2, (dist.get_rank() + 1) * ROWS // 2)
    model = _model(case)
    model.loss = DistributedLossWrapper(to_pml("supcon"))
    batch = {name: value[mine] for name, value in _batch(case).items()}
    wrapped = model if ranks == 1 else DistributedDataParallel(model)
    return _gradients(wrapped, wrapped(batch, ranks))


def _errors() -> dict[str, str]:
    """What is said where a head or proxies are sharded at the place of the loss."""
    said: dict[str, str] = {}
    mesh = init_device_mesh("cpu", (WORLD,))
    model = _model(CASES["token"])
    fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    try:
        model(_mine(CASES["token"]), WORLD)
    except lossmith.ObjectiveInputError as error:
        said["head"] = str(error)
    proxies = fully_shard(nn.Sequential(lossmith.loss("normalized_softmax", **SIZES)), mesh=mesh)
    try:
        proxies[0](torch.randn(4, HIDDEN), torch.tensor([0, 1, 2, 0]))
    except lossmith.ObjectiveInputError as error:
        said["proxies"] = str(error)
    return said


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    made: dict[str, Tensor] = {}
    for name, case in CASES.items():
        for wrapper in WRAPPERS:
            model = _wrapped(_model(case), wrapper)
            for key, value in _gradients(model, model(_mine(case), WORLD)).items():
                made[f"{name}/{wrapper}/{key}"] = value
    made |= {f"head of its own/fsdp2/{key}": value for key, value in _head_of_its_own(sharded=True).items()}
    made |= {f"proxies of their own/fsdp2/{key}": value for key, value in _proxies_of_their_own().items()}
    made |= {f"theirs/ddp/{key}": value for key, value in _in_their_wrapper(WORLD).items()}
    said = _errors()
    save_file(made, Path(folder) / f"{rank}.safetensors", metadata=said)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ranks")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.spawn(_rank, args=(str(folder),), nprocs=WORLD)
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    return [folder / f"{rank}.safetensors" for rank in range(WORLD)]


def _compare(ranks: list[Path], prefix: str, whole: dict[str, Tensor]) -> None:
    found = [
        {key.removeprefix(prefix): value for key, value in load_file(path).items() if key.startswith(prefix)}
        for path in ranks
    ]
    norm = torch.sqrt(sum(grad.double().square().sum() for name, grad in whole.items() if name != "value"))
    assert norm > 1e-2
    assert found[0].keys() == found[1].keys() == whole.keys()
    value = (found[0].pop("value") + found[1].pop("value")) / WORLD
    assert abs(value - whole["value"]) <= TOLERANCE * max(1.0, float(whole["value"].abs()))
    for one in found:
        for name, grad in one.items():
            error = float((grad.double() - whole[name].double()).norm() / norm)
            assert error <= TOLERANCE, f"{prefix}{name}: {error:.2e} of the gradient norm"


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(name: str, wrapper: str, ranks: list[Path]) -> None:
    _compare(ranks, f"{name}/{wrapper}/", _alone(CASES[name]))


def test_a_head_that_is_a_unit_of_its_own(ranks: list[Path]) -> None:
    _compare(ranks, "head of its own/fsdp2/", _head_of_its_own(sharded=False))


def test_proxies_that_are_a_unit_of_their_own(ranks: list[Path]) -> None:
    _compare(ranks, "proxies of their own/fsdp2/", _alone(CASES["proxies"]))


@pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used in a non-distributed")
def test_ours_in_their_distributed_wrapper(ranks: list[Path]) -> None:
    whole = _in_their_wrapper(1)
    # Their wrapper multiplies by the ranks, so that DDP's mean of the gradients is right; the value is not a mean.
    whole["value"] = whole["value"] * WORLD
    _compare(ranks, "theirs/ddp/", whole)


def test_a_sharded_weight_at_the_place_of_the_loss_is_an_error(ranks: list[Path]) -> None:
    with safe_open(ranks[0], framework="pt") as file:
        said = file.metadata()
    assert re.match(
        r"`weight` is sharded over ranks \(.*, \(37, 16\)\): make LinearLogits inside the wrapped forward", said["head"]
    )
    assert said["proxies"] == (
        "The proxies of 'normalized_softmax' are sharded over ranks (DTensor): call the loss inside the wrapped "
        "forward, where they are whole."
    )


def test_the_ranks_are_uneven() -> None:
    """Else a mean of means would pass."""
    counts = [int((_batch(CASES["token"])["labels"][part] != -100).sum()) for part in (slice(0, CUT), slice(CUT, None))]
    assert counts == [12, 17]
