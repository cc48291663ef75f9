"""Time and peak memory of metric losses, forward and backward, as the batch grows.

    python benchmarks/metric_reach.py [--rows 2048 8192 16384 32768] [--dim 384] [--losses supcon nt_xent]
    python benchmarks/metric_reach.py --losses normalized_softmax soft_triple --classes 20000 --rows 16384
    python benchmarks/metric_reach.py --limit-gib 8     # address space of each process; pytorch-metric-learning's too

Each measurement is its own process; the memory is the most that the process held, less what it held before the loss.
Four rows per class (`--classes` for losses with proxies). The table of all similarities of 16,384 rows alone would be
1 GiB in float32, of 32,768 rows 4 GiB. Beside supcon and nt_xent runs the loss of pytorch-metric-learning of the same
value, where that package is there; what runs out of memory below the limit is said so. On a busy machine compare the
seconds of work (user and system time of the process), not those of the clock.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

import lossmith

OTHERS = {"supcon": "SupConLoss", "nt_xent": "NTXentLoss"}
"""Losses of pytorch-metric-learning with the same formula and defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2048, 8192, 16_384, 32_768])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--centers", type=int, default=1)
    parser.add_argument("--losses", nargs="+", default=["supcon", "nt_xent"])
    parser.add_argument("--limit-gib", type=float, default=8.0)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return _measure(options.one[0], int(options.one[1]), options)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, dim {options.dim},")
    print(f"at most {options.limit_gib:g} GiB of address space", flush=True)
    for name in options.losses:
        for rows in options.rows:
            _run(name, rows)
            if name in OTHERS and find_spec("pytorch_metric_learning"):
                _run(f"pml:{name}", rows)
    return None


def _run(name: str, rows: int) -> None:
    done = subprocess.run([sys.executable, *sys.argv, "--one", name, str(rows)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        asked = re.search(r"tried to allocate \d+ bytes", done.stderr)
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"  {name:18s} {rows:6d} rows   fails: {asked[0] if asked else last[:100]}", flush=True)


def _measure(name: str, rows: int, options: argparse.Namespace) -> None:
    limit = int(options.limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(rows, options.dim, generator=generator).requires_grad_()
    loss, labels = _loss(name, rows, options)
    loss(embeddings[:8], labels[:8]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    value = loss(embeddings, labels)
    value.backward()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    more = (after.ru_maxrss - before.ru_maxrss) / 1024
    print(
        f"  {name:18s} {rows:6d} rows   {seconds:8.2f} s   {work:8.2f} s of work   {more:8.0f} MiB   "
        f"loss {value.item():.6f}",
        flush=True,
    )


def _loss(name: str, rows: int, options: argparse.Namespace) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    labels = torch.arange(rows) // 4
    if name.startswith("pml:"):
        from pytorch_metric_learning import losses

        return getattr(losses, OTHERS[name[4:]])(), labels
    record = lossmith.objectives.get_record(name)
    if not record.proxy_shape:
        return lossmith.loss(name), labels
    torch.manual_seed(1)  # Another one than the embeddings': the same numbers would be found at once.
    sizes = {"num_classes": options.classes, "embedding_dim": options.dim}
    if "centers_per_class" in record.hyperparameters:
        sizes["centers_per_class"] = options.centers
    return lossmith.loss(name, **sizes), torch.arange(rows) % options.classes


if __name__ == "__main__":
    main()
