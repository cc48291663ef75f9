"""The compiler: what it takes, what it refuses, and with which words."""

import ast
import math
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from programs import margin, random_program

import lossmith
from lossmith.discovery import CompileError, compile_source
from lossmith.discovery.compiler import compile_candidate
from lossmith.discovery.describe import describe_candidate
from lossmith.discovery.export import objective_source
from lossmith.discovery.program import Program, const, inputs_of, make, setting, to_python, torch_function
from lossmith.errors import ObjectiveInputError

X = inputs_of("preference")
Z = margin()


def body(text: str) -> str:
    lines = "\n".join(f"    {line}" for line in text.strip().splitlines())
    return (
        "def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):\n"
        f"    z = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)\n{lines}\n"
    )


def root(text: str):
    return compile_source(body(text)).root


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("return F.softplus(-z)", make("softplus", make("neg", Z))),
        ("return torch.nn.functional.softplus(z)", make("softplus", Z)),
        ("return z.exp()", make("exp", Z)),
        ("return z.clamp(min=0)", make("clamp", Z, const(0), const(math.inf))),
        ("return torch.clamp(z, max=-1)", make("clamp", Z, const(-math.inf), const(-1))),
        ("return torch.clamp(z, 0, 1)", make("clamp", Z, const(0), const(1))),
        ("return z ** 2", make("square", Z)),
        ("return z.pow(3)", make("pow", Z, const(3))),
        ("return torch.where(z < 0, z, 1.0)", make("where", make("lt", Z, const(0)), Z, const(1))),
        ("low = z < 0\nreturn low.float() * z", make("mul", make("cast", make("lt", Z, const(0))), Z)),
        (
            "return ((z > 0) & ~(z >= 1)).float()",
            make("cast", make("and", make("gt", Z, const(0)), make("not", make("ge", Z, const(1))))),
        ),
        ("return z - z.mean()", make("sub", Z, make("mean_batch", Z))),
        ("return z / torch.std(z)", make("div", Z, make("std_batch", Z))),
        ("return z * torch.var(z, unbiased=True)", make("mul", Z, make("var_batch", Z))),
        ("return z * math.log(2)", make("mul", Z, const(math.log(2)))),
        ("return z * math.pi", make("mul", Z, const(math.pi))),
        ("return z.detach() + torch.maximum(z, -z)", make("add", make("detach", Z), make("max", Z, make("neg", Z)))),
        ("y = z\ny += 1\ny *= 2\nreturn y", make("mul", make("add", Z, const(1)), const(2))),
        ("y: float = z\nreturn y", Z),
        ("a = b = z\nreturn a + b", make("add", Z, Z)),
        ("return abs(z)", make("abs", Z)),
        ("return torch.logaddexp(z, -z)", make("add", Z, make("softplus", make("sub", make("neg", Z), Z)))),
        ("return F.softplus(z, beta=2)", make("div", make("softplus", make("mul", const(2), Z)), const(2))),
        ("return torch.mul(input=z, other=2)", make("mul", Z, const(2))),
        ("return +z", Z),
        ("return -2.5 * z", make("mul", const(-2.5), Z)),
        ("z += 1\nreturn z", make("add", Z, const(1))),
        ("return (1 + z) ** (1/2)", make("pow", make("add", const(1), Z), const(0.5))),
        ("return z ** (4 - 2)", make("square", Z)),
        ("return torch.clamp(z, min=-1/2)", make("clamp", Z, const(-0.5), const(math.inf))),
        ("return torch.clamp(z, min=-5.0, max=None)", make("clamp", Z, const(-5), const(math.inf))),
        ("return torch.clamp(z, None, math.log(2))", make("clamp", Z, const(-math.inf), const(math.log(2)))),
        ("return F.relu(z, inplace=False)", make("relu", Z)),
        ("return F.softplus(z, beta=1, threshold=20)", make("softplus", Z)),
        ("return F.softplus(z, 1/2)", make("div", make("softplus", make("mul", const(0.5), Z)), const(0.5))),
        ("return z * z.std(correction=1)", make("mul", Z, make("std_batch", Z))),
        ("return torch.add(z, 1, alpha=1)", make("add", Z, const(1))),
        ("y: torch.Tensor\npass\ny = z\nreturn y", Z),
        ("y = z\ny += 1\nz = 2 * y\nreturn z", make("mul", const(2), make("add", Z, const(1)))),
    ],
)
def test_what_is_compiled_and_to_what(text, wanted):
    assert root(text) is wanted


