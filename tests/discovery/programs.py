"""Random programs and inputs for the tests of discovery."""

import random

import torch
from torch import Tensor

from lossmith.discovery.program import INPUTS, OPERATORS, Node, Program, const, inputs_of, make, read, setting

UNARY = (
    "neg",
    "exp",
    "expm1",
    "softplus",
    "logsigmoid",
    "sigmoid",
    "tanh",
    "relu",
    "abs",
    "square",
    "erf",
    "atan",
    "detach",
)
BINARY = ("add", "sub", "mul", "div", "min", "max")
COMPARISONS = ("lt", "le", "gt", "ge")
REDUCTIONS = ("mean_batch", "var_batch", "std_batch")


def margin() -> Node:
    x = inputs_of("preference")
    policy = make("sub", x["chosen_logps"], x["rejected_logps"])
    return make("sub", policy, make("sub", x["ref_chosen_logps"], x["ref_rejected_logps"]))


def random_item(draw: random.Random, depth: int) -> Node:
    """A number per pair, of every operator."""
    if depth == 0:
        name = draw.choice(("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"))
        return draw.choice((read(name), make("mul", const(round(draw.uniform(-1, 1), 2)), margin())))
    kind = draw.random()
    below = depth - 1
    if kind < 0.1:
        return random_power(draw, below)
    if kind < 0.4:
        return make(draw.choice(UNARY), random_item(draw, below))
    if kind < 0.7:
        return make(draw.choice(BINARY), random_item(draw, below), random_item(draw, below))
    if kind < 0.78:
        return make("mul", const(round(draw.uniform(-2, 2), 2)), random_item(draw, below))
    if kind < 0.84:
        return make("where", random_mask(draw, below), random_item(draw, below), random_item(draw, below))
    if kind < 0.88:
        return make("mul", make("cast", random_mask(draw, below)), random_item(draw, below))
    if kind < 0.92:
        return make("add", make(draw.choice(REDUCTIONS), random_item(draw, below)), random_item(draw, below))
    if kind < 0.95:
        bounds = (const(draw.choice((-1, 0))), const(draw.choice((0.5, float("inf")))))
        return make("clamp", random_item(draw, below), *bounds)
    return make(
        "add", make("mean_masked", random_item(draw, below), random_mask(draw, below)), random_item(draw, below)
    )


def random_power(draw: random.Random, depth: int) -> Node:
    """Exponents of either sign and 0; a base that may not be finite among them."""
    exponent = draw.choice((-2, -1.5, -1, -0.5, 0, 0, 0, 0.5, 1.5, 2, 3))
    # A 0 that the normal form finds by cancellation may come out on either side, so nothing divides by one.
    bases = (
        ("exp", "softplus") if exponent < 0 else ("exp", "softplus", "abs", *(("neg", "expm1") * (exponent % 1 == 0)))
    )
    op = draw.choice(bases)
    raised = make("pow", make(op, random_item(draw, depth)), const(exponent))
    return draw.choice((raised, make("mul", random_item(draw, 0), raised)))


def random_mask(draw: random.Random, depth: int) -> Node:
    if draw.random() < 0.3 and depth > 0:
        return make(draw.choice(("and", "or")), random_mask(draw, depth - 1), make("not", random_mask(draw, depth - 1)))
    return make(draw.choice(COMPARISONS), random_item(draw, max(depth - 1, 0)), const(draw.choice((0, -0.5, 1))))


def random_program(seed: int, depth: int = 4) -> Program:
    return Program("preference", random_item(random.Random(seed), depth))


def random_inputs(
    seed: int, items: int = 7, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name in INPUTS["preference"]:
        drawn = scale * torch.randn(items, generator=generator, dtype=torch.float64) - 2 * scale
        inputs[name] = (5 + 20 * torch.rand(items, generator=generator)).round() if "lengths" in name else drawn
    inputs["reward_shift"] = torch.tensor(0.3, dtype=torch.float64)
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def every_operator(program: Program) -> set[str]:
    from lossmith.discovery.program import order

    return {node.op for node in order(program.root)} & set(OPERATORS)


def with_setting(name: str) -> Program:
    return Program("preference", make("softplus", make("neg", make("mul", setting(name), margin()))), {name: 0.1})
