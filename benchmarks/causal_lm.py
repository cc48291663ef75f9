"""The bars of causal language models: a training step with LoRA, ours beside transformers' own Trainer.

    python benchmarks/causal_lm.py [--json FILE]               # the bars' shapes, about ten minutes on two cores
    python benchmarks/causal_lm.py --seq 32 --long-seq 64 --probe-seq 32 --repeats 2     # to try the script

Time: every contestant has a model of its own and takes some steps in turn within one process. A step is everything
between two ends of a step (batch, forward, backward, optimiser); the first of a turn does not count, nothing is logged.
Memory: the highest resident memory of one step, less what the process held after loading and a small step, each
contestant in a process of its own. Logits: the largest tensor that a step makes, at more tokens than the model is
wide, so that the output embedding is smaller. Tokens are drawn uniformly, so nearly every label is a class of its own:
the hardest case for Lovász.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lossmith.bench import paired_ratio
from lossmith.bench.machine import commit, machine, versions
from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.loading import add_lora, load_causal_lm
from lossmith.integrations.models import resolve_model
from lossmith.integrations.transformers import LossTrainer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

THEIRS = "transformers Trainer, its cross-entropy"
LOSSES = {
    THEIRS: None,
    "LossTrainer, cross_entropy": "cross_entropy",
    "LossTrainer, Lovász mix": "0.6*cross_entropy + 0.4*lovasz_softmax[answer]",
}
MIX = "LossTrainer, Lovász mix"
TIME_LIMIT = 1.10
MIB = 2**20


class Clock(TrainerCallback):
    """Seconds of each step, from the end of the one before it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        self._since = now


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor with a storage of its own that is made, whatever its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (
            {
                leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
                for leaf in tree_leaves(tree)
                if tensor(leaf)
            }
            for tree in ((args, kwargs), out)
        )
        self.num_bytes = max([self.num_bytes, *(size for place, size in made.items() if place not in given)])
        return out


def tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