@pytest.mark.parametrize(
    ("text", "category", "line", "said"),
    [
        ("import os\nreturn z", "forbidden", 3, "imported"),
        ("if z > 0:\n    return z\nreturn -z", "forbidden", 3, "torch.where"),
        ("return z if z > 0 else -z", "forbidden", 3, "torch.where"),
        ("return z and z", "forbidden", 3, "`&`"),
        ("return not z", "forbidden", 3, "`~`"),
        ("return 0 < z < 1", "forbidden", 3, "chain"),
        ("return torch.expp(z)", "forbidden", 3, "Did you mean 'exp'"),
        ("return torch.tensor(0.1) * z", "forbidden", 3, "write the number itself"),
        ("return z.sum()", "forbidden", 3, "mean over the batch"),
        ("return z.to(torch.float32)", "forbidden", 3, "cast a boolean"),
        ("return z[0]", "forbidden", 3, "every item is treated alike"),
        ("a, b = z, z\nreturn a", "forbidden", 3, "Assign one name at a time"),
        ("z = 1\nq = gamma * z\nreturn q", "forbidden", 4, "`gamma` is not defined"),
        ("return math.exp(z)", "forbidden", 3, "`math` is for numbers"),
        ("return z ** z", "bad-type", 3, "exponent must be a number"),
        ("return (z < 0) * z", "bad-type", 3, "cast a boolean by `.float()`"),
        ("return z.mean().mean()", "bad-type", 3, "number per item"),
        ("return torch.std(z, unbiased=False)", "bad-type", 3, "n - 1"),
        ("return torch.clamp(z, min=chosen_logps)", "bad-type", 3, "torch.minimum or torch.maximum"),
        ("return torch.where(z, z, z)", "bad-type", 3, "a boolean and two numbers"),
        ("return torch.clamp(z)", "bad-type", 3, "needs `min`"),
        ("return torch.exp()", "forbidden", 3, "`input` is missing"),
        ("return torch.exp(z, z)", "forbidden", 3, "takes 1 arguments"),
        ("return torch.exp(z, out=z)", "forbidden", 3, "keyword `out`"),
        ("return torch.exp(*[z])", "forbidden", 3, "without `*`"),
        ("return z % 2", "forbidden", 3, "Mod"),
        ("return 'z'", "forbidden", 3, "Texts"),
        ("return True", "forbidden", 3, "True"),
        ("return z\nreturn z", "forbidden", 4, "Nothing may follow"),
        ("z = z", "syntax", 1, "end with `return`"),
        ("torch = z\nreturn z", "forbidden", 3, "cannot be assigned"),
        ("z.grad = z\nreturn z", "forbidden", 3, "Only names are assigned"),
        ("z[0] += 1\nreturn z", "forbidden", 3, "Only names are assigned"),
        ("return F", "forbidden", 3, "alone is no value"),
        ("return z.T", "forbidden", 3, "attribute `T`"),
        ("return torch.nn", "forbidden", 3, "torch.nn"),
        ("return z, z", "forbidden", 3, "no tuple"),
        ("return torch.softplus(z)", "forbidden", 3, "use F.softplus"),
        ("return z.logsigmoid()", "forbidden", 3, "use F.logsigmoid"),
        ("return torch.logsigmoid(z)", "forbidden", 3, "use F.logsigmoid"),
        ("return F.exp(z)", "forbidden", 3, "use torch.exp"),
        ("return F.gelu(z)", "forbidden", 3, "torch.erf(x / math.sqrt(2))"),
        ("return torch.sin(z)", "forbidden", 3, "no periodic functions"),
        ("return F.leaky_relu(z, 0.1)", "forbidden", 3, "torch.where(x > 0"),
        ("return F.binary_cross_entropy_with_logits(z, z)", "forbidden", 3, "F.softplus(-x) where the target is 1"),
        ("return (z > 0).type_as(z)", "forbidden", 3, "cast a boolean"),
        ("print(z)\nreturn z", "forbidden", 3, "leave the line out"),
        ("return max(z, 0)", "forbidden", 3, "torch.maximum"),
        ("return torch.max(z, 0)", "bad-type", 3, "is an axis"),
        ("return z / (1 / 0)", "bad-type", 3, "not finite"),
        ("return z * math.log(0)", "forbidden", 3, "no finite value"),
        ("return z * math.exp(x=1)", "forbidden", 3, "no keywords"),
        ("return z.std(1)", "forbidden", 3, "takes 1 arguments"),
        ("return F.softplus(z, beta=z)", "bad-type", 3, "is a number"),
        ("return F.softplus(z, threshold=10)", "bad-type", 3, "is 20"),
        ("return F.relu(z, inplace=True)", "forbidden", 3, "stays at its default"),
        ("return torch.full_like(z, z)", "bad-type", 3, "is a number"),
        ("y = z\ny += 1\nreturn y * z", "forbidden", 5, "are one tensor"),
        ("y = +z.detach()\ny *= 2\nreturn y * z", "forbidden", 5, "are one tensor"),
        ("a = b = -z\na -= 1\nreturn b", "forbidden", 5, "are one tensor"),
        ("y = z.mean()\ny += z\nreturn y", "bad-type", 4, "does not fit"),
        ("torch: float\nreturn z", "forbidden", 3, "cannot be assigned"),
        ("return z.unsqueeze(-1)", "forbidden", 3, "beside a table"),
        ("return z * z.unsqueeze(" + ".".join("a" * 900) + ")", "forbidden", 3, "unsqueeze"),
        ("return z * z.unsqueeze(-True)", "forbidden", 3, "unsqueeze"),
        ("return z * (+(z > 0)).float()", "bad-type", 3, "error in torch"),
        ("return " + "z + " * 69 + "z", "too-large", 3, "two assignments"),
        ("return " + "(" * 70 + "z" + ")" * 70, "too-large", 3, "nested more than 60"),
        ("y = z\nreturn " + "-" * 70 + "z", "too-large", 4, "nested more than 60"),
        ("return " + "q" * 5000, "forbidden", 3, "qqq..."),
        ("return z * " + "1" * 5000, "syntax", 3, "too many digits"),
    ],
)
def test_what_is_refused_and_why(text, category, line, said):
    with pytest.raises(CompileError, match=r"Line \d+") as caught:
        compile_source(body(text))
    assert (caught.value.category, caught.value.line) == (category, line)
    assert said in caught.value.reason
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 300


