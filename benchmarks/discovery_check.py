"""Bars of checking candidates: milliseconds of a check, candidates a second, the interpreter against plain functions.

    OMP_NUM_THREADS=1 python benchmarks/discovery_check.py

All times are CPU time of this process, medians; on a busy machine they are upper bounds.
"""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import lossmith
from lossmith.discovery import check, compile_source
from lossmith.discovery.compiler import CompileError
from lossmith.discovery.identity import fingerprint
from lossmith.discovery.program import torch_function

HEAD = (
    "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):\n"
    "    rho = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)\n"
    "    x = beta * rho\n"
)
PIECES = (
    "F.softplus(-{a})", "torch.exp(-{a})", "torch.relu({c} - {a})", "torch.sigmoid({c} * {a})", "torch.tanh({a})",
    "torch.square({a} - {c})", "torch.where({a} > {c}, {b}, {a})", "torch.abs({a} - {b})", "torch.clamp({a}, min={c})",
    "{c} * {a} + {b}", "{a} * {b}", "{a} - {c} * {b}", "torch.log1p(torch.square({a}))", "({a} < {c}).float() * {b}",
    "torch.atan({a})", "{a} * torch.sigmoid(rho.std() * {c})", "{a}.detach() * {b}", "torch.maximum({a}, {c} * {b})",
)  # fmt: skip


def candidate(draw: random.Random) -> str:
    """A varied candidate of three to seven lines, as a proposer would render it."""
    names = ["x", "rho", "(chosen_logps - ref_chosen_logps)", "(ref_rejected_logps - rejected_logps)"]
    lines = []
    for place in range(draw.randint(2, 5)):
        piece = draw.choice(PIECES)
        a, b, c = draw.choice(names), draw.choice(names), round(draw.uniform(0.05, 2), 3)
        lines.append(f"    v{place} = {piece.format(a=a, b=b, c=c)}")
        names.append(f"v{place}")
    return HEAD + "\n".join(lines) + f"\n    return F.softplus(-x) + 0.1 * {names[-1]} * {draw.choice(names)}\n"


