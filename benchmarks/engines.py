"""The bars of the engines: measured, compared with what is asked for, written as JSON, picture and page.

    python benchmarks/engines.py                 # measure; then benchmarks/results, docs/images and docs/benchmarks.md
    python benchmarks/engines.py --markdown      # picture and page again from the JSON, without measuring

On a machine with an NVIDIA GPU it measures the GPU's bars, else those of a CPU; both live side by side in the page.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from lossmith.bench import (
    COMPETITORS,
    Benchmark,
    Case,
    Contestant,
    Results,
    Row,
    memory_ratio,
    provenance_lines,
    resolve_device,
    results_of,
    time_ratio,
    write_outputs,
)
from lossmith.bench.shown import LiveBenchmark, deviation_text, peak_text, results_view, seconds_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


def ours(loss: str = "cross_entropy", engine: str = "chunked", reduction: str = "mean") -> Contestant:
    return Contestant(loss=loss, engine=engine, reduction=reduction)


def theirs(name: str) -> Contestant:
    return Contestant(competitor=name)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One thing that is asked for."""

    what: str
    who: Contestant
    against: Contestant | None
    limit: float
    """The largest ratio, or the largest number of MiB where it is against nothing."""
    ignored: float = 0.0
    labels: str = "uniform"
    memory: bool = False

    def case(self, shape: Case) -> Case:
        return replace(shape, ignored=self.ignored, labels=self.labels)


CPU_SHAPE = Case(tokens=2048, hidden=576, vocab=49_152)
CUDA_SHAPE = Case(tokens=8192, hidden=4096, vocab=151_936, dtype="bfloat16", device="cuda")

DENSE, PRODUCTS = theirs("dense"), theirs("products")
LIGHT = ("focal", "dft", "self_adjusting_dice", "poly1", "cross_entropy(label_smoothing=0.1)")
REGION = ("lovasz_softmax", "generalized_dice")

CPU_BARS = (
    Bar(what="cross_entropy / dense torch, time", who=ours(), against=DENSE, limit=0.70),
    Bar(what="cross_entropy / dense torch, peak memory", who=ours(), against=DENSE, limit=0.08, memory=True),
    Bar(what="cross_entropy / bare three products", who=ours(), against=PRODUCTS, limit=1.15),
    Bar(what="cross_entropy / dense torch, 60% ignored", who=ours(), against=DENSE, limit=0.34, ignored=0.6),
    Bar(what="cross_entropy / torch's chunked op", who=ours(), against=theirs("torch_chunked"), limit=0.45),
    Bar(what="the same, its op at 256 rows a chunk", who=ours(), against=theirs("torch_chunked_256"), limit=math.inf),
    Bar(what="cross_entropy / TRL's chunked log-probabilities", who=ours(), against=theirs("trl"), limit=0.35),
    *(Bar(what=f"{name} / our cross_entropy", who=ours(name), against=ours(), limit=1.05) for name in LIGHT),
    Bar(
        what="entropy_adaptive (entropy, detached) / our cross_entropy",
        who=ours("entropy_adaptive"),
        against=ours(),
        limit=1.25,
    ),
    Bar(
        what="confidence_penalty (entropy, with its gradient) / our cross_entropy",
        who=ours("confidence_penalty"),
        against=ours(),
        limit=1.45,
    ),
    Bar(
        what='cross_entropy, reduction="none" / bare three products',
        who=ours(reduction="none"),
        against=PRODUCTS,
        limit=1.5,
    ),
    *(
        Bar(
            what=f"{name} / dense torch cross_entropy, {'60% ignored' if ignored else 'all valid'}, {labels} labels",
            who=ours(name),
            against=DENSE,
            limit=0.65 if ignored else 1.0,
            ignored=ignored,
            labels=labels,
        )
        for labels in ("uniform", "zipf")
        for ignored in (0.0, 0.6)
        for name in REGION
    ),
)

CUDA_BARS = tuple(
    bar
    for engine in ("chunked", "triton")
    for bar in (
        Bar(what=f"{engine} / bare three products", who=ours(engine=engine), against=PRODUCTS, limit=1.35),
        Bar(what=f"{engine}: peak memory, MiB", who=ours(engine=engine), against=None, limit=3072, memory=True),
        *(
            Bar(
                what=f"{engine} / {COMPETITORS[name].label}",
                who=ours(engine=engine),
                against=theirs(name),
                limit=1.0,
            )
            for name in ("trl", "liger", "cut_cross_entropy")
        ),
        Bar(
            what=f"{engine}: focal / our cross_entropy",
            who=ours("focal", engine),
            against=ours(engine=engine),
            limit=1.03,
        ),
    )
)

