"""The bars of preference training: a step of DPO, ours beside TRL's own trainer, and every objective beside dpo.

    python benchmarks/preference_step.py [--json FILE]                     # SmolLM2-135M, 4 pairs of up to 256 tokens
    python benchmarks/preference_step.py --objectives --layers 2 --tokens 64 --repeats 30   # every objective beside dpo
    python benchmarks/preference_step.py --tiny --steps 2 --repeats 2      # to try the script

Time: every contestant has a model of its own (whole weights, float32, no gradient checkpointing) and takes some
steps in turn within one process, so that what else the machine does meets all alike; a step is everything between two
ends of a step, the first of a turn does not count. Without a cache, TRL and we compute the reference's
log-probabilities of as many pairs as a step has beside each step; with it they are there before training (TRL's own
`precompute_ref_log_probs` too). Memory: the highest resident memory of one step, less what the process held before,
each contestant in a process of its own. Ratios are paired by turn: their median and range.
"""

import argparse
import copy
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as TheirTrainer

import lossmith
from lossmith.bench import paired_ratio
from lossmith.bench.machine import commit, machine, versions
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import resolve_model
from lossmith.integrations.trl import DPOTrainer

THEIRS, THEIRS_CACHED = "trl.DPOTrainer, reference beside the step", "trl.DPOTrainer, reference before training"
OURS, OURS_CACHED = "DPOTrainer, reference beside the step", "DPOTrainer, reference cached"
LIMITS = {OURS: 0.85, OURS_CACHED: 0.7}
"""Most of the time of a step of TRL's with its reference beside it."""
OBJECTIVE_LIMIT = 1.03
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
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


def network(tiny: bool) -> tuple[Any, Any]:
    """Model and tokenizer; a tiny random model where the script is only tried."""
    loaded, tokenizer = load_causal_lm(resolve_model("embedded:smollm2-135m"))
    if tiny:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=loaded.config.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=512,
        )  # fmt: skip
        return LlamaForCausalLM(config), tokenizer
    return loaded, tokenizer