@pytest.mark.parametrize(
    ("source", "category", "said"),
    [
        ("def f(a): return a", "signature", "vocabulary"),
        ("def f(chosen_logp): return chosen_logp", "signature", "Did you mean 'chosen_logps'"),
        (
            "def f(chosen_logps, beta=0.1): return -beta * chosen_logps",
            "signature",
            "stands after `*`, as in `*, beta=0.1`",
        ),
        ("def f(chosen_logps, *, beta): return -chosen_logps", "signature", "needs a numeric default"),
        ("def f(chosen_logps, *, beta=None): return -chosen_logps", "signature", "written as a number"),
        ("def f(chosen_logps, *, torch=1): return -chosen_logps", "signature", "cannot be called"),
        ("def f(chosen_logps, *, rejected_logps=1): return -chosen_logps", "signature", "is an input"),
        ("def f(*chosen_logps): return 1", "signature", "one by one"),
        ("def f(): return 1.0", "signature", "reads nothing"),
        ("def f(chosen_logps, reward_shift): return -chosen_logps", "signature", "write mean_batch(x)"),
        ("def f(chosen_logps, *, reward_shift=0): return -chosen_logps", "signature", "write mean_batch(x)"),
        ("x = 1", "forbidden", "Only one function"),
        ("def f(chosen_logps): return -chosen_logps\ndef g(chosen_logps): return -chosen_logps", "forbidden", "got 2"),
        ("@f\ndef f(chosen_logps): return -chosen_logps", "forbidden", "Decorators"),
        ("def f(self, chosen_logps): return -chosen_logps", "signature", "`self`"),
        ("def f(policy_chosen_logps): return -policy_chosen_logps", "signature", "--signature discopop"),
        ("def f(chosen_logps, *, a=1, a=2): return -a * chosen_logps", "signature", "`a` stands twice"),
        ("def f(chosen_logps, chosen_logps): return -chosen_logps", "signature", "stands twice"),
        ("def F(chosen_logps): return F.relu(chosen_logps)", "signature", "cannot be called `F`"),
        (f"def f(chosen_logps, *, {'b' * 5000}=1): return -chosen_logps", "signature", "40 letters"),
        ("B = 0.1\ndef f(chosen_logps): return -B * chosen_logps", "forbidden", "after `*` as a hyper-parameter"),
        ("import os\ndef f(chosen_logps): return -chosen_logps", "forbidden", "`os` is not imported"),
        ("from torch import *\ndef f(chosen_logps): return -chosen_logps", "forbidden", "is not imported"),
        ("import torch.nn as F\ndef f(chosen_logps): return -chosen_logps", "forbidden", "means something else"),
        ("import math as torch\ndef f(chosen_logps): return -chosen_logps", "forbidden", "means something else"),
        ("import math\nfrom __future__ import annotations\ndef f(chosen_logps): return chosen_logps", "syntax", "top"),
        ("def f(chosen_logps): return _up(-chosen_logps)", "forbidden", "`_up(...)`"),
        ("def _up(values): return 2 * values\ndef f(chosen_logps): return chosen_logps", "forbidden", "got 2"),
        ("@lossmith.objective()\ndef f(chosen_logps): return -chosen_logps", "forbidden", "under `import lossmith`"),
        (
            "import lossmith\n@lossmith.objective(family='token')\ndef f(chosen_logps): return -chosen_logps",
            "signature",
            "says family 'token'",
        ),
        (
            "import lossmith\n@lossmith.objective(family=f())\ndef f(chosen_logps): return -chosen_logps",
            "forbidden",
            "plain values",
        ),
        (
            "import lossmith\n@lossmith.objective(**{'family': 'token'})\ndef f(chosen_logps): return -chosen_logps",
            "forbidden",
            "without `**`",
        ),
        (f"@{'.'.join('a' * 900)}(x=1)\ndef f(chosen_logps): return -chosen_logps", "forbidden", "Decorators"),
        (f"def _up(values): return {'-' * 992}values\ndef f(chosen_logps): return chosen_logps", "forbidden", "got 2"),
        ("text\n```python\ndef f(chosen_logps): return -chosen_logps\n```", "syntax", "fence"),
        ("", "signature", "one function, got none"),
        (b"def f(chosen_logps): return chosen_logps", "syntax", "got bytes"),
        (None, "syntax", "got NoneType"),
        (7, "syntax", "got int"),
    ],
)
def test_sources_that_are_no_candidate(source, category, said):
    with pytest.raises(CompileError) as caught:
        compile_candidate(source)
    assert caught.value.category == category
    assert said in caught.value.reason


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ("chosen_logps,\n *,\n beta", 3),
        ("chosen_logps,\n *,\n beta=None", 3),
        ("chosen_logps,\n beta=0.1", 2),
        ("chosen_logps,\n\n *rest", 3),
        ("chosen_logps,\n **rest", 2),
        ("self,\n chosen_logps, /", 2),
        ("chosen_logps,\n reward_shift", 2),
    ],
)
def test_a_parameter_is_refused_in_its_own_line(parameters, line):
    with pytest.raises(CompileError) as caught:
        compile_source(f"def f({parameters}):\n return -chosen_logps")
    assert (caught.value.category, caught.value.line) == ("signature", line)


