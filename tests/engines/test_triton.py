"""The triton engine against logits that exist, on a GPU where there is one and in Triton's interpreter everywhere.

Triton decides when it is imported whether to interpret, for good. So one test runs this file once more in a process of
its own with TRITON_INTERPRET=1, and nothing of that reaches other tests.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lossmith
from linear_cases import HIDDEN, LOSSES, TOKENS, VOCAB, Case, Probe, draw, normal, small_tiles
from lossmith.engines import DenseTokenStatistics
from lossmith.engines import triton as engine
from lossmith.engines.chunked import recomputed_sums
from lossmith.engines.row_sums import SUMS_READ, SumStatistics, sums_read
from lossmith.engines.tiles import ChunkedPass
from lossmith.errors import ObjectiveInputError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SHAPES = {
    "weight alone": {"bias": False, "ignored": False},
    "bias": {},
    "scale": {"scale": 0.37, "bias": False},
    "soft-cap": {"softcap": 2.5, "bias": False},
    "all": {"scale": -0.7, "softcap": 4.0},
}
SHIPPED = dict(engine._BLOCKS)
SMALL = engine.Blocks(rows=16, columns=16, inner=16, per_split=2, warps=4, stages=2)


@pytest.fixture
def device() -> str:
    if INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("needs a CUDA device; Triton's interpreter runs it in a process of its own")


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of rows, tiles of classes, blocks and splits, none of which divides the next larger one."""
    monkeypatch.setattr(engine, "_BLOCKS", dict.fromkeys((2, 4, 8), SMALL))
    monkeypatch.setattr(engine, "_CHUNK_ROWS", 19)
    with small_tiles(rows=14, itemsize=8):
        yield


