"""The benchmark: everyone computes the same, who does not is not timed, and what is written can be read again."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from lossmith import bench, set_chunk_budget
from lossmith.bench import Benchmark, Case, Contestant, Grid, Results, contestants, memory, run
from lossmith.bench.cases import DTYPES, make_inputs
from lossmith.bench.contestants import make_step, obstacle
from lossmith.bench.failures import one_line
from lossmith.errors import ConfigurationError, EvidenceError, LossmithError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import engines

TINY = Case(tokens=37, hidden=19, vocab=53, ignored=0.4)
OURS = Contestant(engine="chunked")
DENSE = Contestant(competitor="dense")
HERE = [Contestant(competitor=name) for name in ("dense", "torch_chunked", "torch_chunked_256", "trl")]
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")


@pytest.fixture
def no_memory(monkeypatch):
    """Without the processes that measure memory."""
    monkeypatch.setattr(run, "measure_peak", lambda contestant, case: memory.Peak(num_bytes=1000))


def by_name(benchmark: Benchmark) -> dict[str, bench.Row]:
    return {str(row.contestant): row for row in benchmark.rows}


# Timing


def test_turns_are_interleaved_and_every_other_goes_backwards():
    order: list[str] = []
    seconds = bench.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, repeats=2)
    assert "".join(order) == "abccbaabc"
    assert [len(seconds[name]) for name in "abc"] == [2, 2, 2]


def test_a_stopped_turn_leaves_whole_turns_only():
    calls = iter(range(100))

    def stops() -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    into: dict[str, list[float]] = {}
    with pytest.raises(KeyboardInterrupt):
        bench.interleaved({"a": lambda: None, "b": stops}, repeats=5, into=into)
    assert {name: len(values) for name, values in into.items()} == {"a": 1, "b": 1}


def test_ratios_are_of_paired_turns():
    ratio = bench.paired_ratio([1.0, 20.0, 3.0, 8.0], [2.0, 10.0, 4.0])
    assert (ratio.median, ratio.low, ratio.high) == (0.75, 0.5, 2.0)
    assert bench.paired_ratio([], [1.0]) is None


# Everyone computes the same


def by_hand(case: Case) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Mean cross-entropy and its gradients in float64, row by row."""
    inputs = make_inputs(case)
    hidden, weight = inputs.hidden.detach().double(), inputs.weight.detach().double()
    grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    rows = [(row, label) for row, label in enumerate(inputs.labels.tolist()) if label != -100]
    loss = 0.0
    for row, label in rows:
        scores = weight @ hidden[row]
        powers = [math.exp(score) for score in scores.tolist()]
        loss += math.log(sum(powers)) - scores[label].item()
        error = torch.tensor(powers, dtype=torch.float64) / sum(powers)
        error[label] -= 1
        grad_hidden[row] = weight.T @ error / len(rows)
        grad_weight += torch.outer(error, hidden[row]) / len(rows)
    return loss / len(rows), grad_hidden, grad_weight