def test_signature_subset_order_and_hyperparameters():
    found = compile_candidate(
        "def my_loss(rejected_logps: 1/0, chosen_logps, *, beta: open('x') = -2, alpha=.5, tau=3) -> 1/0:\n"
        "    '''doc'''\n    return beta * alpha * (chosen_logps - rejected_logps)"
    )
    assert found.program.inputs == ("chosen_logps", "rejected_logps")
    assert dict(found.program.hyperparameters) == {"beta": -2.0, "alpha": 0.5}
    assert found.flags == ("unused:tau",)
    assert found.name == "my_loss"
    assert found.program.root is make(
        "mul", make("mul", setting("beta"), setting("alpha")), make("sub", X["chosen_logps"], X["rejected_logps"])
    )


def test_the_papers_signature():
    source = (
        "def f(self, policy_chosen_logps: torch.FloatTensor, policy_rejected_logps, reference_chosen_logps,\n"
        "      reference_rejected_logps):\n"
        "    z = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)\n"
        "    return -F.logsigmoid(self.beta * z)\n"
    )
    program = compile_source(source, signature="discopop")
    assert program.root is make("neg", make("logsigmoid", make("mul", setting("beta"), Z)))
    assert dict(program.hyperparameters) == {"beta": 0.05}
    assert compile_source(source.replace("self, ", "", 1), signature="discopop") == program
    by_name = source.replace("    z =", "    beta = self.beta\n    z =").replace("self.beta * z", "beta * z")
    assert compile_source(by_name, signature="discopop") == program
    # A local `beta` and `self.beta` are two things.
    both = source.replace("    z =", "    beta = 3\n    z =").replace("self.beta * z", "self.beta * z / beta")
    inside = make("div", make("mul", setting("beta"), Z), const(3))
    assert compile_source(both, signature="discopop").root is make("neg", make("logsigmoid", inside))
    declared = source.replace("rejected_logps):\n", "rejected_logps, *, beta=0.3):\n")
    for wrong, said in (
        (source.replace("self.beta", "self.gamma"), "`beta` alone.*as a hyper-parameter"),
        (declared, "two numbers under one name"),
        (source.replace("self.beta", "self"), "not defined"),
        (source.replace("policy_chosen_logps", "chosen_logps"), "paper's signature"),
    ):
        with pytest.raises(CompileError, match=said):
            compile_source(wrong, signature="discopop")
    with pytest.raises(CompileError, match="for preference losses"):
        compile_source(source, "token", signature="discopop")


