"""The plain loop of the example: the same steps in one process with four micro-batches each, in two with two each.

Relied on in accelerate (1.10 to 1.15), each with a test here or needed by the one of all of it: `Accelerator.backward`
divides by `gradient_accumulation_steps`; without `sync_with_dataloader=False` the last batch of the data ends a step
where it is drawn; without `cpu=True` a process of torchrun on a machine without an accelerator is one alone.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lossmith

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_pytorch.py"
STEPS, ROWS, VOCAB = 3, 8, 61


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_pytorch", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _model(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(2)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=tied, **sizes))


def _rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 12, (STEPS * ROWS,), generator=generator).tolist()
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def _pad(rows: list[Tensor]) -> dict[str, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _train(loss: str) -> dict[str, Tensor]:
    model = _model()
    # The data end with the last step: its micro-batches must still be one step.
    batches = torch.utils.data.DataLoader(_rows(), 2, collate_fn=_pad)
    _example().train(model, batches, lossmith.loss(loss), STEPS)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _rank(rank: int, folder: str, loss: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with Path(folder, f"{rank}.txt").open("w") as sys.stdout:
        weights = _train(loss)
    save_file(weights, Path(folder, f"{rank}.safetensors"))
    dist.destroy_process_group()


def _by_hand(gamma: float) -> tuple[list[float], dict[str, Tensor]]:
    """All rows of a step at once, from logits, by the formula of the focal loss."""
    model = _model()
    optimizer, losses, rows = torch.optim.AdamW(model.parameters(), lr=2e-5), [], _rows()
    for step in range(STEPS):
        batch = _pad(rows[step * ROWS : (step + 1) * ROWS])
        logps = F.log_softmax(model(**batch).logits[:, :-1].double(), dim=-1)
        logps = logps.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)[batch["attention_mask"][:, 1:].bool()]
        value = ((1 - logps.exp()) ** gamma * -logps).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def _printed(text: str) -> list[float]:
    return [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()]


def _moved(weights: dict[str, Tensor]) -> Tensor:
    start = dict(_model().named_parameters())
    return torch.cat([(weights[name] - start[name]).double().flatten() for name in sorted(start)])


def test_one_process_two_processes_and_whole_batches_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    losses, by_hand = _by_hand(gamma=2.0)
    capsys.readouterr()
    alone = _train("focal")
    assert _printed(capsys.readouterr().out) == pytest.approx(losses, abs=2e-6)
    mp.spawn(_rank, args=(str(tmp_path), "focal"), nprocs=2)
    assert _printed((tmp_path / "0.txt").read_text()) == pytest.approx(losses, abs=2e-6)
    assert (tmp_path / "1.txt").read_text() == ""
    both = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    whole = _moved(by_hand)
    assert whole.norm() > 1e-3
    assert torch.equal(_moved(both[0]), _moved(both[1]))
    for weights in (alone, both[0]):
        assert (_moved(weights) - whole).norm() < 2e-5 * whole.norm()  # 3e-6 was seen.


def test_accelerate_divides_by_the_micro_batches() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
    accelerator.gradient_accumulation_steps = 4
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward(3 * weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 0.75


@pytest.mark.parametrize("with_data", [True, False])
def test_accelerate_ends_a_step_with_the_data_unless_told(with_data: bool) -> None:
    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=with_data)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    model = torch.nn.Linear(1, 1)
    model, batches = accelerator.prepare(model, torch.utils.data.DataLoader([0, 1]))
    stream, ends = iter(batches), []
    drawn = [next(stream) for _ in range(2)]
    for _ in drawn:
        with accelerator.accumulate(model):
            ends.append(accelerator.sync_gradients)
    assert ends == [with_data, True]