@pytest.mark.parametrize("who", [OURS, Contestant(engine="dense"), *HERE], ids=str)
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.filterwarnings("ignore")  # What torch says about its own chunked op is torch's affair.
def test_everyone_computes_mean_cross_entropy_and_its_gradients(who, ignored):
    case = replace(TINY, ignored=ignored)
    inputs = make_inputs(case)
    for _ in range(2):  # Gradients of a second step do not add up.
        loss = make_step(who, inputs)()
    expected, hidden, weight = by_hand(case)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(inputs.hidden.grad.double(), hidden, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(inputs.weight.grad.double(), weight, rtol=1e-4, atol=1e-7)


def test_the_unreduced_loss_starts_from_a_number_per_token():
    inputs = make_inputs(TINY)
    loss = make_step(Contestant(engine="chunked", reduction="none"), inputs)()
    logps = (inputs.hidden @ inputs.weight.T).log_softmax(-1).detach()
    rows = (inputs.labels != -100).nonzero().squeeze(1)
    expected = -(logps[rows, inputs.labels[rows]] * inputs.upstream[rows]).sum()
    torch.testing.assert_close(loss, expected)
    assert inputs.upstream.unique().numel() > 30


def test_the_bare_products_have_the_full_shapes(monkeypatch):
    shapes: list[tuple[int, ...]] = []
    product = torch.mm

    def noted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shapes.append((*left.shape, right.shape[1]))
        return product(left, right)

    monkeypatch.setattr(torch, "mm", noted)
    assert make_step(Contestant(competitor="products"), make_inputs(TINY))() is None
    assert shapes == [(37, 19, 53), (37, 53, 19), (53, 37, 19)]


def test_inputs_are_the_same_each_time_and_ignored_is_exact():
    one, other = make_inputs(TINY), make_inputs(TINY)
    assert torch.equal(one.hidden, other.hidden)
    assert torch.equal(one.labels, other.labels)
    assert int((one.labels != -100).sum()) == TINY.valid == 22
    many = Case(tokens=4000, hidden=1, vocab=1000)
    assert make_inputs(replace(many, labels="zipf")).labels.unique().numel() < 700
    assert make_inputs(many).labels.unique().numel() > 950


# What the benchmark does with them


def test_rows_hold_turns_deviations_and_plans(no_memory):
    focal = Contestant(loss="focal", engine="chunked")
    missing = [Contestant(engine="triton"), Contestant(competitor="liger")]
    benchmark = Benchmark([(TINY, [OURS, focal, *missing, *HERE, Contestant(competitor="products")])], repeats=3)
    told: list[tuple[int, int, str]] = []
    benchmark.run(lambda *step: told.append(step))
    rows = by_name(benchmark)
    assert {len(row.seconds) for row in benchmark.rows if row.state == "measured"} == {3}
    assert rows["lossmith focal, chunked"].plan == "gradient in forward, 3 products"
    assert rows["lossmith focal, chunked"].compared_with == "lossmith dense"
    assert rows["TRL, chunked"].compared_with == "lossmith"
    for row in benchmark.rows:
        if row.compared_with:
            assert 0 <= row.gradient_deviation < 1e-5
            assert row.loss_deviation < 1e-5
    assert rows["bare three products"].loss_deviation is None
    if not torch.cuda.is_available():
        assert [row.note for row in benchmark.rows if row.state == "not here"] == ["needs CUDA"] * 2
    assert benchmark.complete
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][0] < told[-1][1]
    assert told[-1][2].startswith("turn 3 of 3")


def impostor(change):
    """Dense torch, changed."""

    def build(inputs):
        return contestants._differentiated(inputs, lambda: change(inputs))

    return build


def logits_of(inputs):
    return inputs.hidden @ inputs.weight.T


