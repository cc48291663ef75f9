"""Cases of `LossTrainer` on one rank or on several, run as a script: `python rank_worker.py FOLDER [CASE...]`.

The environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or holds none of it for one
process. Each run records what an optimiser step saw: gradients after everything that ranks do to them, weights, logs.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.state import DistributedType, PartialState
from rank_cases import (
    BY_HAND,
    CASES,
    EVALUATED,
    HIDDEN,
    JOINT,
    LEARNING_RATE,
    RESUMED,
    ROWS,
    SIZES,
    SPLITS,
    STEPS,
    Case,
    causal,
    classes,
    collate,
    deep_classifier,
    texts,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import TrainerCallback, TrainingArguments

import lossmith
from lossmith.errors import LossmithError
from lossmith.integrations.batches import align
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.transformers import LossTrainer, compute_loss


class Recorder(TrainerCallback):
    """What each optimiser step sees, of every parameter by its name in the model."""

    def __init__(self, prefix: str, tensors: dict[str, Tensor]):
        self.prefix, self.tensors, self.trainer, self.logs = prefix, tensors, None, []

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.trainer.accelerator.unwrap_model(self.trainer.model).named_parameters()
        for name, parameter in self.trainer.loss.named_parameters():
            yield f"loss:{name}", parameter

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        for name, parameter in self.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                self.tensors[f"{self.prefix}/{step}/grad/{name}"] = whole(parameter.grad)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in self.parameters():
            self.tensors[f"{self.prefix}/{state.global_step}/weight/{name}"] = whole(parameter)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in memory of its own."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def ranks() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def seen_as_gpus(fsdp: bool) -> Iterator[None]:
    """accelerate takes FSDP on several CPUs for DDP without a word, so it is told that they are GPUs.

    Everything behind that switch (`fully_shard` of layers, embedding, head and root, the optimiser's parameters) is
    accelerate's own.
    """
    if not fsdp:
        yield
        return
    shared = PartialState._shared_state
    before, shared["distributed_type"] = shared["distributed_type"], DistributedType.MULTI_GPU
    try:
        yield
    finally:
        shared["distributed_type"] = before


def make(
    case: Case, wrapper: str, split: str, folder: str, *, seed: int = 7, rows: Any = None, **changes: Any
) -> LossTrainer:
    """A trainer of this case; `changes` are those of its TrainingArguments."""
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    batch, accumulation = SPLITS[ranks()][split]
    sharded = wrapper == "fsdp2" and ranks() > 1
    # accelerate gathers a full state on GPUs only.
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}} if sharded else {}
    arguments = {
        "output_dir": folder,
        "use_cpu": True,
        "ddp_backend": "gloo" if ranks() > 1 else None,
        "ddp_timeout": 60,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 4 // ranks(),
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(**{**arguments, **fsdp, **case.arguments, **changes})
    torch.manual_seed(seed)
    model = case.model()
    sizes = SIZES if "soft_triple" in case.loss else {}
    # Proxies that differ at first: those of rank 0 must hold.
    torch.manual_seed(seed + (dist.get_rank() if dist.is_initialized() else 0))
    loss = lossmith.loss(case.loss, **sizes, **case.settings)
    with seen_as_gpus(sharded):
        trainer = LossTrainer(
            model=model,
            args=arguments,
            train_dataset=case.rows(case.silent) if rows is None else rows,
            eval_dataset=case.rows()[:EVALUATED],
            data_collator=collate,
            loss=loss,
            **case.trainer,
        )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


class Run:
    """Where the results of this process go."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.tensors: dict[str, Tensor] = {}
        self.notes: dict[str, Any] = {}

    def train(self, trainer: Any, prefix: str, **resume: Any) -> list[dict[str, float]]:
        """Train, recording under this prefix."""
        trainer.add_callback(recorder := Recorder(prefix, self.tensors))
        recorder.trainer = trainer
        trainer.train(**resume)
        return recorder.logs

    def case(self, name: str, wrapper: str, split: str) -> None:
        """One run of a case, with its logs and the evaluation after it."""
        prefix = f"{name}/{wrapper}/{split}"
        with tempfile.TemporaryDirectory() as folder:
            trainer = make(CASES[name], wrapper, split, folder)
            self.notes[f"{prefix}/proxies at first"] = [float(part.sum()) for part in trainer.loss.parameters()]
            logs = self.train(trainer, prefix)
            logs.append(trainer.evaluate())
        self.notes[prefix] = logs
        self.notes[f"{prefix}/wrapped"] = type(trainer.model_wrapped).__name__

    def own_means(self) -> None:
        """Each rank divides by its own labels; alone, the rows of each rank as a batch of their own."""
        case = CASES["cross_entropy"]
        changes = {"average_tokens_across_devices": False, "max_steps": 1}
        with tempfile.TemporaryDirectory() as folder:
            if ranks() > 1:
                self.train(make(case, "ddp", "2x2", folder, **changes), "own means")
                return
            rows = case.rows()
            for rank, mine in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
                trainer = make(case, "alone", "4x2", folder, rows=[rows[place] for place in mine], max_steps=1)
                self.train(trainer, f"own means of {rank}")

    def dense(self) -> None:
        """A plain Trainer with a `compute_loss_func`."""
        with tempfile.TemporaryDirectory() as folder:
            fused = make(CASES["cross_entropy"], "ddp", "2x2", folder, max_steps=1)
            trainer = transformers.Trainer(
                fused.model,
                fused.args,
                train_dataset=fused.train_dataset,
                data_collator=collate,
                compute_loss_func=compute_loss("cross_entropy"),
            )
            trainer.loss = fused.loss
            self.train(trainer, "dense")

    def resume(self, name: str, wrapper: str) -> None:
        """Three steps at once, and the third after two from a checkpoint, with other weights at first."""
        changes = {"optim": "adamw_torch", "train_sampling_strategy": "random", "save_strategy": "steps"}
        prefix, folder = f"resume {name}/{wrapper}", str(self.folder / f"{name} {wrapper}")
        whole_run = make(CASES[name], wrapper, "2x2", folder, save_steps=2, **changes)
        self.train(whole_run, f"{prefix}/whole")
        again = make(CASES[name], wrapper, "2x2", folder, save_steps=9, seed=8, **changes)
        self.train(again, f"{prefix}/resumed", resume_from_checkpoint=f"{folder}/checkpoint-2")

    def refusals(self) -> None:
        """What is said where something cannot be done."""
        with tempfile.TemporaryDirectory() as folder:
            proxies = Case(JOINT, deep_classifier, classes)
            memory = Case("supcon", deep_classifier, classes, settings={"memory_size": 8, "embedding_dim": HIDDEN})
            for place, case, wrapper in (("proxies", proxies, "fsdp2"), ("memory", memory, "ddp")):
                try:
                    make(case, wrapper, "4x1", folder)
                except LossmithError as error:
                    self.notes[f"refused {place}"] = str(error)
        model = causal()
        parallelize_module(model, init_device_mesh("cpu", (ranks(),)), {"lm_head": ColwiseParallel()})
        try:
            _head_loss(model, lossmith.loss("focal"), collate(texts()[:ROWS]), 1.0)
        except LossmithError as error:
            self.notes["refused tensor parallel"] = str(error)

    def by_hand(self, name: str) -> None:
        """`fully_shard` around a model whose loss is at its head, in a plain loop."""
        loss, settings, unit, make_model = BY_HAND[name]
        torch.manual_seed(7)
        model, rows = make_model(), texts()[:ROWS]
        count = int((align(collate(rows), shift=True).labels != -100).sum())
        if ranks() > 1:
            mesh = init_device_mesh("cpu", (ranks(),))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            if unit:
                fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=True)
            fully_shard(model, mesh=mesh)
            rows = rows[:3] if dist.get_rank() == 0 else rows[3:]
        items = None if settings else count / ranks()
        _head_loss(model, lossmith.loss(loss, **settings), collate(rows), items)
        for key, parameter in model.named_parameters():
            self.tensors[f"by hand {name}/{key}"] = whole(parameter.grad)