def test_unknown_family_and_signature_are_the_callers_mistake():
    for wrong in ({"family": "region"}, {"signature": "paper"}):
        with pytest.raises(ObjectiveInputError, match="must be one of"):
            compile_source(body("return z"), **wrong)


def test_hyperparameters_are_bound_again():
    head = "def f(chosen_logps, *, beta=0.1):\n    "
    input, beta = X["chosen_logps"], setting("beta")
    for line, wanted in (
        ("beta = beta * 2", make("mul", beta, const(2))),
        ("beta *= 2", make("mul", beta, const(2))),
        ("beta = 0.5", const(0.5)),
    ):
        found = compile_candidate(f"{head}{line}\n    return beta * chosen_logps")
        assert found.program.root is make("mul", wanted, input)
        assert found.flags == (("unused:beta",) if wanted.op == "const" else ())


@pytest.mark.parametrize("bounds", ["min=-m", "max=2*m", "min=-m, max=m/2", "min=-0.5, max=2*m", "-m, 1.0", "2*m, -m"])
def test_bounds_with_arithmetic_are_those_of_torch_with_its_gradients(bounds):
    m = 0.5
    program = compile_source(f"def f(chosen_logps, *, m=0.5): return torch.clamp(chosen_logps, {bounds})")
    numbers = {name or place: value for place, (name, value) in enumerate(ast_bounds(bounds, m))}
    low, high = numbers.get("min", numbers.get(0)), numbers.get("max", numbers.get(1))
    x, y = (torch.tensor([-2, -0.5, -0.1, 0.25, 0.5, 0.9, 1.0, 3.0], requires_grad=True) for _ in range(2))
    ours, theirs = torch_function(program)(x), torch.clamp(y, low, high)
    assert ours.tolist() == theirs.tolist()
    ours.sum().backward()
    theirs.sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    # At a bound too, where `maximum` would pass on one half.
    assert x.grad.tolist() == y.grad.tolist()


def ast_bounds(text: str, m: float):
    known = {"-m": -m, "2*m": 2 * m, "m/2": m / 2, "m": m}
    for part in text.split(", "):
        name, _, value = part.rpartition("=")
        yield name, known[value] if value in known else float(value)


def test_imports_that_a_file_needs_are_dropped():
    head = '"""A file."""\n\nimport math\nimport torch\nimport torch.nn.functional as F\nfrom torch import Tensor\n\n'
    assert compile_source(head + body("return F.softplus(-z)")).root is make("softplus", make("neg", Z))
    for line in (
        "import torch, math",
        "import torch.nn as nn",
        "import torch.nn.functional",
        "from torch import nn, Tensor",
        "from typing import Tuple",
        "from __future__ import annotations",
        "from lossmith.discovery import std_batch",
    ):
        assert compile_source(f"{line}\n{body('return z')}").root is Z


def test_a_fence_around_the_source_is_dropped():
    for opening in ("```python", "```", "\n\n```py"):
        assert compile_source(f"{opening}\n{body('return -z')}```\n").root is make("neg", Z)
    with pytest.raises(CompileError) as caught:
        compile_source(f"\n```python\n{body('return zz')}```")
    assert caught.value.line == 5


