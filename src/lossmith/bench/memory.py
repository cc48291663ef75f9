"""Peak memory of forward and backward beyond inputs and gradients."""

import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from lossmith.bench.cases import Case, make_inputs
from lossmith.bench.contestants import Contestant, logits_held, make_step
from lossmith.bench.failures import one_line, out_of_memory
from lossmith.engines import chunk_budget, set_chunk_budget

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CHILD = "from lossmith.bench.memory import _child; _child()"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a measurement of memory found."""

    num_bytes: int | None = None
    """The most that was held at a time, less inputs and gradients; None where that is not known."""
    note: str = ""
    """Why it is not known."""
    runs: bool = True
    """False where it cannot run: too little memory, or an error."""


def too_large(contestant: Contestant, case: Case) -> str | None:
    """Why it is not even tried: Linux would end a process, and perhaps not this one."""
    if case.device != "cpu":
        return None
    free = _available_bytes()
    needed = int(logits_held(contestant) * case.logits_bytes)
    if free is None or needed < 0.9 * free:
        return None
    return f"out of memory: it needs about {needed / 2**30:,.0f} GiB, {free / 2**30:,.0f} GiB are free"


def measure_peak(contestant: Contestant, case: Case) -> Peak:
    """Peak memory: on CUDA what torch allocates, on a CPU resident memory of a process of its own."""
    if case.device == "cuda":
        return _cuda_peak(contestant, case)
    if case.device != "cpu" or not _CLEAR.exists():
        return Peak(note=f"memory is not measured on {case.device} of {sys.platform}")
    task = {
        "contestant": asdict(contestant),
        "case": asdict(case),
        "threads": torch.get_num_threads(),
        "budget": chunk_budget(torch.device(case.device)),
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        return Peak(note=f"out of memory: ended by signal {-done.returncode}", runs=False)
    try:
        return Peak(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return Peak(note=one_line((done.stderr.strip().splitlines() or ["no answer"])[-1]), runs=False)


def _child() -> None:
    """Measure one contestant in this process and print what came of it."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    set_chunk_budget(task["budget"])
    _be_ended_first()
    peak = _resident_peak(Contestant(**task["contestant"]), Case(**task["case"]))
    print(json.dumps(asdict(peak)), flush=True)


def _resident_peak(contestant: Contestant, case: Case) -> Peak:
    try:
        # What a first call loads and allocates for good: libraries, kernels, threads.
        small = replace(case, tokens=64, hidden=64, vocab=2048)
        make_step(contestant, make_inputs(small))()
        step = make_step(contestant, make_inputs(case))
        gc.collect()
        try:
            _CLEAR.write_text("5", encoding="ascii")
        except OSError:
            return Peak(note="memory is not measured: /proc/self/clear_refs cannot be written")
        before = _resident("VmRSS")
        step()
        return Peak(num_bytes=max(0, _resident("VmHWM") - before - case.gradient_bytes))
    except Exception as error:
        return Peak(note=one_line(error), runs=False)


def _cuda_peak(contestant: Contestant, case: Case) -> Peak:
    try:
        inputs = make_inputs(case)
        step = make_step(contestant, inputs)
        # A first call chooses and compiles kernels.
        step()
        inputs.hidden.grad = inputs.weight.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return Peak(num_bytes=max(0, torch.cuda.max_memory_allocated() - before - case.gradient_bytes))
    except Exception as error:
        if out_of_memory(error):
            torch.cuda.empty_cache()
        return Peak(note=one_line(error), runs=False)


def _resident(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found[0].split()[1]) * 1024 if found else None


def _be_ended_first() -> None:
    """Where memory runs out, this process goes and no other."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return