def _head_loss(model: nn.Module, loss: Any, inputs: dict[str, Tensor], items: float | None) -> None:
    labels = align(inputs, shift=True).labels
    HeadLoss(model)(model, inputs, lambda logits: loss(logits, labels, num_items=items)).loss.backward()


def main(folder: str, *names: str) -> None:
    """All cases, or those named."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    run, alone = Run(folder), ranks() == 1
    jobs: dict[str, Callable[[], None]] = {}
    for name, case in CASES.items():
        for wrapper in ("alone",) if alone else case.wrappers:
            for split in list(SPLITS[ranks()])[: 1 if alone or not case.accumulated else 2]:
                jobs[f"{name}/{wrapper}/{split}"] = partial(run.case, name, wrapper, split)
    jobs["own means"] = run.own_means
    jobs |= {f"by hand {name}": partial(run.by_hand, name) for name in BY_HAND}
    if not alone:
        for name, wrapper in RESUMED:
            jobs[f"resume {name}/{wrapper}"] = partial(run.resume, name, wrapper)
        jobs["dense"] = run.dense
        jobs["refusals"] = run.refusals
    for name, job in jobs.items():
        if names and name.partition("/")[0] not in names:
            continue
        try:
            job()
        except Exception:
            run.notes[f"{name}/error"] = traceback.format_exc()
            traceback.print_exc()
    rank = os.environ.get("RANK", "alone")
    save_file(run.tensors, run.folder / f"{rank}.safetensors", metadata={"notes": json.dumps(run.notes)})
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
