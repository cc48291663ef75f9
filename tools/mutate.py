#!/usr/bin/env python
"""Plants small mistakes in the objectives and counts how many of them the tests see.

    python tools/mutate.py                                  # everything; exit status 1 below 95%
    python tools/mutate.py --only dpo focal                 # these functions
    python tools/mutate.py --family region --sample 40      # forty of a family, drawn from --seed
    python tools/mutate.py --control                        # nothing planted: exit status 1 if a test fails
    python tools/mutate.py --markdown docs/mutation.md      # and write the table

One pytest session imports and collects the tests once. It then forks: first for the tests as they are, which must pass
and which tell what test reaches which function, then once for every mutation. A child puts the changed code into the
function, runs the tests that reach it, quickest first, and stops at the first failure. So a mutation costs a fork and
the tests, no import and no collection. `mutations.py` makes the mutations, `equivalent.py` lists those that change
nothing.
"""

import argparse
import gc
import inspect
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from equivalent import EQUIVALENT
from mutation_report import Outcome, Summary, current_commit
from mutations import Mutation, controls, grown, plan

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/lossmith"
NOT_MATHS = {"__init__.py", "_registry.py", "_vocabulary.py"}
SUITE = ["tests/objectives", f"{PACKAGE}/objectives", f"{PACKAGE}/_numerics.py"]
SLOW = ("compile", "test_properties.py")
"""Tests that search or compile; none of them is needed to see a wrong number."""
ENOUGH = 0.95


def mutated_files() -> list[Path]:
    """Files of the objectives and of the numerics under them."""
    files = sorted((ROOT / PACKAGE / "objectives").rglob("*.py"))
    return [path for path in files if path.name not in NOT_MATHS] + [ROOT / PACKAGE / "_numerics.py"]


def family(file: str) -> str:
    """`token`, `region`, `metric`, `preference`, `unpaired`, or `numerics` for what all share."""
    return "numerics" if file.endswith("_numerics.py") else Path(file).relative_to("objectives").parts[0].split(".")[0]


def planned(options: argparse.Namespace) -> list[Mutation]:
    """The mutations that the command line asks for."""
    every = [
        mutation
        for path in mutated_files()
        for mutation in (controls if options.control else plan)(
            path.read_text(encoding="utf-8"), str(path.relative_to(ROOT / PACKAGE))
        )
    ]
    wanted = {name for short in options.only for name in (short, f"{short}_loss")}
    unknown = [s for s in options.only if not {s, f"{s}_loss"} & {mutation.function for mutation in every}]
    if unknown:
        raise SystemExit(f"No function to mutate named {', '.join(unknown)}.")
    chosen = [m for m in every if not wanted or m.function in wanted]
    chosen = [m for m in chosen if options.family in (None, family(m.file))]
    if options.sample is not None and options.sample < len(chosen):
        kept = set(random.Random(options.seed).sample(range(len(chosen)), options.sample))
        chosen = [mutation for place, mutation in enumerate(chosen) if place in kept]
    return chosen


def module_of(file: str) -> Any:
    """The imported module of a file of the package."""
    return sys.modules["lossmith." + file.removesuffix(".py").replace("/", ".")]


def plant(mutation: Mutation) -> None:
    """Make the mistake in this process: in the function's code, its defaults, or every copy of a constant."""
    module = module_of(mutation.file)
    if mutation.value == mutation.function:
        old = getattr(module, mutation.value)
        for name, other in list(sys.modules.items()):
            if name.startswith("lossmith") and getattr(other, mutation.value, None) is old:
                setattr(other, mutation.value, grown(old))
        return
    function = inspect.unwrap(getattr(module, mutation.function))
    if mutation.code is not None:
        function.__code__ = mutation.code
        return
    function.__kwdefaults__ = {
        **function.__kwdefaults__,
        mutation.value: grown(function.__kwdefaults__[mutation.value]),
    }
    # The registry read the defaults when the function was decorated.
    for record in sys.modules["lossmith.objectives"].list_losses():
        if inspect.unwrap(record.function) is function:
            record.hyperparameters[mutation.value] = function.__kwdefaults__[mutation.value]


@dataclass
class Reach:
    """What a test does to the tree as it is."""

    seconds: float
    functions: set[str]
    """`file:function` of everything that it calls and that can be mutated."""
    failed: bool


