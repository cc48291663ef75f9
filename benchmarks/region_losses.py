"""Forward and backward of region losses against plain cross-entropy on the same logits.

    python benchmarks/region_losses.py [--tokens 4096] [--vocab 50000] [--repeats 7]

Labels are drawn by Zipf's law, as words are, and uniformly (nearly every token its own class: the worst case).
"""

import argparse
import os
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F

import lossmith
from lossmith.bench import interleaved, ratio_line

LOSSES = ("cross_entropy", "lovasz_softmax", "generalized_dice", "dice", "focal_tversky")
BASELINE = "F.cross_entropy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(options.tokens, options.vocab, generator=generator)).requires_grad_()
    ranks = torch.arange(1, options.vocab + 1, dtype=torch.float64)
    draws = {
        "Zipf": torch.multinomial(1 / ranks, options.tokens, replacement=True, generator=generator),
        "uniform": torch.randint(options.vocab, (options.tokens,), generator=generator),
    }
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {options.tokens} tokens, {options.vocab} classes, float32"
    )
    for name, labels in draws.items():
        print(f"\n{name} labels, {len(labels.unique())} classes present")
        runs = {BASELINE: _step(F.cross_entropy, logits, labels)}
        runs |= {text: _step(lossmith.loss(text), logits, labels) for text in LOSSES}
        seconds = interleaved(runs, repeats=options.repeats)
        for run in runs:
            print("  " + ratio_line(run, seconds, BASELINE))


def _step(loss: Callable, logits: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        logits.grad = None
        loss(logits, labels).backward()

    return step


if __name__ == "__main__":
    main()