def test_a_text_of_another_class_is_its_text():
    class Text(str):
        __slots__ = ()

        def __len__(self):
            raise RuntimeError

        def isascii(self):
            raise RuntimeError

    assert compile_source(Text(body("return z"))).root is Z
    with pytest.raises(CompileError, match="Line 1: "):
        compile_source(Text("x"))


def test_too_large_says_where():
    for source, line in (
        (body("y = z\nreturn z") + "#" * 8192, 5),
        (body("\n".join(["y = z + 1"] * 140) + "\nreturn y"), 126),
        (body("y = z\nreturn " + "z+" * 1200 + "z"), 4),
        (body("return z" + "\n# x" * 2800), 1006),
    ):
        with pytest.raises(CompileError) as caught:
            compile_source(source)
        assert (caught.value.category, caught.value.line) == ("too-large", line)


def test_an_exported_file_compiles_to_its_program():
    margins = make("softplus", make("mul", setting("beta"), make("neg", Z)))
    spread = make("div", Z, make("add", const(1), make("std_batch", Z)))
    program = Program("preference", make("add", margins, make("max", const(0), spread)), {"beta": 0.3})
    text = objective_source(program, "mine", SimpleNamespace(folder=Path("a-run")), describe_candidate(program))  # type: ignore[arg-type]
    assert "@lossmith.objective(" in text
    assert "_up(chosen_logps)" in text
    assert compile_source(text) == program
    with pytest.raises(CompileError, match="Decorators"):
        compile_source(text.replace("@lossmith.objective(", "@lossmith.compose("))


def test_numbers_per_anchor_meet_tables_as_in_torch():
    head = "def f(similarities, same):\n    near = mean_masked(similarities, same)\n    return "
    wanted = compile_source(f"{head}mean_masked(similarities - near.unsqueeze(-1), same)", "metric")
    x = inputs_of("metric")
    near = make("mean_masked", x["similarities"], x["same"])
    assert wanted.root is make("mean_masked", make("sub", x["similarities"], near), x["same"])
    for text, said in (
        ("mean_masked(similarities - near, same)", "write `.unsqueeze\\(-1\\)`"),
        ("mean_masked(torch.maximum(near, similarities), same)", "write `.unsqueeze\\(-1\\)`"),
        ("near.unsqueeze(-1) + near", "directly beside a table"),
        ("mean_masked(similarities + similarities.unsqueeze(-1), same)", "directly beside a table"),
    ):
        with pytest.raises(CompileError, match=said):
            compile_source(head + text, "metric")


@pytest.mark.parametrize("seed", range(60))
def test_the_text_of_a_program_compiles_to_it(seed):
    found = random_program(seed)
    if not found.inputs:
        return
    again = compile_source(to_python(found))
    assert again.key == found.key
    # The text of a number with a sign is that number.
    assert again.root.size <= found.root.size


def test_the_text_is_python_that_computes_the_same():
    for seed in range(25):
        found = random_program(seed, depth=3)
        if not found.inputs:
            continue
        # Our own text, of a program drawn here: the one place where it is run, to show that it is what it says.
        names = {"torch": torch, "F": torch.nn.functional, **vars(lossmith.discovery.program.functions)}
        exec(to_python(found), names)  # noqa: S102
        generator = torch.Generator().manual_seed(seed)
        given = [torch.randn(5, generator=generator) - 2 for _ in found.inputs]
        torch.testing.assert_close(
            names["candidate_loss"](*given), torch_function(found)(*given), equal_nan=True, rtol=1e-5, atol=1e-5
        )


def refused_in(source: str) -> tuple[str, float, float]:
    """Category, milliseconds of CPU and MiB at the peak of a refusal."""
    with pytest.raises(CompileError) as caught:
        compile_source(source)
    start = time.process_time()
    with pytest.raises(CompileError):
        compile_source(source)
    spent = 1000 * (time.process_time() - start)
    tracemalloc.start()
    with pytest.raises(CompileError):
        compile_source(source)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return caught.value.category, spent, peak