def pairs(tokenizer: Any, count: int, tokens: int) -> Dataset:
    """Pairs of random words, prompt and answer together between half of `tokens` and `tokens`."""
    draw = random.Random(0)
    words = [word for word in map(tokenizer.decode, range(300, 2300)) if word.startswith(" ")]

    def text(low: int, high: int) -> str:
        return "".join(draw.choice(words) for _ in range(draw.randint(low, high)))

    third = tokens // 3
    answer = (third, 2 * third - 8)
    return Dataset.from_list(
        [{"prompt": text(third // 2, third), "chosen": text(*answer), "rejected": text(*answer)} for _ in range(count)]
    )


def arguments(folder: str, options: argparse.Namespace, *, cached: bool, theirs: bool) -> DPOConfig:
    """The same for all contestants."""
    return DPOConfig(
        output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
        report_to="none", disable_tqdm=True, per_device_train_batch_size=options.pairs, max_length=options.tokens,
        max_steps=options.steps, logging_strategy="no", save_strategy="no", learning_rate=1e-6, beta=0.1,
        precompute_ref_log_probs=cached and theirs, train_sampling_strategy="sequential",
    )  # fmt: skip


def contestant(name: str, model: Any, tokenizer: Any, data: Dataset, folder: str, options: argparse.Namespace) -> Any:
    """A trainer of its own, made."""
    theirs, cached = name.startswith("trl."), name not in (THEIRS, OURS)
    args = arguments(folder, options, cached=cached, theirs=theirs)
    given = {"model": model, "args": args, "train_dataset": data, "processing_class": tokenizer}
    if theirs:
        trainer: Any = TheirTrainer(ref_model=None if cached else copy.deepcopy(model), **given)
    else:
        loss = "dpo(beta=0.1)" if name.startswith("DPO") else name
        trainer = DPOTrainer(loss=loss, reference_cache=f"{folder}/references-{abs(hash(name))}", **given)
    trainer.remove_callback(PrinterCallback)
    if name == OURS:
        _beside(trainer, copy.deepcopy(model).eval())
    return trainer


def _beside(trainer: Any, reference: Any) -> None:
    """Let a trainer with stored log-probabilities compute them once more beside every step, as without a cache."""
    from lossmith.integrations.lm_head import HeadLoss
    from lossmith.integrations.reference import completion_logps

    head, compute_loss = HeadLoss(reference), trainer.compute_loss

    def with_reference(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        found = trainer.reference_logps(lambda given: completion_logps(head, reference, given), batch)
        return compute_loss(model, {**inputs, **found}, *args, **kwargs)

    trainer.compute_loss = with_reference


def turn(trainer: Any) -> list[float]:
    """Seconds of the steps of one training, without the first."""
    trainer.add_callback(clock := Clock())
    trainer.train()
    trainer.remove_callback(clock)
    gc.collect()
    return clock.seconds[1:]


def measured(
    names: Sequence[str], loaded: tuple[Any, Any], options: argparse.Namespace, *, own_model: bool = True
) -> dict[str, list[float]]:
    """Name -> the mean seconds of a step in each turn, the contestants one after the other within a turn."""
    model, tokenizer = loaded
    data = pairs(tokenizer, options.pairs * (options.steps + 1), options.tokens)
    with tempfile.TemporaryDirectory(prefix="lossmith-") as folder:
        own = copy.deepcopy if own_model else lambda model: model
        trainers = {name: contestant(name, own(model), tokenizer, data, folder, options) for name in names}
        found: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(options.repeats):
            for name in names if repeat % 2 == 0 else reversed(names):
                seconds = turn(trainers[name])
                found[name].append(sum(seconds) / len(seconds))
    return found


def memory(name: str, options: argparse.Namespace) -> float:
    """Peak MiB of one contestant's steps above what its process holds before them."""
    model, tokenizer = network(options.tiny)
    data = pairs(tokenizer, options.pairs * 2, options.tokens)
    with tempfile.TemporaryDirectory(prefix="lossmith-") as folder:
        trainer = contestant(name, model, tokenizer, data, folder, options)
        trainer.args.max_steps = 1
        gc.collect()
        before = _status("VmRSS")
        CLEAR.write_text("5")
        trainer.train()
        return _status("VmHWM") - before


def _status(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def in_own_process(name: str, words: Sequence[str]) -> float:
    """As `memory`, in a process of its own."""
    told = subprocess.run(
        [sys.executable, __file__, "--memory-of", name, *words], check=True, capture_output=True, text=True
    )
    return float(told.stdout.strip().split("\n")[-1])


def trainers_compared(options: argparse.Namespace) -> dict[str, Any]:
    """Our trainer beside TRL's: time and memory of a step."""
    names = [THEIRS, THEIRS_CACHED, OURS, OURS_CACHED]
    seconds = measured(names, network(options.tiny), options)
    steps: dict[str, dict[str, Any]] = {name: {"seconds": values} for name, values in seconds.items()}
    for name in names:
        ratio = paired_ratio(seconds[name], seconds[THEIRS])
        print(f"{name}: {sum(seconds[name]) / len(seconds[name]):.3f} s a step, ratio to TRL {ratio}", flush=True)
        limit = LIMITS.get(name)
        steps[name] |= {"ratio": str(ratio), "limit": limit}
        if limit is not None and ratio is not None:
            steps[name]["met"] = ratio.median <= limit
    words = [word for word in sys.argv[1:] if word == "--tiny"]
    words += ["--pairs", str(options.pairs), "--tokens", str(options.tokens)]
    logits = 2 * options.pairs * options.tokens * network(options.tiny)[0].config.vocab_size * 4 / MIB
    for name in (THEIRS_CACHED, OURS_CACHED):
        steps[name]["peak_mib"] = in_own_process(name, words)
        print(f"{name}: {steps[name]['peak_mib']:.0f} MiB above the start (all logits: {logits:.0f} MiB)", flush=True)
    saved = steps[THEIRS_CACHED]["peak_mib"] - steps[OURS_CACHED]["peak_mib"]
    met = saved >= logits and all(step.get("met", True) for step in steps.values())
    return {"steps": steps, "logits_mib": logits, "met": met}


def objectives_compared(options: argparse.Namespace) -> dict[str, Any]:
    """Every objective beside dpo, in turn on one model: of a few layers, so that what is not the model counts more."""
    model, tokenizer = network(options.tiny)
    if options.layers:
        model.model.layers = model.model.layers[: options.layers]
        model.config.num_hidden_layers = options.layers
    listed = options.objectives or [str(r) for r in lossmith.list_losses("preference") if str(r) != "dpo"]
    own = own_seconds(["dpo", *listed], options.pairs)
    most = max(listed, key=own.__getitem__)
    print(
        f"the loss itself: dpo {1e3 * own['dpo']:.2f} ms, {most} {1e3 * own[most]:.2f} ms, the most of {len(listed)}",
        flush=True,
    )
    if not options.repeats:
        return {"own_seconds": own, "met": True}
    seconds = measured(["dpo", *listed], (model, tokenizer), options, own_model=False)
    found = {}
    for text in listed:
        ratio, quartile = paired_ratio(seconds[text], seconds["dpo"]), quick(seconds[text]) / quick(seconds["dpo"])
        found[text] = {"ratio": str(ratio), "lower_quartile": quartile, "limit": OBJECTIVE_LIMIT}
        print(f"{text}: ratio to dpo {ratio}, of lower quartiles {quartile:.3f}x (bar {OBJECTIVE_LIMIT})", flush=True)
    print(f"dpo: {quick(seconds['dpo']):.3f} s a step (lower quartile of {options.repeats} turns)")
    met = all(each["lower_quartile"] <= OBJECTIVE_LIMIT for each in found.values())
    return {"objectives": found, "seconds": seconds, "own_seconds": own, "met": met}


def own_seconds(listed: Sequence[str], pairs: int, repeats: int = 300) -> dict[str, float]:
    """What a loss itself takes, forward and backward over the log-probabilities of a batch: all that differs.

    In turn, and the lower quartile of processor time.
    """
    draw = torch.Generator().manual_seed(0)
    given = {
        f"{side}_logps": (torch.randn(pairs, generator=draw) * 5 - 100).requires_grad_(not side.startswith("ref"))
        for side in ("chosen", "rejected", "ref_chosen", "ref_rejected")
    }
    given |= {f"{side}_lengths": torch.randint(20, 200, (pairs,), generator=draw) for side in ("chosen", "rejected")}
    losses = {text: lossmith.loss(text) for text in listed}
    seconds: dict[str, list[float]] = {text: [] for text in listed}
    for _ in range(repeats):
        for text, module in losses.items():
            begun = time.process_time()
            module(**given).backward()
            seconds[text].append(time.process_time() - begun)
    return {text: quick(values) for text, values in seconds.items()}


def quick(seconds: Sequence[float]) -> float:
    """The lower quartile: what else the machine does makes turns longer, never shorter."""
    return statistics.quantiles(seconds, n=4)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a tiny random model")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn, the first of which does not count")
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns of each contestant; 0 with --objectives: no turns"
    )
    parser.add_argument(
        "--objectives", nargs="*", help="these objectives beside dpo instead; all preference losses without names"
    )
    parser.add_argument("--layers", type=int, help="with --objectives: so many layers of the model")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.memory_of:
        print(memory(options.memory_of, options))
        return
    result: dict[str, Any] = {
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": versions(),
        "commit": commit(),
    }
    result |= trainers_compared(options) if options.objectives is None else objectives_compared(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if result["met"] else 1)


if __name__ == "__main__":
    main()