@pytest.fixture
def few_blocks(_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk and one tile in a few uneven blocks: the interpreter takes its time."""
    monkeypatch.setattr(engine, "_BLOCKS", dict.fromkeys((2, 4, 8), replace(SMALL, rows=32, columns=32)))
    monkeypatch.setattr(engine, "_CHUNK_ROWS", TOKENS)
    lossmith.set_chunk_budget(None)


def _on(case: Case, device: str, dtype: torch.dtype = torch.float64) -> Case:
    moved = case.to(dtype)
    parts = {name: part.to(device) for name, part in vars(moved).items() if isinstance(part, Tensor)}
    return replace(moved, **parts)


def _for(text: str, case: Case) -> Case:
    """The case as sequences where the loss has a region for each."""
    if "sequence" not in text or case.hidden.ndim == 3:
        return case
    return _on(_on(case, "cpu", case.hidden.dtype).sequences, case.hidden.device.type, case.hidden.dtype)


def _run(text: str, case: Case, impl: str | None, **call: object) -> list[Tensor]:
    """Value of a loss and gradients under a random upstream gradient."""
    own = _for(text, case).fresh()
    logits = own.logits() if impl is None else own.linear(impl)
    value = lossmith.loss(text)(logits, own.labels, **call)
    upstream = normal(*value.shape, seed=77).float().to(value)
    return [value.detach(), *torch.autograd.grad(value, own.parts, upstream)]


def _statistics(case: Case, names: list[str], impl: str | None) -> list[Tensor]:
    """Every statistic and the gradients of their sum under random weights."""
    own = case.fresh()
    places = (own.labels != -100).nonzero().squeeze(1)
    classes = own.labels[places]
    if impl is None:
        table = own.logits()[places]
        values = DenseTokenStatistics(table, classes).get(tuple(names))
    else:
        work = ChunkedPass(linear=own.linear(impl), places=places, classes=classes, reads=sums_read(names))
        values = SumStatistics(recomputed_sums(work)[0], VOCAB).get(tuple(names))
    total = sum((v * normal(len(v), seed=i).to(v)).sum() for i, v in enumerate(values.values()) if v.requires_grad)
    assert isinstance(total, Tensor)
    return [*(value.detach() for value in values.values()), *torch.autograd.grad(total, own.parts)]


def _check_budget(
    run: Callable[[Case, str | None], list[Tensor]], cases: list[Case], *, naive: str | None = None
) -> None:
    """As wrong as naive code in the same dtype, plus one rounding; root of the mean square over some draws."""
    squares: list[list[Tensor]] = []
    for case in cases:
        found, plain, exact = run(case, "triton"), run(case, naive), run(case.to(torch.float64), None)
        for i, (one, other, right) in enumerate(zip(found, plain, exact, strict=True)):
            rounding = right * (torch.finfo(one.dtype).eps / 2)
            errors = torch.stack([e.square().mean() for e in (one.double() - right, other.double() - right, rounding)])
            squares[i : i + 1] = [squares[i] + errors if i < len(squares) else errors]
    for total in squares:
        own, allowed, rounding = total.sqrt().tolist()
        assert own <= allowed + rounding


def _work(case: Case, **settings: object) -> ChunkedPass:
    places = (case.labels != -100).nonzero().squeeze(1)
    linear = case.linear("triton", **settings)
    return ChunkedPass(linear=linear, places=places, classes=case.labels[places], reads=frozenset())


def test_in_tritons_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("this is the process that it starts")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > len(LOSSES) + 2 * len(SHAPES)


def test_nothing_divides_anything() -> None:
    case = draw(ignored=False)
    rows, columns = engine.tile_shape(_work(case))
    assert (rows, columns) == (19, 39)
    split = SMALL.columns * SMALL.per_split
    for size, step in ((TOKENS, rows), (VOCAB, columns), (rows, SMALL.rows), (columns, split), (HIDDEN, SMALL.inner)):
        assert size > step
        assert size % step


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("text", LOSSES)
def test_every_loss_equals_the_one_on_logits(text: str, device: str) -> None:
    case = _on(draw(scale=-1.7, softcap=1.5), device)
    found, wanted = (_run(text, case, impl, reduction="none") for impl in ("triton", None))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("text", ["confidence_penalty", "lovasz_softmax", "dice(region='sequence')"])
@pytest.mark.parametrize("shape", ["weight alone", "bias", "all"])
def test_chunks_and_tiles_add_up(text: str, shape: str, device: str) -> None:
    case = _on(draw(**SHAPES[shape]), device)
    found = _run(text, case, "triton")
    for impl in ("chunked", None):
        for one, other in zip(found, _run(text, case, impl), strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("few_blocks")
def test_more_blocks_of_rows_than_run_side_by_side(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_BLOCKS", {8: replace(SMALL, columns=32)})
    monkeypatch.setattr(engine, "_CHUNK_ROWS", 300)
    case = _on(draw(290, hidden=5, vocab=17, ignored=False), device)
    for one, other in zip(_run("cross_entropy", case, "triton"), _run("cross_entropy", case, None), strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "draws"), [(torch.float32, 3), (torch.bfloat16, 1), (torch.float16, 1)])
def test_statistics_are_no_worse_than_naive_code(shape: str, dtype: torch.dtype, draws: int, device: str) -> None:
    cases = [_on(draw(seed=10 * seed, **SHAPES[shape]), device, dtype) for seed in range(draws)]
    _check_budget(lambda case, impl: _statistics(case, list(SUMS_READ), impl), cases)


@pytest.mark.parametrize("text", ["dice", "lovasz_softmax(region='sequence')"])
def test_regions_are_no_worse_than_naive_code(text: str, device: str) -> None:
    cases = [_on(draw(seed=10 * seed), device, torch.float32) for seed in range(6)]
    _check_budget(lambda case, impl: _run(text, case, impl), cases)


@pytest.mark.usefixtures("few_blocks")
def test_tanh_keeps_small_scores(device: str) -> None:
    # 1 - 2 / (exp(2x) + 1) would leave no digit of scores of 1e-7 under a soft-cap of 30.
    case = replace(draw(softcap=30.0, bias=False), weight=1e-8 * draw().weight)
    work = _work(_on(case, device, torch.float32))
    scores = engine.forward_sums(work)[0].label_scores
    right = case.logits()[case.labels != -100].gather(1, work.classes.cpu()[:, None]).squeeze(1)
    assert_close(scores.cpu().double(), right, rtol=1e-5, atol=0)


def test_impossible_classes_and_ties(device: str) -> None:
    case = _on(draw(), device)
    assert case.bias is not None
    # All classes but two impossible, those two equal; a whole block and a whole tile hold no possible class.
    bias = torch.full_like(case.bias, -torch.inf)
    bias[[7, 11]] = 0.0
    weight = case.weight.clone()
    weight[11] = weight[7]
    labels = torch.where(case.labels == -100, case.labels, 7)
    case = replace(case, weight=weight, bias=bias, labels=labels)
    work = replace(_work(case), reads=frozenset({"highest", "tilted", "squares"}))
    sums = engine.forward_sums(work)[0]
    assert_close(sums.total, torch.ones_like(sums.total))
    assert_close(sums.ties, torch.ones_like(sums.total))
    assert_close(sums.maximum, sums.label_scores)
    for text in ("confidence_penalty", "focal", "dft"):
        found, wanted = (_run(text, case, impl) for impl in ("triton", "chunked"))
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-12)
            assert bool(one.isfinite().all())


@pytest.mark.usefixtures("few_blocks")
def test_ignored_rows_change_nothing(device: str) -> None:
    case = _on(draw(), device)
    ignored = case.labels == -100
    spoiled = case.hidden.masked_fill(ignored[:, None], torch.nan)
    wanted, found = _run("focal", case, "triton"), _run("focal", replace(case, hidden=spoiled), "triton")
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    assert not found[1][ignored].any()


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_part(frozen: str, device: str) -> None:
    case = _on(draw(), device)
    own = case.fresh()
    getattr(own, frozen).requires_grad_(False)
    lossmith.loss("dice")(own.linear("triton"), own.labels).backward()
    assert getattr(own, frozen).grad is None
    for name, wanted in zip(("hidden", "weight", "bias"), _trained("dice", case), strict=True):
        if name != frozen:
            assert_close(getattr(own, name).grad, wanted)


def _trained(text: str, case: Case) -> list[Tensor | None]:
    own = case.fresh()
    lossmith.loss(text)(own.linear("triton"), own.labels).backward()
    return [part.grad for part in own.parts]


def test_the_same_bits_every_time(device: str) -> None:
    case = _on(draw(), device, torch.float32)
    for one, other in zip(_run("focal", case, "triton"), _run("focal", case, "triton"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("few_blocks")
def test_autocast_rounds_the_operands(device: str) -> None:
    case = _on(draw(), device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        found, chunked = (_run("focal", case, impl, reduction="none") for impl in ("triton", "chunked"))
    plain = _run("focal", case, "triton", reduction="none")
    for one, other, unrounded in zip(found, chunked, plain, strict=True):
        step = other.abs().max() * 2**-8
        assert (one - other).abs().max() <= step
        assert (one - unrounded).abs().max() > step / 8


@pytest.mark.usefixtures("few_blocks")
def test_transposed_parts_and_a_bias_of_another_dtype(device: str) -> None:
    case = _on(draw(), device, torch.bfloat16)
    assert case.bias is not None
    strided = replace(
        case, hidden=case.hidden.T.contiguous().T, weight=case.weight.T.contiguous().T, bias=case.bias.float()
    )
    for one, other in zip(_run("focal", strided, "triton"), _run("focal", case, "triton"), strict=True):
        assert_close(one.double(), other.double(), rtol=2**-8, atol=0)


def test_no_tensor_of_tokens_by_vocabulary(device: str) -> None:
    for text in ("confidence_penalty", "lovasz_softmax", "dice(region='sequence')"):
        case = _for(text, _on(draw(), device, torch.float32)).fresh()
        lossmith.set_chunk_budget(7 * VOCAB * 4)
        with Probe() as probe:
            lossmith.loss(text)(case.linear("triton"), case.labels).sum().backward()
        assert probe.largest < TOKENS * VOCAB


@pytest.mark.parametrize("text", ["focal", "confidence_penalty"])
def test_tiles_of_tiny_probabilities_are_left_out(text: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_CHUNK_ROWS", TOKENS)
    lossmith.set_chunk_budget(None)
    case = _on(draw(), device)
    assert case.bias is not None
    # Classes 30 to 49 are improbable, and labels of some of the first rows alone.
    case = replace(case, bias=case.bias - 6 * (torch.arange(VOCAB, device=device) // 10 % 5 > 2))
    case.labels[20:] = torch.where(case.labels[20:] > 29, 5, case.labels[20:])
    exact = _run(text, case, "triton", reduction="none")
    # What it says, on logits that exist: the derivative of a block is 0 where no probability reaches it.
    below, rows = 0.05, (case.labels != -100).nonzero().squeeze(1)
    logits = case.logits().detach().requires_grad_()
    value = lossmith.loss(text)(logits, case.labels, reduction="none")
    (derivative,) = torch.autograd.grad(value, logits, normal(*value.shape, seed=77).float().to(value))
    needed = logits.softmax(1) >= below
    needed[rows, case.labels[rows]] = True
    left_out = 0
    for block in rows.split(SMALL.rows):
        for start in range(0, VOCAB, SMALL.columns):
            columns = slice(start, start + SMALL.columns)
            if not needed[block, columns].any():
                derivative[block, columns] = 0
                left_out += 1
    assert left_out == 1
    own = case.fresh()
    value = lossmith.loss(text)(own.linear("triton", skip_below=below), own.labels, reduction="none")
    found = torch.autograd.grad(value, own.parts, normal(*value.shape, seed=77).float().to(value))
    assert torch.equal(value, exact[0])
    wanted = [derivative @ case.weight, derivative.T @ case.hidden, derivative.sum(0)]
    for one, other, whole in zip(found, wanted, exact[1:], strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(one, whole, rtol=1e-8)


@pytest.mark.usefixtures("few_blocks")
def test_what_is_the_same_for_every_class_is_never_left_out(device: str) -> None:
    case = _on(draw(), device)
    # No label lies in the second block of classes.
    case = replace(case, labels=torch.where(case.labels == -100, case.labels, 5))
    text = "cross_entropy(label_smoothing=0.2)"
    own = case.fresh()
    lossmith.loss(text)(own.linear("triton", skip_below=0.999), own.labels).backward()
    for part, other in zip(own.parts, _trained(text, case), strict=True):
        assert_close(part.grad, other, rtol=1e-12, atol=1e-14)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lossmith.engines.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ObjectiveInputError, match=r"needs the `triton` package, which is not installed: pip install"):
        _trained("cross_entropy", draw())


def test_without_a_cuda_device() -> None:
    if INTERPRETED:
        pytest.skip("the interpreter needs none")
    with pytest.raises(
        ObjectiveInputError, match="needs a CUDA device, got cpu: use impl='chunked', or set TRITON_INT"
    ):
        _trained("cross_entropy", draw())


def test_importing_lossmith_imports_no_triton() -> None:
    code = "import sys, lossmith, lossmith.engines.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kernel", ["row_sums_kernel", "score_gradient_kernel", "scores_kernel"])
@pytest.mark.parametrize(("dtype", "whole"), [("bf16", False), ("bf16", True), ("fp32", True)])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(
    kernel: str, dtype: str, whole: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(engine, "_BLOCKS", SHIPPED)
    linear = draw(softcap=1.0 if whole else None).linear("triton")
    work = ChunkedPass(linear=linear, places=None, classes=torch.zeros(1, dtype=torch.long), reads=frozenset())
    blocks = engine._blocks(work, {"bf16": 2, "fp32": 4}[dtype])
    constants: dict[str, int | None] = {"BLOCK_T": blocks.rows, "BLOCK_V": blocks.columns, "BLOCK_D": blocks.inner}
    constants |= {"WIDTH": 4096, "BLOCKS_PER_SPLIT": blocks.per_split}
    types = dict.fromkeys(("hidden_TD", "weight_VD", "bias_V", "gradient_TV"), f"*{dtype}")
    types |= {"label_T": "*i64", "live_RC": "*i32"}
    types |= dict.fromkeys(("rows", "columns", "hidden_stride", "weight_stride"), "i32")
    function = getattr(engine.check_available(torch.device("cuda")), kernel)
    if not whole:
        needed = (
            "hidden",
            "weight",
            "label",
            "reference",
            "maximum",
            "total",
            "gradient_TV",
            "scores_TV",
            "rows",
            "columns",
        )
        optional = [name for name in function.arg_names if not name.startswith(needed) and name not in constants]
        constants |= dict.fromkeys(optional, None)
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
    source = triton.compiler.ASTSource(
        function,
        signature,
        {(names.index(name),): value for name, value in constants.items() if name in names},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name] != "constexpr"},
    )
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    compiled = triton.compile(source, target=target, options=options)
    # An H100 or H200 has 227 KiB for one program; its tensor cores are reached by these instructions only.
    assert compiled.metadata.shared <= 227 * 1024
    assert ("wgmma.mma_async" in compiled.asm["ptx"]) == (dtype == "bf16")
