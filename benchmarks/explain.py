"""Seconds of `lossmith explain` on three losses: 1,000 examples looked at, tokens of 64 attributed, on two CPU cores.

    python benchmarks/explain.py --study runs/mr --out runs/explain-benchmark

The study must hold MR with all-MiniLM-L6-v2; it is made here first where the folder is empty. Training again is timed
apart, since it is that of `lossmith compare`. The bar is 300 seconds for all looks together, on a machine that does
nothing else.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from lossmith.bench.machine import machine
from lossmith.studies import compare, make_config
from lossmith.studies import explained as looks
from lossmith.studies.explained import Unheard, explain_study

LOSSES = ("cross_entropy", "0.4*cross_entropy + 0.6*soft_triple", "0.4*cross_entropy + 0.6*supcon")
BAR_SECONDS = 300.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--study", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    config = make_config({"task": "mr", "losses": list(LOSSES), "seeds": 1, "shots_total": 20, "device": "cpu"})
    compare(config, given.study, listener=Unheard())
    training = [0.0]
    train = looks.train_and_test

    def timed(*args: object, **kwargs: object) -> object:
        begun = time.perf_counter()
        try:
            return train(*args, **kwargs)
        finally:
            training[0] += time.perf_counter() - begun

    looks.train_and_test = timed
    begun, used = time.perf_counter(), time.process_time()
    study = explain_study(given.study, seeds=1, examples=1000, attributed=64, out=given.out)
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    errors = [
        row.relative_completeness_error for row in study.faithfulness.rows if row.method == "integrated_gradients"
    ]
    found = {
        "seconds": round(wall - training[0], 1),
        "training_seconds": round(training[0], 1),
        "cpu_seconds": round(cpu, 1),
        "bar_seconds": BAR_SECONDS,
        "losses": len(study.losses),
        "examples": len(study.samples[study.seeds[0]].rows),
        "attributed": len(study.samples[study.seeds[0]].attributed),
        "relative_completeness_error": [round(error, 4) for error in errors],
        "threads": given.threads,
        "machine": machine("cpu"),
    }
    text = json.dumps(found, indent=2, default=str)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
