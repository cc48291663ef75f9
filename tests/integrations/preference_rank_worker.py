"""Preference trainers on one rank or on several, run as a script: `python preference_rank_worker.py FOLDER`.

The environment is torchrun's (RANK, WORLD_SIZE ...), or holds none of it for one process. Written down are gradients
of every optimiser step after everything that ranks do to them, logs and evaluations.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.state import DistributedType, PartialState
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl import DPOConfig, KTOConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

import trl_inputs as made
from lossmith.integrations.trl import DPOTrainer, KTOTrainer
from reference_inputs import llama

CASES = {
    "dpo + 0.2*cross_entropy": ("ddp", "fsdp2"),
    "simpo": ("ddp", "fsdp2"),
    "aot": ("ddp", "fsdp2"),
    "kto_pair + 0.3*lovasz_softmax(gather=True)": ("ddp",),
    "bco_pair(running_delta=True)": ("ddp",),
    "kto + 0.2*cross_entropy": ("ddp", "fsdp2"),
    "kto(running_kl=True)": ("ddp",),
    "bco": ("ddp",),
    "lora: lrml + 0.1*focal": ("ddp", "fsdp2"),
}
STEPS = 2


class Recorder(made.Gradients):
    """Gradients and logs; sharded gradients whole."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        found = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
        whole = {n: grad.full_tensor() if isinstance(grad, DTensor) else grad for n, grad in found.items()}
        self.steps.append({name: grad.detach().clone().contiguous() for name, grad in whole.items()})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append({name: float(value) for name, value in logs.items()})


@contextmanager
def seen_as_gpus(fsdp: bool) -> Iterator[None]:
    """accelerate takes FSDP on several CPUs for DDP without a word, so it is told that they are GPUs."""
    if not fsdp:
        yield
        return
    shared = PartialState._shared_state
    before, shared["distributed_type"] = shared["distributed_type"], DistributedType.MULTI_GPU
    try:
        yield
    finally:
        shared["distributed_type"] = before


def lora_of(text: str) -> LoraConfig | None:
    """The adapter of a case."""
    return LoraConfig(r=3, target_modules=["q_proj", "v_proj"]) if text.startswith("lora: ") else None


def run(text: str, wrapper: str, folder: Path) -> Recorder:
    """Two steps of eight rows each, in their order, and an evaluation of seven rows."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    loss = text.removeprefix("lora: ")
    unpaired = loss.startswith(("kto +", "kto(", "bco")) and not loss.startswith("bco_pair")
    kind, config = (KTOTrainer, KTOConfig) if unpaired else (DPOTrainer, DPOConfig)
    data = made.completions if unpaired else made.pairs
    sharded = wrapper == "fsdp2"
    # Under FSDP the policy itself is the reference, as it is without a second model.
    own = lora_of(text) is not None or wrapper.endswith("fsdp2") or loss == "simpo"
    settings: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}} if sharded else {}
    args = made.configuration(
        config, folder, per_device_train_batch_size=8 // ranks, per_device_eval_batch_size=2, max_steps=STEPS,
        ddp_backend="gloo" if ranks > 1 else None, **settings,
    )  # fmt: skip
    lora = lora_of(text)
    with seen_as_gpus(sharded):
        trainer = kind(
            llama(), None if own else llama(seed=9), args, train_dataset=data(16), eval_dataset=data(7, seed=3),
            processing_class=made.words(), loss=loss, peft_config=lora, reference_cache=folder / "references",
        )  # fmt: skip
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(recorder := Recorder())
    trainer.train()
    trainer.evaluate()
    recorder.logs.append({"wrapped": type(trainer.model_wrapped).__name__})
    return recorder


def main(out: str) -> None:
    """All cases."""
    warnings.simplefilter("ignore")
    disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    tensors: dict[str, Tensor] = {}
    notes: dict[str, Any] = {}
    for text, wrappers in CASES.items():
        for wrapper in wrappers:
            key = f"{text}/{wrapper}"
            # All ranks see the same reference files.
            folder = Path(out) / f"{ranks}-{len(notes)}" if ranks > 1 else Path(tempfile.mkdtemp(dir=out))
            folder.mkdir(exist_ok=True)
            try:
                # On one rank the wrapper only says which reference there is.
                found = run(text, wrapper if ranks > 1 else f"alone {wrapper}", folder)
            except Exception:
                notes[key] = traceback.format_exc()
                continue
            notes[key] = found.logs
            for step, grads in enumerate(found.steps):
                tensors |= {f"{key}/{step}/{name}": grad for name, grad in grads.items()}
    rank = os.environ.get("RANK", "alone")
    save_file(tensors, Path(out) / f"{rank}.safetensors", metadata={"notes": json.dumps(notes)})
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