class Contestant:
    """A model with LoRA and its trainer."""

    def __init__(self, loss: str | None, options: argparse.Namespace, folder: str):
        network, tokenizer = load_causal_lm(resolve_model(options.model), device=options.device)
        torch.manual_seed(0)
        self.vocab, self.batch = network.config.vocab_size, options.batch
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=options.batch,
            max_steps=1,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=options.device == "cpu",
        )
        self.clock = Clock()
        settings: dict[str, Any] = {
            "model": add_lora(network),
            "args": args,
            "train_dataset": [],
            "data_collator": CompletionCollator(tokenizer.pad_token_id) if loss else Plain(tokenizer.pad_token_id),
            "callbacks": [self.clock],
        }
        self.trainer: Any = Trainer(**settings) if loss is None else LossTrainer(**settings, loss=loss)
        self.trainer.remove_callback(PrinterCallback)

    def train(self, seq: int, steps: int) -> list[float]:
        """Seconds of each of these steps."""
        generator = torch.Generator().manual_seed(seq)
        ids = torch.randint(self.vocab, (self.batch * steps, seq), generator=generator).tolist()
        # Two fifths are the answer, about as in GSM8K.
        rows = [{"input_ids": row, "answer_start": seq * 3 // 5} for row in ids]
        self.trainer.train_dataset, self.trainer.args.max_steps = rows, steps
        self.clock.seconds = []
        self.trainer.train()
        return self.clock.seconds


class Plain(CompletionCollator):
    """Without the mask that only our losses read."""

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        return {name: value for name, value in super().__call__(rows).items() if name != "answer_mask"}


def step_times(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Median seconds of a step in each turn, by contestant; every other turn goes backwards."""
    contestants = {name: Contestant(loss, options, folder) for name, loss in LOSSES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for turn in range(1 + options.repeats):
        for name in list(LOSSES)[:: 1 if turn % 2 else -1]:
            found = statistics.median(contestants[name].train(options.seq, 1 + options.steps)[1:])
            if turn:
                seconds[name].append(found)
        show(f"turn {turn} of {options.repeats}")
    return seconds


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    """Highest memory of a step beyond that of the loaded and warm process, measured in a process of its own."""
    given = {"--model": options.model, "--batch": options.batch, "--long-seq": options.long_seq}
    words = [str(word) for pair in given.items() for word in pair]
    command = [sys.executable, __file__, "--child", name, "--device", options.device, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The process of '{name}' ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return int(done.stdout.splitlines()[-1])


def measure_peak(options: argparse.Namespace, folder: str) -> int:
    """The child's part of `peak_bytes`."""
    contestant = Contestant(LOSSES[options.child], options, folder)
    contestant.train(16, 1)
    gc.collect()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant.train(options.long_seq, 1)
        return torch.cuda.max_memory_allocated() - before
    CLEAR.write_text("5", encoding="ascii")
    before = resident("VmRSS")
    contestant.train(options.long_seq, 1)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def largest_bytes(name: str, options: argparse.Namespace, folder: str) -> int:
    """Bytes of the largest tensor that a step makes: the logits, where they are built."""
    contestant = Contestant(LOSSES[name], options, folder)
    with LargestTensor() as largest:
        contestant.train(options.probe_seq, 1)
    return largest.num_bytes


def bars(found: dict[str, Any]) -> list[str]:
    """A Markdown table: bar, asked, measured, met or missed."""
    lines = ["| bar | asked for | measured | |", "| --- | --- | --- | --- |"]
    seconds, peaks = found["seconds"], found["peak_bytes"]
    for name in list(LOSSES)[1:]:
        ratio = paired_ratio(seconds[name], seconds[THEIRS])
        assert ratio is not None
        limit = TIME_LIMIT if name == MIX else None
        lines.append(
            line(f"{name} / {THEIRS}, time of a step", f"<= {limit:.2f}x" if limit else None, ratio, _met(ratio, limit))
        )
    for name in list(LOSSES)[1:]:
        saved, logits = peaks[THEIRS] - peaks[name], found["logits_bytes"]
        measured = f"{saved / MIB:,.0f} MiB ({peaks[name] / MIB:,.0f} of {peaks[THEIRS] / MIB:,.0f})"
        lines.append(line(f"{name}: peak memory saved", f">= {logits / MIB:,.0f} MiB", measured, saved >= logits))
    probed = found["probe_logits_bytes"]
    for name, size in found["largest_bytes"].items():
        asked, met = (None, None) if name == THEIRS else (f"< {probed / MIB:,.0f} MiB, the logits", size < probed)
        lines.append(line(f"{name}: largest tensor of a step", asked, f"{size / MIB:,.0f} MiB", met))
    return lines


def _met(ratio: Any, limit: float | None) -> bool | None:
    return None if limit is None else ratio.median <= limit


def line(what: str, asked: str | None, measured: object, met: bool | None) -> str:
    verdict = "" if met is None else "met" if met else "**missed**"
    return f"| {what} | {asked or ''} | {measured} | {verdict} |"


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Everything, with where it was measured."""
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/causal_lm.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(options.device),
        "versions": versions(),
        "model": options.model,
        "shape": {name: getattr(options, name) for name in ("batch", "seq", "long_seq", "probe_seq")},
    }
    parts: dict[str, Callable[[str], Any]] = {
        "largest_bytes": lambda name: largest_bytes(name, options, folder),
        "peak_bytes": lambda name: peak_bytes(name, options),
    }
    for part, of in parts.items():
        found[part] = {}
        for name in LOSSES:
            show(f"{part}: {name}")
            found[part][name] = of(name)
    found["seconds"] = step_times(options, folder)
    vocab = load_causal_lm(resolve_model(options.model))[0].config.vocab_size
    found["logits_bytes"], found["probe_logits_bytes"] = (
        options.batch * seq * vocab * 4 for seq in (options.long_seq, options.probe_seq)
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=128, help="tokens of a row where time is measured")
    parser.add_argument("--long-seq", type=int, default=1024, help="the same for memory")
    parser.add_argument("--probe-seq", type=int, default=256, help="the same for the search for logits")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn that count")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--child", choices=list(LOSSES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.child:
            print(measure_peak(options, folder))
            return
        found = measure(options, folder)
    print("\n".join(bars(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
