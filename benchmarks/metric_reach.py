"""Time and peak memory of in-batch metric losses, forward and backward, as the batch grows.

    python benchmarks/metric_reach.py [--rows 2048 8192 32768] [--dim 384] [--losses supcon nt_xent]

Each measurement is its own process; the memory is the most that the process held, less what it held before the loss.
Four rows per class. The table of all similarities of 32,768 rows alone would be 4 GiB in float32.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

import torch

import lossmith


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2048, 8192, 32_768])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--losses", nargs="+", default=["supcon", "nt_xent"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return _measure(options.losses[0], options.rows[0], options.dim)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, dim {options.dim}")
    for name in options.losses:
        for rows in options.rows:
            command = [
                sys.executable,
                __file__,
                "--one",
                "--losses",
                name,
                "--rows",
                str(rows),
                "--dim",
                str(options.dim),
            ]
            subprocess.run(command, check=True)
    return None


def _measure(name: str, rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(rows, dim, generator=generator).requires_grad_()
    labels = torch.arange(rows) // 4
    loss = lossmith.loss(name)
    loss(embeddings[:8], labels[:8]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    value = loss(embeddings, labels)
    value.backward()
    seconds = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"  {name:18s} {rows:6d} rows   {seconds:8.2f} s   {more:8.0f} MiB   loss {value.item():.6f}", flush=True)


if __name__ == "__main__":
    main()
