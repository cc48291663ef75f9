"""Generation beside a bare batched loop around transformers' `generate`: the same prompts, batch size and new tokens.

    python benchmarks/generation.py --rows 200 --batch-size 16       # the bar: at most 1.3 times the bare loop
    python benchmarks/generation.py --rows 16 --lora                 # adapters within the layers, merged and not

The turns are interleaved, and what counts is the median of their ratios. No token ends an answer here, so that both
write all of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lossmith.integrations.causal_lm.encoding import PromptFormat
from lossmith.integrations.causal_lm.generation import generate
from lossmith.integrations.causal_lm.loading import add_lora, load_causal_lm
from lossmith.integrations.models import resolve_model
from lossmith.tasks import load_completion_task

LIMIT = 1.3
"""Seconds of ours over those of the bare loop."""
NEVER = (10**9,)
"""A stop token that no vocabulary holds."""


@torch.no_grad()
def bare(model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int, new_tokens: int) -> None:
    """The least that batched generation takes: pad on the left, generate, decode, in file order."""
    for start in range(0, len(prompts), batch_size):
        batch = {"input_ids": prompts[start : start + batch_size]}
        padded = tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(model.device)
        written = model.generate(
            **padded, max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(NEVER),
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        tokenizer.batch_decode(written[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lora", action="store_true", help="Put LoRA on all linear layers.")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model, tokenizer = load_causal_lm(resolve_model(asked.model))
    if asked.lora:
        torch.manual_seed(0)
        model = add_lora(model).eval()
    form = PromptFormat(tokenizer)
    problems = load_completion_task("gsm8k").test[: asked.rows]
    prompts = form.many_prompt_ids([(problem.prompt, problem.question) for problem in problems])

    def ours(merge: bool) -> None:
        generate(
            model, tokenizer, prompts, max_new_tokens=asked.new_tokens, batch_size=asked.batch_size,
            stop_token_ids=NEVER, merge=merge,
        )  # fmt: skip

    contestants = {"bare": lambda: bare(model, tokenizer, prompts, asked.batch_size, asked.new_tokens)}
    contestants["ours"] = lambda: ours(False)
    if asked.lora:
        contestants["ours, merged"] = lambda: ours(True)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(asked.turns):
        for name, call in contestants.items():
            taken[name].append(seconds(call))
            print(f"turn {turn + 1}: {name} {taken[name][-1]:.1f} s", flush=True)
    ratios = {
        name: statistics.median(own / base for own, base in zip(values, taken["bare"], strict=True))
        for name, values in taken.items()
        if name != "bare"
    }
    for name, ratio in ratios.items():
        print(f"{name} / bare: {ratio:.3f} (bar {LIMIT})")
    if asked.json is not None:
        settings = {name: value for name, value in vars(asked).items() if name != "json"}
        asked.json.write_text(json.dumps({"settings": settings, "seconds": taken, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