@dataclass
class Child:
    """A forked process that works and sends one JSON document."""

    pid: int
    pipe: int
    started: float
    limit: float
    received: bytes = b""

    @classmethod
    def start(cls, work: Callable[[], Any], *, limit: float) -> "Child":
        """Fork; the child runs `work`, sends what it returns and ends."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            os.set_blocking(reading, False)
            return cls(pid, reading, time.monotonic(), limit)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        try:
            answer = work()
        except BaseException as error:
            answer = {"broken": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "wb") as out:
            out.write(json.dumps(answer).encode())
        os._exit(0)

    def poll(self) -> Any:
        """The answer, {"timeout": True} or {"crash": True}, or None while it works."""
        late = time.monotonic() - self.started > self.limit
        if late:
            os.kill(self.pid, signal.SIGKILL)
        while True:
            try:
                part = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                if late:
                    break
                return None
            if not part:
                break
            self.received += part
        os.waitpid(self.pid, 0)
        os.close(self.pipe)
        if late:
            return {"timeout": True}
        return json.loads(self.received) if self.received else {"crash": True}


class Watch:
    """Remembers the first failed report."""

    def __init__(self) -> None:
        self.failed: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after set-up, call and tear-down of each test."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid


@dataclass
class Campaign:
    """The plugin: takes over pytest's loop once the tests are collected."""

    mutations: list[Mutation]
    jobs: int
    say: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    interrupted: bool = False
    watch: Watch = field(default_factory=Watch)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the mutations in place of the tests."""
        import torch

        if session.testsfailed:
            raise session.Interrupted(f"{session.testsfailed} test files cannot be collected on the tree as it is")
        torch.set_num_threads(1)
        session.config.pluginmanager.register(self.watch)
        items = [item for item in session.items if not any(word in item.nodeid for word in SLOW)]
        gc.collect()
        gc.freeze()
        try:
            reach = self._baseline(items)
            self._run(items, reach)
        except KeyboardInterrupt:
            self.interrupted = True
        return True

    def _first_failure(self, items: Iterable[pytest.Item]) -> str | None:
        self.watch.failed = None
        for item in items:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.watch.failed is not None:
                return self.watch.failed
        return None

    def _baseline(self, items: list[pytest.Item]) -> list[Reach]:
        """Run every test on the tree as it is, in `jobs` children, and see what it calls."""
        self.say(f"{len(items)} tests on the tree as it is")
        shares = [
            [place for place in range(len(items)) if _group(items[place])[1] % self.jobs == k] for k in range(self.jobs)
        ]
        waiting = [Child.start(lambda share=share: self._observe(items, share), limit=1800) for share in shares]
        reach: dict[int, Reach] = {}
        try:
            while waiting:
                time.sleep(0.05)
                for child in list(waiting):
                    answer = child.poll()
                    if answer is None:
                        continue
                    waiting.remove(child)
                    if isinstance(answer, dict):
                        raise SystemExit(f"The tests do not run on the tree as it is: {answer}.")
                    for place, seconds, functions, failed in answer:
                        reach[place] = Reach(seconds, set(functions), failed)
        finally:
            _end(waiting)
        # Tests that share a cached result reach what any of them reaches.
        groups: dict[tuple[str, int], list[Reach]] = {}
        for place, item in enumerate(items):
            groups.setdefault(_group(item), []).append(reach[place])
        for members in groups.values():
            together = set().union(*(member.functions for member in members))
            for member in members:
                member.functions = together
                member.seconds = max(other.seconds for other in members)
        for place, item in enumerate(items):
            if reach[place].failed:
                self.say(f"fails on the tree as it is: {item.nodeid}")
        return [reach[place] for place in range(len(items))]

    def _observe(self, items: list[pytest.Item], share: list[int]) -> list[tuple[int, float, list[str], bool]]:
        names = {}
        for file, name in {(mutation.file, mutation.function) for mutation in self.mutations}:
            value = getattr(module_of(file), name)
            if callable(value):
                names[inspect.unwrap(value).__code__] = f"{file}:{name}"
        seen: set[str] = set()

        def profile(frame: Any, event: str, argument: Any) -> None:
            if event == "call" and frame.f_code in names:
                seen.add(names[frame.f_code])

        found = []
        for place in share:
            seen.clear()
            started = time.monotonic()
            sys.setprofile(profile)
            failed = self._first_failure([items[place]]) is not None
            sys.setprofile(None)
            found.append((place, time.monotonic() - started, sorted(seen), failed))
        return found

    def _run(self, items: list[pytest.Item], reach: list[Reach]) -> None:
        order = sorted(range(len(items)), key=lambda place: reach[place].seconds)
        broken = set().union(*(entry.functions for entry in reach if entry.failed))
        queue = list(reversed(self.mutations))
        running: list[tuple[Mutation, Child]] = []
        try:
            while queue or running:
                while queue and len(running) < self.jobs:
                    mutation = queue.pop()
                    place = f"{mutation.file}:{mutation.function}"
                    if place in broken:
                        self.refused.append(place)
                        continue
                    everything = mutation.value == mutation.function
                    tests = [n for n in order if everything or place in reach[n].functions]
                    limit = 20 + 6 * sum(reach[n].seconds for n in tests)
                    work = self._work(mutation, [items[n] for n in tests])
                    running.append((mutation, Child.start(work, limit=limit)))
                time.sleep(0.005)
                for mutation, child in list(running):
                    answer = child.poll()
                    if answer is not None:
                        running.remove((mutation, child))
                        self._note(mutation, answer, time.monotonic() - child.started)
        finally:
            _end(child for _, child in running)

    def _work(self, mutation: Mutation, items: list[pytest.Item]) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            plant(mutation)
            try:
                return {"failed": self._first_failure(items)}
            except BaseException:
                return {"crash": True}

        return work

    def _note(self, mutation: Mutation, answer: dict[str, Any], seconds: float) -> None:
        if "broken" in answer:
            raise SystemExit(f"{mutation.key} could not be planted: {answer['broken']}.")
        how = next((word for word in ("timeout", "crash") if word in answer), None)
        how = how or ("killed" if answer["failed"] else "survived")
        outcome = Outcome(mutation, how, family(mutation.file), EQUIVALENT.get(mutation.key, ""), answer.get("failed"))
        self.outcomes.append(outcome)
        done, survived = len(self.outcomes), [one for one in self.outcomes if one.how == "survived"]
        self.say(f"{done}/{len(self.mutations)}, {len(survived)} survived; {outcome.function} {how}, {seconds:.1f} s")
        if how == "survived":
            self.say(f"  {'equivalent' if outcome.reason else 'SURVIVED'}: {outcome.place}: {mutation.text}\n")


def _end(children: Iterable[Child]) -> None:
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)


def _group(item: pytest.Item) -> tuple[str, int]:
    """A test function and what it is about; the cases of one group run in one process."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    name = f"{item.nodeid.partition('[')[0]}[{parameters.get('record', item.nodeid)}]"
    return name, sum(name.encode())


