"""What a few-shot run takes, and what a joint objective adds to a step of cross-entropy.

    python benchmarks/few_shot.py                # bars: a run in 20 s, a joint step within 1.05 of cross-entropy

The run is that of `recipes/few_shot/mr.yaml` (20 texts) with all 1,066 test sentences, from fresh weights to a record.
Steps of all losses are interleaved on one batch of 20 MR sentences, forward, backward and optimiser, and each ratio is
the median over the turns of seconds over those of cross-entropy in the same turn.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lossmith.studies import make_config
from lossmith.studies.classification import open_classification
from lossmith.studies.recipes import read_recipe
from lossmith.studies.run import run_block

RECIPE = Path(__file__).parents[1] / "recipes" / "few_shot" / "mr.yaml"
RUN_LIMIT = 20.0
"""Seconds of one run."""
STEP_LIMIT = 1.05
"""Seconds of a joint step over those of one with cross-entropy."""


def run_seconds(setting: Any, text: str) -> dict[str, float]:
    """Wall time of one run, and its parts."""
    with tempfile.TemporaryDirectory() as workspace:
        begun = time.perf_counter()
        record = run_block(setting, text, 0, Path(workspace) / "run")
        whole = time.perf_counter() - begun
    return {"seconds": whole, "train_seconds": record.train_seconds, "evaluation_seconds": record.evaluation_seconds}


def step_ratios(setting: Any, losses: list[str], turns: int) -> dict[str, float]:
    """Median ratio of a step's time to that of cross-entropy in the same turn."""
    steppers = {text: _stepper(setting, text) for text in losses}
    for step in steppers.values():
        step()
    seconds: dict[str, list[float]] = {text: [] for text in losses}
    for turn in range(turns):
        # Another order each turn, so that no loss always comes first.
        for text in losses[turn % len(losses) :] + losses[: turn % len(losses)]:
            begun = time.perf_counter()
            steppers[text]()
            seconds[text].append(time.perf_counter() - begun)
    baseline = seconds["cross_entropy"]
    return {
        text: statistics.median(own / ours for own, ours in zip(taken, baseline, strict=True))
        for text, taken in seconds.items()
    }


def _stepper(setting: Any, text: str) -> Any:
    """One optimiser step of the trainer of a run, on its first batch."""
    trainer = setting.prepare(text, 0, Path(tempfile.mkdtemp()), lambda share: None)
    optimizer = trainer.create_optimizer()
    trainer.state.max_steps = 100
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()

    def step() -> None:
        _, divisors = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        trainer.compute_loss(model, dict(batch), num_items_in_batch=divisors).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = make_config(read_recipe(RECIPE) | {"device": "cpu", "test_examples": None})
    setting = open_classification(config)
    joint = next(text for text in config.all_losses if "soft_triple" in text)
    runs = [run_seconds(setting, text) for _ in range(given.runs) for text in ("cross_entropy", joint)]
    ratios = step_ratios(setting, list(config.all_losses), given.turns)
    longest = max(run["seconds"] for run in runs)
    for run in runs:
        print({name: round(value, 1) for name, value in run.items()})
    print(f"longest run {longest:.1f} s (bar {RUN_LIMIT:.0f})")
    for text, ratio in ratios.items():
        print(f"{ratio:.3f}  {text}{'' if ratio <= STEP_LIMIT else f'  above the bar of {STEP_LIMIT}'}")
    if given.json:
        given.json.write_text(json.dumps({"runs": runs, "ratios": ratios}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