def cpu(call: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def check_ms(count: int = 60) -> float:
    draw = random.Random(1)
    sources = [candidate(draw) for _ in range(count)]
    check(sources[0])
    return 1000 * statistics.median(cpu(lambda source=source: check(source), 1) for source in sources)


def candidates_per_second(chunks: int = 12, count: int = 250) -> dict[str, float]:
    """Source to key to fingerprint, one candidate after the other and every one another: the median of some chunks."""
    draw = random.Random(2)
    compile_source(candidate(draw)).key  # noqa: B018  what is set up once
    keys: set[str] = set()
    spent: list[tuple[float, ...]] = []
    characters = 0
    for _ in range(chunks):
        sources = [candidate(draw) for _ in range(count)]
        characters += sum(map(len, sources))
        stages = [0.0, 0.0, 0.0]
        for source in sources:
            start = time.process_time()
            program = compile_source(source)
            parsed = time.process_time()
            keys.add(program.key)
            named = time.process_time()
            fingerprint(program)
            done = time.process_time()
            for place, seconds in enumerate((parsed - start, named - parsed, done - named)):
                stages[place] += seconds / count
        spent.append((sum(stages), *stages))
    whole, *stages = (statistics.median(column) for column in zip(*spent, strict=True))
    return {
        "candidates_per_second": round(1 / whole),
        "in_the_fastest_chunk": round(1 / min(spent)[0]),
        **{
            f"{name}_us": round(1e6 * seconds)
            for name, seconds in zip(("parse", "key", "fingerprint"), stages, strict=True)
        },
        "different_keys": len(keys),
        "characters": round(characters / (chunks * count)),
    }


def lrml(c, r, rc, rr, beta=0.05):
    rho = (c - r) - (rc - rr)
    x = beta * rho
    s = torch.sigmoid(rho)
    return (1 - s) * -F.logsigmoid(x) + s * torch.exp(-x)


def dpo(c, r, rc, rr, beta=0.1):
    return -F.logsigmoid(beta * ((c - r) - (rc - rr)))


def hinge(c, r, rc, rr, beta=0.1):
    return torch.relu(1 - beta * ((c - r) - (rc - rr)))


def aql(c, r, rc, rr, beta=0.05):
    rho = (c - r) - (rc - rr)
    x = beta * rho
    m = 0.5 + 0.01 * (torch.sigmoid(rho.mean()) - 0.5)
    q = torch.sigmoid(-beta * (rho - m))
    return q * -F.logsigmoid(x) + (1 - q) * F.relu(1 - x)


BODIES = {
    "dpo": (dpo, "    return -F.logsigmoid(x)\n", 0.1),
    "hinge": (hinge, "    return torch.relu(1 - x)\n", 0.1),
    "lrml": (lrml, "    s = torch.sigmoid(rho)\n    return (1 - s) * -F.logsigmoid(x) + s * torch.exp(-x)\n", 0.05),
    "aql": (
        aql,
        "    m = 0.5 + 0.01 * (torch.sigmoid(rho.mean()) - 0.5)\n    q = torch.sigmoid(-beta * (rho - m))\n"
        "    return q * -F.logsigmoid(x) + (1 - q) * F.relu(1 - x)\n",
        0.05,
    ),
}  # fmt: skip


def interpreter_ratio(name: str, items: int = 16_384, repeats: int = 150) -> float:
    """Forward and backward of the program over the handwritten function, interleaved; ratio of medians."""
    hand, body, beta = BODIES[name]
    ours = torch_function(compile_source(HEAD.replace("beta=0.1", f"beta={beta}") + body))
    generator = torch.Generator().manual_seed(0)
    inputs = [10 * torch.randn(items, generator=generator) - 50 for _ in range(4)]
    for tensor in inputs[:2]:
        tensor.requires_grad_()

    def step(function: Callable[..., torch.Tensor]) -> None:
        function(*inputs).mean().backward()

    torch.testing.assert_close(ours(*inputs), hand(*inputs))
    times: dict[str, list[float]] = {"ours": [], "hand": []}
    for turn in range(repeats + 20):
        for key, function in (("ours", ours), ("hand", hand)):
            start = time.process_time()
            step(function)
            if turn >= 20:
                times[key].append(time.process_time() - start)
    return statistics.median(times["ours"]) / statistics.median(times["hand"])


def refusals() -> dict[str, dict[str, float]]:
    """Milliseconds and growth of the resident memory for the two bombs of the bar."""
    bombs = {
        "200,000 terms": HEAD + "    return " + "+".join(["x"] * 200_000) + "\n",
        "2^60 nodes": HEAD + "    x = x + x\n" * 60 + "    return x\n",
    }
    found = {}
    for name, source in bombs.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        try:
            compile_source(source)
            sys.exit(f"{name} was accepted")
        except CompileError as error:
            if error.category != "too-large":
                raise
        spent = 1000 * (time.process_time() - start)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found[name] = {"ms": round(spent, 2), "mib": round(grown, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Also write the numbers there.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = {
        "lossmith": lossmith.__version__,
        "refused": refusals(),
        "check_ms": round(check_ms(), 2),
        **candidates_per_second(),
        "interpreter_ratio": {name: round(interpreter_ratio(name), 3) for name in BODIES},
    }
    bars = {
        "refused in 100 ms and 200 MB": all(b["ms"] < 100 and b["mib"] < 200 for b in numbers["refused"].values()),
        "check under 20 ms": numbers["check_ms"] < 20,
        "2,000 candidates a second": numbers["candidates_per_second"] >= 2000,
        "interpreter within 1.2": max(numbers["interpreter_ratio"].values()) <= 1.2,
    }
    print(json.dumps({**numbers, "bars": bars}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({**numbers, "bars": bars}, indent=1) + "\n")
    sys.exit(0 if all(bars.values()) else 1)


if __name__ == "__main__":
    main()