def _progress() -> Callable[[str], None]:
    """Says one line on the terminal, over the line before it; one in fifty where there is no terminal."""
    count = 0
    out = os.fdopen(os.dup(2), "w")

    def say(line: str) -> None:
        nonlocal count
        count += 1
        lasting = line.endswith("\n") or ";" not in line
        if out.isatty():
            out.write(f"\r\033[K{line.rstrip()}" + ("\n" if lasting else ""))
        elif lasting or count % 50 == 0:
            out.write(line.rstrip() + "\n")
        out.flush()

    return say


def main(arguments: list[str] | None = None) -> int:
    """Plan, run, report; the exit status is 0 where enough mutations were killed."""
    parser = argparse.ArgumentParser(description="Plant mistakes in the objectives and count those the tests see.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="objectives or helper functions")
    parser.add_argument("--family", help="token, region, metric, preference, unpaired or numerics")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time (default 2)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of the mutations")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--control", action="store_true", help="plant every function unchanged: none may be killed")
    parser.add_argument("--tests", nargs="+", default=SUITE, metavar="PATH", help="what to run instead of the suite")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the result here")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    started, commit = time.monotonic(), current_commit()
    campaign = Campaign(planned(options), options.jobs, _progress())
    quiet = ["-qq", "-s", "--tb=no", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-p", "no:logging"]
    pytest.main([*quiet, *options.tests], plugins=[campaign])
    summary = Summary(campaign.outcomes, time.monotonic() - started, commit)
    print(summary.text())
    if campaign.refused:
        print(f"Not mutated, as their tests fail on the tree as it is: {', '.join(sorted(set(campaign.refused)))}.")
    unused = [key for key in EQUIVALENT if key not in {mutation.key for mutation in campaign.mutations}]
    partial = options.only or options.family or options.control or options.sample is not None
    if unused and not partial:
        print(f"Listed as equivalent, but no such mutation exists: {unused}.")
    if campaign.interrupted:
        print(f"Stopped after {len(campaign.outcomes)} of {len(campaign.mutations)} mutations.")
    elif options.markdown is not None:
        command = "python tools/mutate.py " + " ".join(sys.argv[1:] if arguments is None else arguments)
        options.markdown.write_text(summary.markdown(command.strip()), encoding="utf-8")
    complete = len(campaign.outcomes) == len(campaign.mutations) > 0
    good = summary.share == 0 if options.control else summary.share >= ENOUGH
    return 0 if complete and good else 1


if __name__ == "__main__":
    sys.exit(main())