WRONG = {
    "labels moved on by one": lambda i: torch.nn.functional.cross_entropy(logits_of(i), i.labels.roll(1)),
    "a sum for a mean": lambda i: torch.nn.functional.cross_entropy(logits_of(i), i.labels, reduction="sum"),
    "no gradient through half of the weight": lambda i: torch.nn.functional.cross_entropy(
        i.hidden @ torch.cat([i.weight[:20].detach(), i.weight[20:]]).T, i.labels
    ),
    "NaN": lambda i: torch.nn.functional.cross_entropy(logits_of(i), i.labels) * math.nan,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_who_computes_something_else_is_not_timed(no_memory, monkeypatch, change):
    wrong = replace(contestants.COMPETITORS["dense"], build=impostor(change))
    monkeypatch.setitem(contestants.COMPETITORS, "dense", wrong)
    benchmark = Benchmark([(TINY, [OURS, DENSE])], repeats=2)
    benchmark.run()
    ours, theirs = benchmark.rows
    assert ours.state == "measured"
    assert theirs.state == "failed"
    assert theirs.seconds == []
    assert "computes something else than lossmith" in theirs.note


def test_our_own_engines_are_refused_too(no_memory, monkeypatch):
    honest = run.make_step

    def wrong(contestant, inputs):
        step = honest(contestant, inputs)
        return (lambda: step() * 1.01) if contestant.engine == "chunked" else step

    monkeypatch.setattr(run, "make_step", wrong)
    benchmark = Benchmark([(TINY, [OURS])], repeats=2)
    benchmark.run()
    assert benchmark.rows[0].state == "failed"
    assert "than lossmith dense: loss off by 1.0e-02" in benchmark.rows[0].note


@pytest.mark.parametrize("calls_that_work", [0, 3])
def test_memory_that_runs_out_is_a_row(no_memory, monkeypatch, calls_that_work):
    honest = contestants.COMPETITORS["dense"].build
    calls: list[int] = []

    def build(inputs):
        step = honest(inputs)

        def fails():
            calls.append(1)
            if len(calls) > calls_that_work:
                raise torch.OutOfMemoryError("Tried to allocate 1 TiB")
            return step()

        return fails

    monkeypatch.setitem(contestants.COMPETITORS, "dense", replace(contestants.COMPETITORS["dense"], build=build))
    benchmark = Benchmark([(TINY, [OURS, DENSE])], repeats=4)
    benchmark.run()
    ours, theirs = benchmark.rows
    assert (ours.state, len(ours.seconds)) == ("measured", 4)
    assert (theirs.state, theirs.note, theirs.seconds) == ("failed", "out of memory", [])
    assert len(calls) == calls_that_work + 1


def test_what_does_not_fit_is_not_even_tried(no_memory, monkeypatch):
    monkeypatch.setattr(memory, "_available_bytes", lambda: 10_000)
    benchmark = Benchmark([(TINY, [OURS, DENSE])], repeats=1)
    benchmark.run()
    ours, theirs = benchmark.rows
    assert ours.state == "measured"
    assert ours.note == "not compared: lossmith dense does not fit the memory"
    assert theirs.state == "failed"
    assert theirs.note.startswith("out of memory: it needs about")


def test_a_stop_keeps_what_was_measured(no_memory):
    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("turn 3 of"):
            raise KeyboardInterrupt

    benchmark = Benchmark([(TINY, [OURS, DENSE]), (replace(TINY, ignored=0.0), [OURS])], repeats=5)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(stop)
    assert [(row.state, len(row.seconds)) for row in benchmark.rows] == [
        ("measured", 2),
        ("measured", 2),
        ("not reached", 0),
    ]
    assert not bench.results_of(benchmark, command="").complete


# Memory


@LINUX
def test_peak_memory_is_what_lies_beyond_inputs_and_gradients():
    case = Case(tokens=1024, hidden=64, vocab=16_384)
    products = memory.measure_peak(Contestant(competitor="products"), case)
    assert products.num_bytes / case.logits_bytes == pytest.approx(1, abs=0.15)
    dense = memory.measure_peak(DENSE, case)
    assert 1.8 < dense.num_bytes / case.logits_bytes < 3.5


@LINUX
def test_gradients_do_not_count_as_peak_memory():
    case = Case(tokens=256, hidden=1024, vocab=8192)
    assert case.gradient_bytes > 4 * case.logits_bytes
    assert memory.measure_peak(Contestant(competitor="products"), case).num_bytes < 3 * case.logits_bytes


@LINUX
def test_what_was_held_before_does_not_count():
    before = torch.ones(2**26)
    del before
    assert memory._resident_peak(OURS, TINY).num_bytes < 2**27


@LINUX
def test_the_chunk_budget_reaches_the_process_that_measures():
    case = Case(tokens=1024, hidden=64, vocab=16_384)
    set_chunk_budget(4 * 2**20)
    try:
        small = memory.measure_peak(OURS, case).num_bytes
    finally:
        set_chunk_budget(None)
    assert small < memory.measure_peak(OURS, case).num_bytes - 16 * 2**20


@LINUX
def test_a_failure_in_that_process_is_a_row():
    peak = memory.measure_peak(Contestant(loss="focal -> dft @ 0.5", engine="chunked"), TINY)
    assert not peak.runs
    assert "set_progress" in peak.note


def test_messages_lose_the_paths_of_the_machine():
    shown = one_line(OSError("no /home/someone/venv/lib/x.so, and 3/4 of a/b"))
    assert shown == "OSError: no (path), and 3/4 of a/b"
    assert one_line(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")) == "out of memory"


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": (0,)}, "`tokens` must be an integer >= 1, got 0."),
        ({"ignored": (1.0,)}, "`ignored` is a share of the tokens in [0, 1) that leaves at least one, got 1"),
        ({"tokens": (3,), "ignored": (0.9,)}, "got 0.9 of 3 tokens"),
        ({"dtype": ("float16",)}, "`dtype` must be one of float32, bfloat16, float64, got 'float16'."),
        ({"device": "tpu"}, "`device` must be auto, cpu, cuda or mps, got 'tpu'."),
        ({"labels": "normal"}, "`labels` must be one of uniform, zipf, got 'normal'."),
        ({"loss": ("focl",)}, "No objective named 'focl'. Did you mean 'focal'?"),
        ({"loss": ("supcon",)}, "The benchmark measures losses of `logits` and `labels`; 'supcon' reads"),
        ({"loss": ("cross_entropy + supcon",)}, "'cross_entropy + supcon' reads"),
        ({"engine": ("chunkd",)}, "`engine` knows no 'chunkd'. Did you mean 'chunked'?"),
        ({"against": ("torch",)}, "`against` knows no 'torch'."),
        ({"repeats": 0}, "`repeats` must be an integer >= 1, got 0."),
        ({"tokens": (4, 4)}, "`tokens` names something twice: 4, 4."),
    ],
)
def test_a_setting_that_is_wrong(settings, message):
    with pytest.raises(LossmithError) as raised:
        Grid(**settings)
    assert message in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it is no mistake")