@pytest.mark.parametrize(
    "source",
    [
        body("return " + "+".join(["z"] * 200_000)),
        body("\n".join(["z = z + z"] * 60 + ["return z"])),
        body("\n".join(["z = z * z"] * 60 + ["return z"])),
        body("return " + "(" * 4000 + "z" + ")" * 4000),
        body("return " + "-" * 8000 + "z"),
        body("return " + "abs(" * 1500 + "z" + ")" * 1500),
        body("return " + "z if z else " * 600 + "z"),
        body("return z" + "**2" * 2000),
        body("return " + "lambda: " * 900 + "z"),
        body("return " + "not " * 1900 + "z"),
        body("return " + "[" * 59 + "z" + "]" * 59),
        body("return '" + "\\x41" * 1900 + "'"),
        "x" * 10_000_000,
        "(" * 8000,
        "\x00" * 8000,
        "\ud800" * 8000,
        'f"' + "{" * 3000,
        "'''" + '"' * 8000,
        "#" * 8000,
    ],
)
def test_bombs_are_refused_fast_and_small(source):
    _, spent, peak = refused_in(source)
    assert spent < 100
    assert peak < 200


def test_limits_are_where_they_say():
    assert compile_source(body("return " + "+".join(["z"] * 55)))
    with pytest.raises(CompileError, match="nested more than 60") as caught:
        compile_source(body("return " + "+".join(["z"] * 70)))
    assert caught.value.category == "too-large"
    lines = "\n".join(["y = z + 1"] * 110)
    assert compile_source(body(f"{lines}\nreturn y"))
    with pytest.raises(CompileError, match="500 nodes"):
        compile_source(body("\n".join(["y = z + 1"] * 140) + "\nreturn y"))
    doubled = "\n".join(["z = z + z"] * 8)
    assert compile_source(body(f"{doubled}\nreturn z")).root.size == 255 + 256 * 7
    with pytest.raises(CompileError, match="nodes written out"):
        compile_source(body("\n".join(["z = z + z"] * 10) + "\nreturn z"))
    long = body("return z") + "#" * 8192
    with pytest.raises(CompileError, match="8,192"):
        compile_source(long)


def test_comments_and_names_are_nowhere_in_a_program():
    source = body("'''SECRET one'''\nreturn F.softplus(-SECRET_name)").replace("z =", "SECRET_name =")
    source = source.replace("    '''SECRET one'''\n", "    # SECRET two\n").replace("def f", "def SECRET_f")
    program = compile_source(source)
    assert "SECRET" not in to_python(program) + program.to_json()


EVALUATES = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "execfile",
    "import_module",
    "run_path",
    "run_module",
    "FunctionType",
)
HARMLESS = ("re.compile", "torch.compile")


def evaluations(tree: ast.AST) -> list[str]:
    """What in a module could run text: any mention of such a function, and modules that serve for nothing else."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in (*EVALUATES, "builtins", "__builtins__"):
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in EVALUATES and ast.unparse(node) not in HARMLESS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [name for name in named if name in ("builtins", "importlib", "runpy", "code", "marshal")]
            found += [name for name in named if name in EVALUATES]
    # The mode of a module for evaluation takes no text.
    modes = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and not (n.args or n.keywords)]
    return [each for each in found if not (each.endswith(".eval") and each in modes)]


def test_nothing_is_evaluated_in_discovery():
    files = sorted(Path(lossmith.discovery.__file__).parent.rglob("*.py"))
    assert len(files) > 60
    for path in files:
        assert evaluations(ast.parse(path.read_text(encoding="utf-8"))) == [], path
    for text in (
        "exec(x)",
        "run = eval",
        "builtins.exec(x)",
        "model.eval(x)",
        "__builtins__['exec']",
        "import builtins as b",
        "from importlib import import_module",
        "types.FunctionType(x, {})",
    ):
        assert evaluations(ast.parse(text)), text


def test_warnings_of_the_parser_stay_inside():
    source = "def f(chosen_logps):\n    '''a \\d escape'''\n    return -chosen_logps\n"
    assert compile_source(source).root is make("neg", X["chosen_logps"])
    for number in ("1", "1.", "1_0", "1.5", "1e5", "0x1"):
        with pytest.raises(CompileError) as caught:
            compile_source(f"def f(chosen_logps): return {number}if chosen_logps else chosen_logps")
        # A warning that came out would be an error here, and the source no Python.
        assert caught.value.category == "forbidden"


def test_a_program_compiles_for_every_family():
    assert compile_source("def f(token_logps, entropy): return -token_logps + 0.1 * entropy", "token").family == "token"
    metric = compile_source("def f(similarities, same): return -mean_masked(similarities, same)", "metric")
    assert isinstance(metric, Program)
    assert metric.root.type == "item"
