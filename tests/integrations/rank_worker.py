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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.state import DistributedType, PartialState
from peft import LoraConfig, get_peft_model
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
from lossmith.integrations.transformers import LossTrainer

VOCAB, HIDDEN, CLASSES, STEPS, ROWS = 61, 16, 3, 3, 8
LEARNING_RATE = 0.02
SPLITS = {1: {"8x1": (8, 1), "4x2": (4, 2)}, 2: {"4x1": (4, 1), "2x2": (2, 2)}}
"""By number of ranks: name -> rows of a micro-batch on a rank, micro-batches of a step."""
EVALUATED = 11
"""Rows of the evaluation set: no multiple of batch times ranks."""


def causal(kind: str = "LlamaForCausalLM", **settings: Any) -> nn.Module:
    """A Llama whose logits are not all alike."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    return _spread(getattr(transformers, kind)(config))


def tied() -> nn.Module:
    """Input and output embedding are one matrix."""
    return causal(tie_word_embeddings=True)


def adapted() -> nn.Module:
    """LoRA on attention and on the head."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(causal(), config)


def classifier() -> nn.Module:
    """A BERT that classifies texts."""
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _spread(transformers.BertForSequenceClassification(config))


def deep_classifier() -> nn.Module:
    """A Llama that classifies texts."""
    return causal("LlamaForSequenceClassification", num_labels=CLASSES)


def _spread(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model


def texts(silent: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Rows of tokens of uneven lengths, some without labels."""
    draw = torch.Generator().manual_seed(11)
    rows = []
    for place in range(STEPS * ROWS):
        length = int(torch.randint(4, 12, (), generator=draw))
        tokens = torch.randint(3, VOCAB, (length,), generator=draw)
        labels = tokens.masked_fill(torch.rand(length, generator=draw) < 0.4, -100)
        if place in silent:
            labels = torch.full_like(labels, -100)
        rows.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    return rows


def classes(silent: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The same rows with a class each."""
    return [
        {**row, "labels": torch.tensor(-100 if place in silent else (place * place) % CLASSES)}
        for place, row in enumerate(texts())
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch, padded to its own longest row."""
    padding = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.stack([row[name] for row in rows])
        if rows[0][name].ndim == 0
        else nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
        for name, fill in padding.items()
    }


@dataclass(frozen=True)
class Case:
    """A loss, a model, data, and how it is trained."""

    loss: str
    model: Callable[[], nn.Module] = causal
    rows: Callable[..., list[dict[str, Any]]] = texts
    silent: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """For `lossmith.loss`."""
    trainer: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    accumulated: bool = True
    """Whether k micro-batches are one batch."""
    wrappers: tuple[str, ...] = ("ddp", "fsdp2")


SILENT = (4, 5, 6, 7, 10, 11, 14, 15, 18, 19)
"""Under 4x1 all rows of rank 1 in the first step, under 2x2 both its micro-batches in the second, one in the third."""

JOINT = "0.4*cross_entropy + 0.6*soft_triple"
SIZES = {"num_classes": CLASSES, "embedding_dim": HIDDEN}

CASES = {
    "cross_entropy": Case("cross_entropy"),
    "focal tied": Case("focal", tied),
    "mixed sum": Case("0.6*cross_entropy + 0.4*lovasz_softmax", settings={"gather": True}, accumulated=False),
    "lora": Case("cross_entropy", adapted),
    "region": Case("lovasz_softmax", settings={"gather": True}, accumulated=False),
    "region tied": Case("dice", tied, settings={"gather": True}, accumulated=False),
    "region of a sequence": Case("generalized_dice", settings={"region": "sequence"}),
    "checkpointing": Case("focal", arguments={"gradient_checkpointing": True}),
    "silent": Case("cross_entropy", silent=SILENT),
    "average of sequences": Case("cross_entropy", trainer={"average": "sequence"}),
    "joint": Case(JOINT, classifier, classes, silent=(5, 13), arguments={"learning_rate": 1e-3}, wrappers=("ddp",)),
    "metric": Case(
        "0.5*cross_entropy + 0.5*supcon", deep_classifier, classes, settings={"gather": True}, accumulated=False
    ),
    "classifier": Case("focal", deep_classifier, classes, silent=SILENT),
}


RESUMED = (("joint", "ddp"), ("cross_entropy", "fsdp2"))
"""Case and wrapper that are also resumed from a checkpoint."""


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

    def train(self, trainer: LossTrainer, prefix: str, **resume: Any) -> list[dict[str, float]]:
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


BY_HAND: dict[str, tuple[str, dict[str, Any], bool, Callable[[], nn.Module]]] = {
    "row-local, root": ("focal", {}, False, causal),
    "row-local, unit": ("focal", {}, True, causal),
    "row-local, tied": ("focal", {}, False, tied),
    "recomputed, root": ("lovasz_softmax", {"gather": True}, False, causal),
    "recomputed, unit": ("lovasz_softmax", {"gather": True}, True, causal),
    "recomputed, tied": ("lovasz_softmax", {"gather": True}, False, tied),
}
"""Loss, its settings, whether the head is a unit of its own, model."""


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