def test_a_device_that_is_not_here():
    with pytest.raises(ConfigurationError, match="`device` is 'cuda', which this machine or this torch does not have"):
        Grid(device="cuda")


def test_inputs_larger_than_the_machine_are_refused():
    with pytest.raises(ConfigurationError, match="give a smaller shape"):
        Benchmark([(Case(tokens=1, hidden=10**6, vocab=10**9), [OURS])], repeats=1)


def test_the_grid_is_every_combination():
    grid = Grid(tokens=(8, 16), ignored=(0.0, 0.5), dtype=tuple(DTYPES), loss=("focal", "dft"), engine=("chunked",))
    groups = grid.groups()
    assert len(groups) == len({case for case, _ in groups}) == 12
    assert len(groups[0][1]) == 2 + len(bench.COMPETITORS)


def test_who_is_not_here_says_why(monkeypatch):
    assert obstacle(Contestant(competitor="cut_cross_entropy"), TINY) == "needs CUDA"
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda name: None)
    assert obstacle(Contestant(competitor="cut_cross_entropy"), replace(TINY, device="cuda")) == "not installed"
    assert obstacle(Contestant(engine="triton"), replace(TINY, device="cuda")) == "triton is not installed"
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions")
    assert obstacle(Contestant(competitor="torch_chunked"), TINY) == f"not in torch {torch.__version__}"
    assert obstacle(DENSE, TINY) is None


# Results


@pytest.fixture
def results(no_memory) -> Results:
    cases = [TINY, replace(TINY, ignored=0.0)]
    benchmark = Benchmark(
        [(case, [OURS, Contestant(engine="triton"), DENSE, Contestant(competitor="trl")]) for case in cases], repeats=2
    )
    benchmark.run()
    return bench.results_of(benchmark, command="lossmith bench --tokens 37")


def test_json_comes_back_and_holds_no_path(results, tmp_path):
    target = tmp_path / "new" / "results.json"
    bench.write_outputs(results, json=target)
    text = target.read_text(encoding="utf-8")
    assert Results.from_json(text) == results
    assert json.loads(text)["schema"] == 1
    assert {"torch", "trl", "liger-kernel", "cut-cross-entropy", "transformers"} <= json.loads(text)["versions"].keys()
    assert re.findall(r"/\w+/", text) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "rows": [{"case": {}}]}'])
def test_other_json_is_refused(text):
    with pytest.raises(EvidenceError, match="no results of a benchmark"):
        Results.from_json(text)


def test_another_schema_is_refused():
    with pytest.raises(EvidenceError, match="schema 2; this version reads schema 1"):
        Results.from_json('{"schema": 2}')


def test_the_picture_needs_nothing_else_and_is_the_same_each_time(results, tmp_path):
    for name in ("a.svg", "b.svg"):
        bench.write_outputs(results, plot=tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert "path" in tags
    assert not tags & {"text", "image"}
    bench.write_outputs(replace(results, rows=[]), plot=tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"plot": Path("a.pdf")}, "`--plot` writes .svg or .png files, got 'a.pdf'."),
        ({"json": Path(".")}, "`--json` needs a file, '.' is a folder."),
        ({"json": Path(__file__) / "a.json"}, "`--json` cannot write"),
    ],
)
def test_outputs_are_checked_before_anything_is_measured(files, message):
    with pytest.raises(ConfigurationError) as raised:
        bench.check_outputs(**files)
    assert message in str(raised.value)


# The bars


