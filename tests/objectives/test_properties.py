"""The eight rules that every loss obeys (design, section 3), on drawn sizes, values and masks, for every objective.

What is drawn: up to 12 rows, which of them are ignored, the size of the numbers (logits to 1e4, log-probabilities to
-1e5 and -1e6 on one side, embeddings to 1e4), and a seed for the numbers themselves.
"""

import functools
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lossmith
from library import EVERY
from lossmith import ObjectiveInputError
from lossmith.errors import LossmithWarning
from lossmith.nn import ObjectiveModule
from lossmith.objectives import get_record
from lossmith.testing import Batch, draw_batch
from lossmith.testing.samples import CLASSES, DIM, VOCAB, statistics_of
from lossmith.testing.subject import run

pytestmark = pytest.mark.filterwarnings("ignore::lossmith.errors.LossmithWarning")
every = pytest.mark.parametrize("name", EVERY)
two_hundred = settings(max_examples=200, deadline=None, derandomize=True)
SIZES = {"num_classes": CLASSES, "embedding_dim": DIM}
LARGEST_HALF = 6e4


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """One thread, and no type checks of each call, which take more time than these small losses."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Draw:
    """What hypothesis draws; the numbers follow from it."""

    rows: int
    ignored: int
    seed: int
    exponent: float
    other_exponent: float

    @property
    def mask(self) -> Tensor:
        return torch.tensor([bool(self.ignored >> row & 1) for row in range(self.rows)], dtype=torch.bool)


draws = st.builds(
    Draw,
    rows=st.integers(0, 12),
    # All rows ignored and none ignored come often enough.
    ignored=st.one_of(st.integers(0, 2**12 - 1), st.sampled_from([0, 2**12 - 1])),
    seed=st.integers(0, 2**31),
    exponent=st.floats(-2, 4),
    other_exponent=st.floats(-2, 6),
)


def make(name: str, draw: Draw) -> Batch:
    """The inputs of one draw, in float64."""
    record = get_record(name)
    generator = torch.Generator().manual_seed(draw.seed)
    size, other_size = 10**draw.exponent, 10**draw.other_exponent

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, CLASSES, (draw.rows,), generator=generator)
    if record.family in ("token", "region"):
        return Batch({"logits": (size * normal(draw.rows, VOCAB)).clamp(-1e4, 1e4), "labels": labels})
    if record.family == "metric":
        return Batch({"embeddings": (size * normal(draw.rows, DIM)).clamp(-1e4, 1e4), "labels": labels})
    batch = draw_batch(record, rows=draw.rows, seed=draw.seed)
    sizes = {"logps": size, "ref_logps": other_size, "chosen_logps": size, "rejected_logps": other_size}
    inputs = dict(batch.inputs)
    for place, leaf in enumerate(batch.leaf_names):
        # One side far larger than the other: margins of both signs, to 1e6.
        scale = sizes.get(leaf, (size, other_size)[(place + draw.seed) % 2])
        inputs[leaf] = -(scale * normal(draw.rows)).abs().clamp(max=1e6)
    if "kl" in inputs:
        inputs["kl"] = size * normal(3)
    return Batch(inputs)


@functools.cache
def module_of(name: str, dtype: torch.dtype = torch.float64, region: str = "batch") -> ObjectiveModule:
    """One module per objective; a running mean has seen something and stays where it is."""
    record = get_record(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        own = {"region": region} if record.family == "region" else {}
        module = lossmith.loss(name, **{size: SIZES[size] for size in record.required}, **own).to(dtype)
    assert isinstance(module, ObjectiveModule)
    if region == "batch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LossmithWarning)
            run(module, draw_batch(record).to(dtype))
    return module.eval()


def assert_near(got: Tensor, wanted: Tensor, *, rtol: float = 1e-12, size: float = 0.0) -> None:
    """Equal up to rounding; `size` is that of the terms that may cancel."""
    bound = rtol * (wanted.detach().abs() + size) + 1e-300
    wrong = ~((got.detach() - wanted.detach()).abs() <= bound)
    assert not bool(wrong.any()), f"expected {wanted.detach()[wrong][:3]}, got {got.detach()[wrong][:3]}"


def largest(*tensors: Tensor) -> float:
    return max((float(x.detach().abs().max()) for x in tensors if x.numel()), default=0.0)


@every
@given(draw=draws, fill=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]), by=st.integers(0, 2))
@two_hundred
def test_ignored_is_removed_and_nothing_valid_is_zero_and_the_rest_is_the_function(name, draw, fill, by) -> None:
    """Rules 1, 2 and 6."""
    module, batch, ignored = module_of(name), make(name, draw), draw.mask
    ways = [way for way in ("valid", "chosen_lengths", "rejected_lengths") if way == "valid" or way in batch.inputs]
    value, slopes = run(module, batch.ignore(ignored, fill=fill, by=ways[by % len(ways)]))
    assert value.dtype == torch.float64
    assert value.requires_grad
    assert bool(torch.isfinite(value))
    kept = batch.take(~ignored)
    alone, wanted = run(module, kept)
    assert_near(value, alone)
    for place, (slope, expected) in enumerate(zip(slopes, wanted, strict=True)):
        if place < len(batch.leaves):
            assert not bool(slope[ignored].any())
            slope = slope[~ignored]
        assert_near(slope, expected, size=largest(expected))
    if bool(ignored.all()):
        assert value.item() == 0
        assert not any(bool(slope.any()) for slope in slopes)
        return
    record, settings_ = module.record, module.hyperparameters
    statistics = statistics_of(record, kept, proxies=dict(module.named_parameters()).get("proxies"))
    if "reward_shift" in statistics and record.name in ("bco", "bco_pair") and hasattr(module, "rewards"):
        statistics["reward_shift"] = (
            statistics["reward_shift"] * 0 if module.rewards is None else module.rewards.mean(alone.detach())
        )
    own = {key: value for key, value in settings_.items() if key not in record.module_hyperparameters}
    losses = record.function(**statistics, **own)
    count = losses.numel()
    if record.needs_positives:
        count = int(statistics["same"].any(-1).sum())
    assert_near(alone, losses.sum() / max(count, 1), size=largest(losses))


@every
@given(draw=draws, cut=st.integers(0, 12), shift=st.floats(-1.5, 0), divisor=st.floats(0.5, 1e4))
@two_hundred
def test_normalisation_is_algebra(name, draw, cut, shift, divisor) -> None:
    """Rule 3: weights, negative ones too, `num_items`, micro-batches and padding."""
    module, ignored = module_of(name), draw.mask
    batch = make(name, draw).ignore(ignored, fill=math.nan)
    if not len(batch.leaves):
        return
    losses = module(**batch.inputs, reduction="none").detach()
    assert_near(module(**batch.inputs, reduction="sum"), losses.sum(), size=float(losses.abs().sum()))
    if module.record.sorts:
        return
    generator = torch.Generator().manual_seed(draw.seed)
    weights = 3 * torch.rand(losses.shape, generator=generator, dtype=torch.float64) + shift
    by_hand = weights * losses
    if module.record.item in ("token", "anchor", "completion") or module.record.family == "preference":
        out = ignored.repeat(len(losses) // max(draw.rows, 1))
        assert not bool(losses[out].any())
        weights = weights.masked_fill(out, math.nan)
    size = float(by_hand.abs().sum()) / divisor
    value, slopes = run(module, batch, weights=weights, num_items=divisor)
    assert_near(value, by_hand.sum() / divisor, size=size)
    if module.batch_coupled:
        return
    sides = [slice(0, min(cut, draw.rows)), slice(min(cut, draw.rows), draw.rows)]
    parts = [run(module, batch.take(side), weights=weights[side], num_items=divisor) for side in sides]
    assert_near(parts[0][0] + parts[1][0], value, size=size)
    for place, expected in enumerate(slopes):
        pieces = [part[1][place] for part in parts]
        together = torch.cat(pieces) if place < len(batch.leaves) else pieces[0] + pieces[1]
        assert_near(together, expected, size=largest(expected, *pieces))


@pytest.mark.parametrize("name", [name for name in EVERY if get_record(name).family in ("token", "region")])
@given(draw=draws, lengths=st.lists(st.integers(0, 5), min_size=1, max_size=3))
@two_hundred
def test_left_padding_is_right_padding(name, draw, lengths) -> None:
    """Rule 3 again: token losses over all, region losses per sequence; and k sequences are k micro-batches."""
    draw = replace(draw, rows=sum(lengths))
    module, batch = module_of(name, region="sequence"), make(name, draw)
    logits, labels = batch.inputs["logits"], batch.inputs["labels"]
    width, values = max(lengths) + 1, []
    for left in (True, False):
        padded = torch.full((len(lengths), width, VOCAB), math.nan, dtype=torch.float64)
        targets = torch.full((len(lengths), width), -100)
        start = 0
        for row, n in enumerate(lengths):
            place = slice(width - n, width) if left else slice(0, n)
            padded[row, place], targets[row, place] = logits[start : start + n], labels[start : start + n]
            start += n
        values.append(module(padded, targets))
    size = 1e-6 if module.record.batch_coupled else 0.0
    assert_near(values[0], values[1], size=size)
    items = sum(lengths) if module.record.family == "token" else sum(n > 0 for n in lengths)
    if not module.batch_coupled and items:
        parts = [module(padded[[row]], targets[[row]], num_items=items) for row in range(len(lengths))]
        assert_near(torch.stack(parts).sum(), values[1], size=size)


@every
@given(draw=draws, half=st.sampled_from([torch.bfloat16, torch.float16]))
@two_hundred
def test_half_goes_up_and_single_is_stable_at_the_ends(name, draw, half) -> None:
    """Rule 4: finite at every size, near the float64 value of the same inputs; half precision is its raised self."""
    module, batch = module_of(name, torch.float32), make(name, draw).to(torch.float32)
    value, slopes = run(module, batch)
    assert value.dtype == torch.float32
    for tensor in (value, *slopes):
        assert bool(torch.isfinite(tensor).all())
    double = _in_double(name)(**batch.to(torch.float64).inputs)
    inputs = largest(*batch.leaves)
    spread = inputs * inputs if module.record.family == "metric" and name == "n_pairs" else inputs
    assert_near(value.double(), double, rtol=1e-4, size=1.0 + 1e-3 * spread)
    if inputs < LARGEST_HALF:
        small = batch.to(half)
        got, wanted = module(**small.inputs), module(**small.to(torch.float32).inputs)
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)


@functools.cache
def _in_double(name: str) -> ObjectiveModule:
    """The float32 module's parameters and running means, in float64."""
    module = module_of(name)
    module.load_state_dict(module_of(name, torch.float32).state_dict())
    return module


