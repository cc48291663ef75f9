"""`LossTrainer` over gloo ranks: DDP, FSDP2 as accelerate shapes it and by hand; ZeRO-3's hooks as a simulation.

One rank with 8 rows is two with 4, and two with 2 rows and 2 micro-batches of uneven lengths. Three processes run all
cases once (`rank_worker.py`).

Relied on: accelerate 1.15 takes FSDP on several CPUs for DDP without a word (`rank_worker.seen_as_gpus`), and shards a
transformers model as layers, input embedding, [final norm, output embedding] and root; transformers 5.23 calls
`Trainer._save` on every rank, and not at all for a sharded state.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn

import lossmith
from lossmith.errors import LossmithError
from lossmith.integrations.batches import align
from lossmith.integrations.lm_head import HeadLoss

sys.path.insert(0, str(Path(__file__).parent))
import rank_cases as cases
import rank_worker as worker

TOLERANCE = 3e-6
"""Of the norm of the gradient. Some processors round by 1.6e-6 of it; a wrong divisor or share is beyond 1e-2."""
RUNS = [
    (name, wrapper, split)
    for name, case in cases.CASES.items()
    for wrapper in case.wrappers
    for split in (("4x1", "2x2") if case.accumulated else ("4x1",))
]


@dataclass(frozen=True, repr=False)
class Results:
    """What one process recorded."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins so, by the rest of it."""
        found = {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        assert found, prefix
        return found


@dataclass(frozen=True, repr=False)
class Processes:
    """The same cases in one process and on two ranks."""

    alone: Results
    ranks: tuple[Results, Results]


def _read(path: Path) -> Results:
    with safe_open(path, framework="pt") as file:
        return Results({name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["notes"]))  # noqa: SIM118


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = {"alone": {k: v for k, v in environment.items() if not k.startswith("MASTER_")}}
    for rank in ("0", "1"):
        started[rank] = {**environment, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    logs = {name: (folder / f"{name}.log").open("w") for name in started}
    command = [sys.executable, worker.__file__, str(folder)]
    running = {
        name: subprocess.Popen(command, env=env, stdout=logs[name], stderr=subprocess.STDOUT)
        for name, env in started.items()
    }
    try:
        codes = {name: process.wait(timeout=900) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
        for log in logs.values():
            log.close()
    assert not any(codes.values()), "\n".join((folder / f"{name}.log").read_text()[-3000:] for name in codes)
    alone, *ranks = (_read(folder / f"{name}.safetensors") for name in started)
    for result in (alone, *ranks):
        errors = {name: note for name, note in result.notes.items() if name.endswith("/error")}
        assert not errors, "\n".join(f"{name}: {note}" for name, note in errors.items())
    return Processes(alone, (ranks[0], ranks[1]))


def _norm(gradients: dict[str, Tensor]) -> float:
    norm = torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm()
    assert norm > 1e-2
    return float(norm)


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], norm: float) -> None:
    assert found.keys() == expected.keys()
    errors = {name: float((found[name].double() - expected[name].double()).norm()) / norm for name in expected}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, wrong


@pytest.mark.parametrize(("name", "wrapper", "split"), RUNS)
def test_two_ranks_are_one(processes: Processes, name: str, wrapper: str, split: str) -> None:
    for result in processes.ranks:
        wrapped = result.notes[f"{name}/{wrapper}/{split}/wrapped"]
        assert wrapped == "DistributedDataParallel" if wrapper == "ddp" else wrapped.startswith("FSDP"), wrapped
        for step in range(1, cases.STEPS + 1):
            norm = _norm(processes.alone.under(f"{name}/alone/8x1/{step}/grad/"))
            for kind in ("grad", "weight"):
                expected = processes.alone.under(f"{name}/alone/8x1/{step}/{kind}/")
                _compare(result.under(f"{name}/{wrapper}/{split}/{step}/{kind}/"), expected, norm)


@pytest.mark.parametrize(("name", "wrapper", "split"), RUNS)
def test_figures_are_those_of_one_rank(processes: Processes, name: str, wrapper: str, split: str) -> None:
    """Of each step, and of an evaluation set that does not fill its last batch."""
    expected = processes.alone.notes[f"{name}/alone/8x1"]
    compared = set()
    for result in processes.ranks:
        found = result.notes[f"{name}/{wrapper}/{split}"]
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                if key in ("epoch", "total_flos") or "runtime" in key or "_per_second" in key or "preparation" in key:
                    continue
                compared.add(key)
                assert abs(one[key] - other[key]) <= 3e-6 * max(1.0, abs(other[key])), (key, one[key], other[key])
    assert {"loss", "nll", "entropy", "eval_loss", "eval_nll", "eval_entropy", "train_loss"} <= compared
    terms = cases.CASES[name].loss.count("*")
    assert sum(key.startswith("gradient_share/") for key in compared) == terms


def test_a_silent_rank_was_silent() -> None:
    """Else the cases with ignored rows would test nothing."""
    counts = [int((row["labels"] != -100).sum()) for row in cases.texts(cases.SILENT)]
    assert sum(counts[4:8]) == 0 < sum(counts[:4])
    assert sum(counts[10:12]) == sum(counts[14:16]) == 0 < sum(counts[8:10])
    whole = [int((row["labels"] != -100).sum()) for row in cases.texts()]
    assert sum(whole[:4]) != sum(whole[4:8])
    assert {len(row["labels"]) for row in cases.texts()[:4]} != {len(row["labels"]) for row in cases.texts()[4:8]}


@pytest.mark.parametrize("split", ["4x1", "2x2"])
def test_proxies_are_those_of_the_first_rank(processes: Processes, split: str) -> None:
    first, second = (result.notes[f"joint/ddp/{split}/proxies at first"] for result in processes.ranks)
    assert first != second
    assert first == processes.alone.notes["joint/alone/8x1/proxies at first"]
    for step in range(1, cases.STEPS + 1):
        name = f"joint/ddp/{split}/{step}/weight/loss:terms.1.proxies"
        assert torch.equal(processes.ranks[0].tensors[name], processes.ranks[1].tensors[name])


def test_one_rank_is_plain_torch(processes: Processes) -> None:
    """The reference of all others against built logits and torch's own cross-entropy."""
    torch.manual_seed(7)
    model, inputs = cases.causal(), cases.collate(cases.texts()[: cases.ROWS])
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="sum")
    (total / (inputs["labels"][:, 1:] != -100).sum()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    _compare(processes.alone.under("cross_entropy/alone/8x1/1/grad/"), expected, _norm(expected))


def test_a_compute_loss_func(processes: Processes) -> None:
    """Of a plain Trainer, two micro-batches on each of two ranks: it multiplies by the ranks what it had counted."""
    expected = processes.alone.under("cross_entropy/alone/8x1/1/grad/")
    for result in processes.ranks:
        _compare(result.under("dense/1/grad/"), expected, _norm(expected))


def test_own_means(processes: Processes) -> None:
    """Without `average_tokens_across_devices` each rank divides by its own labels, and the means are averaged."""
    first, second = (processes.alone.under(f"own means of {rank}/1/grad/") for rank in (0, 1))
    expected = {name: (first[name] + second[name]) / 2 for name in first}
    for result in processes.ranks:
        _compare(result.under("own means/1/grad/"), expected, _norm(expected))
    shared = processes.alone.under("cross_entropy/alone/8x1/1/grad/")
    assert max(float((shared[name] - expected[name]).norm()) for name in shared) > 1e-2 * _norm(shared)


@pytest.mark.parametrize(("name", "wrapper"), cases.RESUMED)
def test_resumed_is_bit_equal(processes: Processes, name: str, wrapper: str) -> None:
    prefix = f"resume {name}/{wrapper}"
    for result in processes.ranks:
        whole, resumed = (result.under(f"{prefix}/{run}/3/weight/") for run in ("whole", "resumed"))
        assert whole.keys() == resumed.keys()
        for key, weight in whole.items():
            assert torch.equal(weight, resumed[key]), key
        assert not torch.equal(*(result.under(f"{prefix}/whole/{step}/weight/")[key] for step in (2, 3)))
        with pytest.raises(AssertionError):
            result.under(f"{prefix}/resumed/2/")


@pytest.mark.parametrize("name", cases.BY_HAND)
def test_fully_shard_by_hand(processes: Processes, name: str) -> None:
    expected = processes.alone.under(f"by hand {name}/")
    for result in processes.ranks:
        _compare(result.under(f"by hand {name}/"), expected, _norm(expected))


def test_what_cannot_be_done_is_said(processes: Processes) -> None:
    for result in processes.ranks:
        said = {name: note for name, note in result.notes.items() if name.startswith("refused ")}
        assert said["refused proxies"] == (
            "'0.4*cross_entropy + 0.6*soft_triple' owns parameters, which FSDP and DeepSpeed would neither train nor "
            "save: use DDP."
        )
        assert said["refused memory"].endswith(
            "keeps a memory per rank, of which a checkpoint holds one only: give `gather=True`, so that all ranks "
            "share theirs."
        )
        assert "is sharded over ranks (DTensor, (" in said["refused tensor parallel"]


class _Partitioned:
    """A simulation of ZeRO-3's contract, no part of DeepSpeed: a module's own weights are there while it runs.

    Before a module's forward and backward its own parameters are filled, after them emptied, so that who reads a weight
    elsewhere finds none.
    """

    def __init__(self, model: nn.Module):
        self.store = {parameter: parameter.data.clone() for parameter in model.parameters()}
        self.holders = dict.fromkeys(self.store, 0)
        for parameter in self.store:
            parameter.data = parameter.data.new_empty(0)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if own:
                module.register_forward_pre_hook(lambda module, args, own=own: self.fill(own))
                module.register_forward_hook(lambda module, args, made, own=own: self.empty(own))
                module.register_full_backward_pre_hook(lambda module, grads, own=own: self.fill(own))
                if not isinstance(module, nn.Embedding):  # Its inputs have no gradient, so there is no place behind it.
                    module.register_full_backward_hook(lambda module, ins, outs, own=own: self.empty(own))

    def fill(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            self.holders[parameter] += 1
            parameter.data = self.store[parameter]

    def empty(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            self.holders[parameter] -= 1
            if self.holders[parameter] == 0:
                parameter.data = parameter.data.new_empty(0)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["focal", "lovasz_softmax"])
def test_weights_that_come_and_go_around_a_forward(name: str, tied: bool) -> None:
    """Simulated ZeRO-3: the head's weight is read within the head's own forward and backward only."""
    gradients = []
    for partitioned in (False, True):
        torch.manual_seed(7)
        model, inputs = cases.causal(tie_word_embeddings=tied), cases.collate(cases.texts()[: cases.ROWS])
        if partitioned:
            _Partitioned(model)
            assert all(parameter.numel() == 0 for parameter in model.parameters())
        loss, labels = lossmith.loss(name), align(inputs, shift=True).labels
        HeadLoss(model)(model, inputs, lambda logits, loss=loss, labels=labels: loss(logits, labels)).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    _compare(gradients[1], gradients[0], _norm(gradients[0]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:For backward hooks to be called:UserWarning")
def test_an_adapter_on_a_head_that_comes_and_goes_is_an_error() -> None:
    """Simulated ZeRO-3: the weights within an adapted head are there one by one only."""
    config = LoraConfig(r=3, target_modules=["lm_head"], init_lora_weights=False)
    model, inputs = get_peft_model(cases.causal(), config), cases.collate(cases.texts()[: cases.ROWS])
    _Partitioned(model)
    labels = align(inputs, shift=True).labels
    with pytest.raises(LossmithError, match="keep adapters and `modules_to_save` off the output embedding"):
        HeadLoss(model)(model, inputs, lambda logits: lossmith.loss("focal")(logits, labels))
