"""TRL's preference trainers: two gloo ranks under DDP and FSDP2 are one rank, coupled losses included."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from preference_rank_worker import CASES, STEPS
from safetensors import safe_open
from safetensors.torch import load_file

import trl_inputs as made

RUNS = [(text, wrapper) for text, wrappers in CASES.items() for wrapper in wrappers]
WORKER = Path(__file__).with_name("preference_rank_worker.py")


def _start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    given = {**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder)],
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Tensors and notes of one process alone and of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [_start(folder, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    for process in (*ranks, _start(folder)):
        said, _ = process.communicate(timeout=500)
        assert process.returncode == 0, said[-4000:]
    found = {}
    for name in ("alone", "0", "1"):
        path = folder / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            found[name] = load_file(path), json.loads(file.metadata()["notes"])
    return found


@pytest.mark.parametrize(("text", "wrapper"), RUNS)
def test_two_ranks_are_one(text, wrapper, runs):
    key = f"{text}/{wrapper}"
    for name in runs:
        assert isinstance(runs[name][1][key], list), runs[name][1][key]
    wrapped = runs["0"][1][key][-1]["wrapped"]
    assert wrapped == "DistributedDataParallel" if wrapper == "ddp" else wrapped.startswith("FSDP")
    for step in range(STEPS):
        prefix = f"{key}/{step}/"
        wanted, *found = (
            {n.removeprefix(prefix): v for n, v in runs[name][0].items() if n.startswith(prefix)} for name in runs
        )
        assert len(wanted) > 5
        for grads in found:
            made.compare(grads, wanted, tolerance=2e-6)


@pytest.mark.parametrize(("text", "wrapper"), RUNS)
def test_logs_are_those_of_one_rank(text, wrapper, runs):
    key = f"{text}/{wrapper}"
    wanted, *others = (runs[name][1][key][:-1] for name in runs)
    apart = ("runtime", "per_second", "preparation_time", "flos")
    if "lovasz_softmax" in text:
        # A region of a whole evaluation batch is another one on two ranks.
        apart = (*apart, "eval_loss")
    for logs in others:
        assert len(logs) == len(wanted)
        for one, two in zip(wanted, logs, strict=True):
            for name, value in one.items():
                if not name.endswith(apart):
                    assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