def synthetic(ratio: float, peak: int) -> Results:
    """Every row of the CPU's bars, ours at `ratio` seconds, others at 1."""
    shape, bars = engines.BARS["cpu"]
    rows = [
        bench.Row(
            case=case,
            contestant=who,
            state="measured",
            seconds=[ratio, ratio] if who.own else [1.0, 1.0],
            peak_bytes=peak if who.own else 1000,
        )
        for case, named in engines.groups(shape, bars, engines.BESIDE["cpu"])
        for who in named
    ]
    return Results(command="", date="", commit=None, complete=True, machine=MACHINE, versions={"torch": "2"}, rows=rows)


MACHINE = {"processor": "P", "instructions": "I", "cores": 2, "threads": 2, "system": "S"}


def test_bars_are_those_of_the_issue():
    shape, bars = engines.BARS["cpu"]
    assert (shape.tokens, shape.hidden, shape.vocab, shape.dtype) == (2048, 576, 49_152, "float32")
    limits = [(bar.who.loss, str(bar.against), bar.ignored, bar.limit) for bar in bars]
    ours = "lossmith cross_entropy, chunked"
    assert ("cross_entropy", "torch, dense", 0.0, 0.70) in limits
    assert ("cross_entropy", "torch, dense", 0.0, 0.08) in limits
    assert ("cross_entropy", "bare three products", 0.0, 1.15) in limits
    assert ("cross_entropy", "torch, dense", 0.6, 0.34) in limits
    assert ("cross_entropy", "torch, chunked (defaults)", 0.0, 0.45) in limits
    assert ("cross_entropy", "TRL, chunked", 0.0, 0.35) in limits
    for name in ("focal", "dft", "self_adjusting_dice", "poly1", "cross_entropy(label_smoothing=0.1)"):
        assert (name, ours, 0.0, 1.05) in limits
    assert ("entropy_adaptive", ours, 0.0, 1.25) in limits
    assert ("confidence_penalty", ours, 0.0, 1.45) in limits
    assert ("cross_entropy", "bare three products", 0.0, 1.5) in limits
    for name in ("lovasz_softmax", "generalized_dice"):
        assert limits.count((name, "torch, dense", 0.0, 1.0)) == 2
        assert limits.count((name, "torch, dense", 0.6, 0.65)) == 2


@pytest.mark.parametrize(
    ("ratio", "peak", "what", "line"),
    [
        (0.69, 70, "cross_entropy / dense torch, time", "0.69x (0.69-0.69) | met |"),
        (0.71, 70, "cross_entropy / dense torch, time", "0.71x (0.71-0.71) | **missed** |"),
        (0.69, 81, "cross_entropy / dense torch, peak memory", "0.081x | **missed** |"),
        (0.69, 79, "cross_entropy / dense torch, peak memory", "0.079x | met |"),
        (0.69, 70, "focal / our cross_entropy", "1.00x (1.00-1.00) | met |"),
    ],
)
def test_a_bar_is_met_or_missed(ratio, peak, what, line):
    found = [text for text in engines.bar_lines(synthetic(ratio, peak), *engines.BARS["cpu"]) if f"| {what} |" in text]
    assert len(found) == 1
    assert found[0].endswith(line)


def test_a_bar_without_a_measurement_is_neither():
    results = synthetic(0.5, 10)
    for row in results.rows:
        if row.contestant == Contestant(competitor="trl"):
            row.seconds, row.state, row.note = [], "failed", "not installed"
    found = [text for text in engines.bar_lines(results, *engines.BARS["cpu"]) if "TRL" in text]
    assert found == ["| cross_entropy / TRL's chunked log-probabilities | <= 0.35x | TRL, chunked: not installed |  |"]


def test_the_page_shows_each_case_and_leaves_the_gpu_open(tmp_path):
    (tmp_path / "results").mkdir()
    bench.write_outputs(synthetic(0.5, 10), json=tmp_path / "results" / "engines-cpu.json")
    engines.write_page(tmp_path / "results", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert page.count("\n### 2,048 tokens") == 4
    assert "Not the shape of the bars" not in page
    assert "Not measured yet: no NVIDIA GPU was at hand. The bars are for 8,192 tokens, hidden 4,096" in page
    assert "| triton / bare three products | <= 1.35x |  |  |" in page
    assert (tmp_path / "images" / "engines-cpu.svg").exists()