@every
@given(data=st.data())
@two_hundred
def test_no_setting_is_silent_and_forms_are_explicit(name, data) -> None:
    """Rules 5 and 7: a setting is taken as given or refused by name; an unknown one is refused."""
    record = get_record(name)
    sizes = {size: SIZES[size] for size in record.required}
    known = list(record.hyperparameters)
    key = data.draw(st.sampled_from([*known, "bogus"]))
    default = record.hyperparameters.get(key)
    numbers = st.floats(-3, 3) | st.integers(-2, 4) | st.sampled_from([math.nan, math.inf, -1e300])
    words = st.sampled_from(["published", "discovered", "released", "present", "all", ""])
    setting = data.draw({bool: st.booleans(), str: words, type(None): numbers}.get(type(default), numbers) | numbers)
    try:
        module = lossmith.loss(name, **{key: setting}, **sizes)
    except ObjectiveInputError as error:
        message = str(error)
        assert f"`{key}`" in message
        if key == "bogus":
            assert message.startswith(f"'{name}' has no hyper-parameter `bogus`.")
        else:
            assert re.search(r"must be|needs|cannot|has no", message), message
        return
    assert key in record.hyperparameters
    assert module.hyperparameters[key] == setting
    assert type(module.hyperparameters[key]) is type(default)
    assert str(module) == (name if setting == default else f"{name}({key}={module.hyperparameters[key]!r})")
    assert lossmith.loss(str(module), **sizes).hyperparameters == module.hyperparameters


