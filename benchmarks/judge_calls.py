"""How near asking a judge comes to the ideal, calls / concurrency * latency, against a server of fixed latency.

    python benchmarks/judge_calls.py --calls 1000 --concurrency 16 --latency-ms 50

The server is a process of its own on 127.0.0.1. A second pass reads everything from the store. Exits with 1 where the
ratio is above `--bar`.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def serve(latency_s: float, pipe: Any) -> None:
    from judge_server import JudgeServer

    server = JudgeServer(lambda body: "A fair answer.\n\nRating: [[7]]", latency_s=latency_s)
    pipe.send(server.base_url)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bar", type=float, default=1.3)
    chosen = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(chosen.latency_ms / 1000, theirs), daemon=True
    )
    process.start()
    base_url = ours.recv()
    ideal = chosen.calls / chosen.concurrency * chosen.latency_ms / 1000
    ratios = [measured(base_url, chosen, ideal) for _ in range(chosen.repeats)]
    process.kill()
    best = min(ratios)
    print(f"best of {chosen.repeats}: {best:.2f} x ideal (bar {chosen.bar})")
    sys.exit(best > chosen.bar)


def measured(base_url: str, chosen: argparse.Namespace, ideal: float) -> float:
    from lossmith.evaluation.judging import CallCache, Endpoint, JudgeCall, ask

    calls = [
        JudgeCall(
            model="judge", messages=(("user", f"Question {n}. " + "An answer of some length. " * 60),), prompt="bench"
        )
        for n in range(chosen.calls)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        CallCache(Path(folder) / "replies.sqlite") as cache,
        Endpoint(base_url) as endpoint,
    ):
        # The first request opens the client's connection pool and loads its modules.
        ask([JudgeCall(model="judge", messages=(("user", "warm"),), prompt="bench")], endpoint=endpoint, cache=cache)
        began, cpu = time.perf_counter(), time.process_time()
        result = ask(calls, endpoint=endpoint, cache=cache, concurrency=chosen.concurrency)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert len(result.outcomes) == result.sent == chosen.calls
        began = time.perf_counter()
        assert ask(calls, endpoint=endpoint, cache=cache, concurrency=chosen.concurrency).sent == 0
        stored = time.perf_counter() - began
    print(
        f"{chosen.calls} calls, {chosen.concurrency} at once, {chosen.latency_ms:g} ms each: {seconds:.2f} s, ideal "
        f"{ideal:.2f} s, ratio {seconds / ideal:.2f}; {1000 * cpu / chosen.calls:.2f} ms of CPU a call; again from the "
        f"store {stored:.2f} s",
        flush=True,
    )
    return seconds / ideal


if __name__ == "__main__":
    main()