BARS = {"cpu": (CPU_SHAPE, CPU_BARS), "cuda": (CUDA_SHAPE, CUDA_BARS)}
BESIDE = {
    "cpu": (theirs("torch_chunked_256"), theirs("liger"), theirs("cut_cross_entropy")),
    "cuda": (DENSE, theirs("torch_chunked"), theirs("torch_chunked_256")),
}
"""Measured on the first case without a bar of their own."""


def groups(shape: Case, bars: Sequence[Bar], beside: Sequence[Contestant]) -> list[tuple[Case, list[Contestant]]]:
    """Each case of the bars, with everyone that they name on it; dense torch first among others, as the baseline."""
    cases: dict[Case, dict[Contestant, None]] = {}
    for bar in bars:
        named = cases.setdefault(bar.case(shape), {})
        named |= dict.fromkeys(who for who in (bar.who, bar.against) if who is not None)
    first = next(iter(cases.values()))
    first |= dict.fromkeys(beside)
    return [(case, sorted(named, key=lambda who: (not who.own, who != DENSE))) for case, named in cases.items()]


def measured(bar: Bar, results: Results, shape: Case) -> tuple[float, str] | str:
    """The number of a bar and how it reads, or why there is none."""
    case = bar.case(shape)
    row, other = results.find(case, bar.who), results.find(case, bar.against) if bar.against else None
    for one in (row, other) if bar.against else (row,):
        if one is None or not one.seconds:
            return "not measured" if one is None else f"{one.contestant}: {one.note or one.state}"
    if bar.against is None:
        peak = row.peak_bytes if row else None
        return "not measured" if peak is None else (peak / 2**20, f"{peak / 2**20:,.0f} MiB")
    if bar.memory:
        ratio = memory_ratio(row, other)
        return "not measured" if ratio is None else (ratio, f"{ratio:.3f}x")
    of_time = time_ratio(row, other)
    return "not measured" if of_time is None else (of_time.median, str(of_time))


def bar_lines(results: Results | None, shape: Case, bars: Sequence[Bar]) -> list[str]:
    """A Markdown table: bar, asked, measured, met or missed; without results the last two are empty."""
    lines = ["| bar | asked for | measured | |", "| --- | --- | --- | --- |"]
    for bar in bars:
        found = "" if results is None else measured(bar, results, shape)
        value, shown = (None, found) if isinstance(found, str) else found
        verdict = "" if value is None or bar.limit == math.inf else "met" if value <= bar.limit else "**missed**"
        asked = f"<= {bar.limit:,.0f} MiB" if bar.against is None else f"<= {bar.limit:.2f}x"
        asked = "" if bar.limit == math.inf else asked
        lines.append(f"| {bar.what} | {asked} | {shown} | {verdict} |")
    return lines