STATEFUL = [
    *(text for text in EVERY if get_record(text).proxy_shape),
    *(text for text in EVERY if "reward_shift" in get_record(text).reads and not get_record(text).needed_when),
    *(
        f"{text}({switch}=True)"
        for text in EVERY
        for switch in ("running_delta", "running_kl")
        if switch in get_record(text).hyperparameters
    ),
]


@pytest.mark.parametrize("text", [*STATEFUL, *(text for text in EVERY if get_record(text).row_local)])
@given(draw=draws, steps=st.integers(1, 2), memory=st.sampled_from([3, 8]))
@two_hundred
def test_state_travels(text, draw, steps, memory) -> None:
    """Rule 8: proxies, running means and memories are in `state_dict`, and with it the next values are the same."""
    name = text.partition("(")[0]
    record = get_record(name)
    sizes = {size: SIZES[size] for size in record.required}
    if record.row_local:
        sizes |= {"memory_size": memory, "embedding_dim": DIM}
    first, second = (lossmith.loss(text, **sizes).double() for _ in range(2))
    for step in range(steps):
        first(**make(name, replace(draw, seed=draw.seed + step, rows=max(draw.rows, 2))).inputs)
    assert first.state_dict()
    second.load_state_dict(first.state_dict())
    batch = make(name, replace(draw, seed=draw.seed + 7))
    (value, slopes), (again, found) = run(first, batch), run(second, batch)
    assert torch.equal(value, again)
    assert all(torch.equal(one, other) for one, other in zip(slopes, found, strict=True))
    for key, saved in first.state_dict().items():
        assert torch.equal(saved, second.state_dict()[key]), key


def test_the_others_have_no_state() -> None:
    for name in EVERY:
        if not any(text.partition("(")[0] == name for text in STATEFUL):
            assert not module_of(name).state_dict(), name