def row_lines(results: Results, case: Case) -> list[str]:
    """A Markdown table of everything measured on one case."""
    baseline = results.baseline(case)
    against = "" if baseline is None else f" / {baseline.contestant}"
    lines = [f"### {case}", "", f"| | time | time{against} | peak MiB | peak{against} | off by | plan or note |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    return lines + [f"| {' | '.join(_cells(row, baseline))} |" for row in results.of(case)]


def _cells(row: Row, baseline: Row | None) -> tuple[str, ...]:
    note = "; ".join(part for part in (row.plan, row.note) if part).replace("|", "\\|")
    if not row.seconds:
        return str(row.contestant), row.state, "", peak_text(row), "", deviation_text(row), note
    memory, ratio = memory_ratio(row, baseline), time_ratio(row, baseline)
    return (
        str(row.contestant),
        seconds_text(row),
        "" if ratio is None else str(ratio),
        peak_text(row),
        "" if memory is None else f"{memory:.2f}x",
        deviation_text(row),
        note,
    )


HEAD = """\
# Benchmarks

Generated by `python benchmarks/engines.py` from [benchmarks/results](../benchmarks/results); edit nothing here. Try
your own shapes with `lossmith bench`.

- **Time** is forward and backward, to the gradients of hidden states and weight. Everyone runs turn by turn in one
  process after a turn that does not count; a ratio is the median over paired turns, with their range.
- **Peak** is memory beyond inputs and gradients: on a CPU resident memory (`VmHWM`), each measurement in a process of
  its own after a warm-up at a tiny size; on CUDA what torch allocates.
- **Off by**: before anyone is timed, loss and gradients are compared, our engines with our dense reference in the
  same dtype, others with ours; the column is the relative distance of the gradients. Who computes something else is
  not timed.
- **Bare three products**: `torch.mm` for `hidden @ weight.T`, `scores @ weight` and `scores.T @ hidden` over all rows,
  with the allocation of their results, and nothing between them.
- **TRL, chunked** is `ChunkedLogProbFunction` without the entropy and the other outputs that its trainers log; **torch,
  chunked** is `linear_cross_entropy` with `LinearCrossEntropyOptions()`, and once more with 256 rows a chunk.
- Labels are drawn uniformly (nearly every token is a class of its own, the hardest for region losses) or by Zipf's law.
- Elsewhere: `python benchmarks/few_shot.py` times few-shot classification (2026-11-29, two cores of an EPYC with
  AVX-512, idle: a run of MR with 20 texts 15.8 to 19.4 s, bar 20; a step of a joint loss 0.994 to 1.012 of
  cross-entropy's, bar 1.05), `python benchmarks/explain.py` the explanation of a study ([explain.md](explain.md)).
- `python benchmarks/preference_step.py`: a step of DPO on SmolLM2-135M, 4 pairs of up to 256 tokens, beside TRL's own
  trainer (2026-11-30, the same kind of machine, idle, `--steps 3 --repeats 3`): TRL 23.4 s; ours with the reference
  beside the step 0.62x (0.57-0.71), bar 0.85; with cached log-probabilities 0.47x (0.45-0.50), bar 0.7; TRL with its
  own cache 0.77x (0.74-0.83). Peak above the start 3,081 MiB against TRL's 4,531 (all logits: 384).
  What differs between two losses of pairs is the loss itself (`--objectives --repeats 0`): 0.35 ms of processor time
  for dpo, 0.95 for aql, the most of 25, forward and backward, in a step of 11 s (bar: 3%). `kto` is no loss of pairs:
  its estimate of the KL scores each prompt with another one's answer, without gradients, 1.36x of dpo in training
  [polite_pairs](studies/preference.md).
"""


def page(found: dict[str, Results]) -> str:
    """The whole page from the results of each device."""
    lines = [HEAD]
    for device, title in (("cpu", "CPU"), ("cuda", "NVIDIA GPU")):
        shape, bars = BARS[device]
        lines += [f"## {title}", ""]
        if device not in found:
            why = ": no NVIDIA GPU was at hand" if device == "cuda" else ""
            lines += [f"Not measured yet{why}. The bars are for {shape}.", ""]
            lines += [*bar_lines(None, shape, bars), ""]
            continue
        results = found[device]
        shape = shape_of(results)
        lines += [*provenance_lines(results), f"Commit {results.commit or 'unknown'}; `{results.command}`.", ""]
        lines += [] if results.complete else ["Stopped before its end.", ""]
        lines += [] if shape == BARS[device][0] else [f"**Not the shape of the bars**, which is {BARS[device][0]}.", ""]
        lines += [*bar_lines(results, shape, bars), "", f"![Time and peak memory](images/engines-{device}.svg)", ""]
        for case in results.cases():
            lines += [*row_lines(results, case), ""]
    return "\n".join(lines).rstrip() + "\n"


def shape_of(results: Results) -> Case:
    return replace(results.rows[0].case, ignored=0.0, labels="uniform")


def write_page(results_folder: Path, docs: Path) -> None:
    found = {}
    for device in BARS:
        path = results_folder / f"engines-{device}.json"
        if path.exists():
            found[device] = Results.from_json(path.read_text(encoding="utf-8"))
            write_outputs(found[device], plot=docs / "images" / f"engines-{device}.svg")
    (docs / "benchmarks.md").write_text(page(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="write picture and page from the JSON, measure nothing")
    parser.add_argument("--device", default="auto", choices=("auto", *BARS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of page and picture")
    for name in ("tokens", "hidden", "vocab"):
        parser.add_argument(f"--{name}", type=int, help="another shape than that of the bars, to try the script")
    options = parser.parse_args()
    if not options.markdown:
        _measure(options)
    write_page(options.results, options.docs)
    print(f"Wrote {options.docs / 'benchmarks.md'}")


def _measure(options: argparse.Namespace) -> None:
    device = resolve_device(options.device)
    device = device if device in BARS else "cpu"
    shape, bars = BARS[device]
    asked = {name: getattr(options, name) for name in ("tokens", "hidden", "vocab")}
    shape = replace(shape, **{name: value for name, value in asked.items() if value is not None})
    benchmark = Benchmark(groups(shape, bars, BESIDE[device]), repeats=options.repeats)
    try:
        with LiveBenchmark(Console(stderr=True)) as progress:
            benchmark.run(progress)
    except KeyboardInterrupt:
        print("Stopped; what was measured is kept.")
    results = results_of(benchmark, command=f"python benchmarks/engines.py --repeats {options.repeats}")
    Console().print(results_view(results))
    print("\n".join(bar_lines(results, shape, bars)))
    write_outputs(results, json=options.results / f"engines-{device}.json")


if __name__ == "__main__":
    main()
