"""Expressions, their normal form, their function and their text."""

import copy
import gc
import math
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import every_operator, margin, random_inputs, random_program, with_setting

import lossmith
from lossmith.discovery.program import (
    OPERATORS,
    Node,
    Program,
    ProgramError,
    as_objective,
    canonical_form,
    const,
    differentiate,
    from_json,
    inputs_of,
    make,
    names_of,
    one_line,
    order,
    read,
    setting,
    to_json,
    to_latex,
    to_python,
    torch_function,
)
from lossmith.testing import check_objective

SEEDS = range(150)
X = inputs_of("preference")
Z = margin()


def program(root, **hyperparameters) -> Program:
    return Program("preference", root, hyperparameters)


def key(root) -> str:
    return program(root).key


def test_the_same_expression_is_the_same_object():
    again = make("softplus", make("neg", margin()))
    assert again is make("softplus", make("neg", Z))
    assert copy.deepcopy(again) is again
    assert pickle.loads(pickle.dumps(again)) is again  # noqa: S301
    assert program(again) == program(make("softplus", make("neg", margin())))
    assert again is not make("softplus", Z)
    assert const(-0.0) is const(0)
    assert const(1) is not const(1 + 1e-15)


def test_nodes_that_nobody_holds_are_forgotten():
    from lossmith.discovery.program import nodes

    number = ("const", 0.123456, "scalar")
    kept = program(make("exp", make("mul", const(0.123456), X["chosen_logps"])))
    assert kept.key
    assert number in nodes._NODES
    gc.disable()  # a node whose normal form is itself must not wait for the collector
    try:
        del kept
        assert number in nodes._NODES, "the latest are held"
        nodes._LATEST.clear()
        assert number not in nodes._NODES
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: make("gamma", Z), "No operator"),
        (lambda: make("exp", Z, Z), "takes 1"),
        (lambda: make("add", Z, make("lt", Z, const(0))), "cast a boolean"),
        (lambda: make("where", Z, Z, Z), "boolean and two numbers"),
        (lambda: make("and", Z, Z), "booleans"),
        (lambda: make("mean_batch", make("mean_batch", Z)), "per item"),
        (lambda: make("pow", Z, Z), "must be a number"),
        (lambda: make("add", Z, const(math.inf)), "infinite"),
        (lambda: const(math.nan), "nan"),
        (lambda: make("clamp", Z, const(-math.inf), const(math.inf)), "needs a bound"),
        (lambda: make("clamp", Z, const(math.inf), const(math.inf)), "needs a bound"),
        (lambda: make("clamp", Z, const(0), const(-math.inf)), "needs a bound"),
        (lambda: program(read("token_logps")), "do not read `token_logps`"),
        (lambda: program(read("chosen_logps", "scalar")), "do not read"),
        (lambda: program(make("add", Z, read("reward_shift", "scalar"))), "do not read `reward_shift`"),
        (lambda: program(setting("beta")), "no default"),
        (lambda: program(make("mul", setting("beta"), Z), beta=math.inf), "finite"),
        (lambda: Program("region", Z), "`family`"),
    ],
)
def test_what_the_grammar_does_not_have_is_refused(build, said):
    with pytest.raises(ProgramError, match=said):
        build()


def test_a_program_too_large_is_refused_at_once():
    root = Z
    for _ in range(60):
        root = make("add", root, root)
    with pytest.raises(ProgramError, match=r"2\^62"):
        program(root)


def test_what_a_program_reads_and_declares():
    found = Program(
        "preference",
        make("mul", setting("beta"), make("sub", X["rejected_logps"], X["chosen_logps"])),
        {"tau": 2, "beta": 1},
    )
    assert found.inputs == ("chosen_logps", "rejected_logps")
    assert dict(found.hyperparameters) == {"beta": 1.0}
    assert not found.batch_coupled
    assert program(make("sub", Z, make("mean_batch", Z))).batch_coupled


def test_random_programs_use_every_operator():
    used = set().union(*(every_operator(random_program(seed)) for seed in SEEDS))
    assert used >= set(OPERATORS) - {"log", "log1p", "sqrt", "eq", "ne"}


def value_and_gradients(found: Program, inputs) -> list[torch.Tensor]:
    value = torch_function(found)(*[inputs[name] for name in found.inputs])
    wanted = [inputs[name] for name in found.inputs]
    gradients = (
        torch.autograd.grad(value.sum(), wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
    )
    return [value, *(torch.zeros(()) if g is None else g for g in gradients)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_normal_form_computes_the_same(seed):
    found = random_program(seed)
    if not found.inputs:
        return
    inputs = random_inputs(seed)
    raw = value_and_gradients(found, inputs)
    if not all(bool(part.isfinite().all()) for part in raw):
        return
    root = found.canonical
    normal = Program("preference", root)
    value = torch_function(normal)(*[inputs[n] for n in normal.inputs]) if normal.inputs else torch.tensor(root.value)
    scale = 1 + float(raw[0].detach().abs().max())
    torch.testing.assert_close(value.detach().double().expand_as(raw[0]), raw[0].detach(), rtol=1e-8, atol=1e-9 * scale)
    if value.requires_grad:
        wanted = [inputs[name] for name in found.inputs]
        # What has folded to a number per batch stands for one per item.
        got = torch.autograd.grad(value.expand_as(raw[0]).sum(), wanted, allow_unused=True)
        for mine, theirs in zip(got, raw[1:], strict=True):
            mine = torch.zeros_like(theirs) if mine is None else mine
            torch.testing.assert_close(
                mine, theirs.expand_as(mine), rtol=1e-7, atol=1e-8 * (1 + float(theirs.abs().max()))
            )
    else:
        assert all(float(part.abs().max()) < 1e-9 * scale for part in raw[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_normal_form_is_a_fixed_point(seed):
    root = random_program(seed).canonical
    again = canonical_form(root)
    assert program(again).key == program(root).key or again is root


def test_spellings_of_one_loss_have_one_key():
    x = make("mul", const(0.1), Z)
    regrouped = make(
        "sub",
        make("sub", X["chosen_logps"], X["ref_chosen_logps"]),
        make("sub", X["rejected_logps"], X["ref_rejected_logps"]),
    )
    spellings = [
        make("neg", make("logsigmoid", x)),
        make("softplus", make("neg", x)),
        make("softplus", make("mul", const(-0.1), regrouped)),
        make("sub", make("softplus", x), x),
        make("softplus", make("div", Z, const(-10))),
        make("add", make("softplus", make("neg", x)), make("mul", const(0), make("detach", X["chosen_logps"]))),
        make("sub", make("neg", make("logsigmoid", x)), make("sub", Z, Z)),
    ]
    assert len({key(root) for root in spellings}) == 1
    assert key(make("softplus", x)) != key(spellings[0])
    assert key(make("softplus", make("mul", const(-0.11), Z))) != key(spellings[0])
    assert with_setting("beta").key == with_setting("strength").key == key(spellings[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (make("tanh", Z), make("sub", make("mul", const(2), make("sigmoid", make("add", Z, Z))), const(1))),
        (make("sigmoid", make("neg", Z)), make("sub", const(1), make("sigmoid", Z))),
        (make("square", Z), make("mul", Z, Z)),
        (make("square", Z), make("pow", make("neg", Z), const(2))),
        (make("relu", Z), make("max", const(0), Z)),
        (make("relu", Z), make("clamp", Z, const(0), const(math.inf))),
        (make("min", Z, const(1)), make("clamp", Z, const(-math.inf), const(1))),
        (make("relu", make("mul", const(3), Z)), make("mul", const(3), make("relu", Z))),
        (make("abs", Z), make("abs", make("neg", Z))),
        (make("var_batch", make("mul", const(2), Z)), make("mul", const(4), make("var_batch", Z))),
        (make("std_batch", make("add", const(2), make("neg", Z))), make("std_batch", Z)),
        (
            make("mean_batch", make("add", const(2), make("mul", const(3), Z))),
            make("add", make("mul", make("mean_batch", Z), const(3)), const(2)),
        ),
        (make("expm1", Z), make("sub", make("exp", Z), const(1))),
        (make("log1p", make("square", Z)), make("log", make("add", make("square", Z), const(1)))),
        (make("div", make("exp", Z), const(4)), make("mul", const(0.25), make("exp", Z))),
        (make("lt", Z, const(0)), make("gt", make("neg", Z), const(0))),
        (make("not", make("lt", Z, const(0))), make("ge", Z, const(0))),
        (make("lt", make("detach", Z), const(0)), make("lt", Z, const(0))),
        (make("detach", make("add", make("detach", Z), Z)), make("mul", const(2), make("detach", Z))),
    ],
)
def test_pairs_that_are_equal_by_algebra(one, other):
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (make("sub", make("log", Z), make("log", Z)), const(0)),
        (make("mul", const(0), make("exp", Z)), const(0)),
        (make("div", Z, Z), const(1)),
        (make("mul", Z, make("div", const(1), Z)), const(1)),
        (make("sub", Z, make("detach", Z)), const(0)),
        (make("log1p", make("exp", Z)), make("softplus", Z)),
        (
            make("where", make("gt", Z, const(0)), make("log", Z), const(0)),
            make("mul", make("cast", make("gt", Z, const(0))), make("log", Z)),
        ),
        (make("lt", Z, const(0)), make("le", Z, const(0))),
        (make("div", Z, make("pow", make("exp", Z), const(0))), make("div", Z, make("exp", Z))),
        (make("mul", Z, make("pow", make("log", Z), const(0))), make("mul", Z, make("log", Z))),
        (make("square", make("pow", make("exp", Z), const(0))), make("exp", Z)),
        (make("mul", make("softplus", Z), const(1e-320)), make("mul", make("softplus", Z), const(1.1e-320))),
        (
            make("mul", const(1e200), make("mul", const(1e200), Z)),
            make("mul", const(1e201), make("mul", const(1e200), Z)),
        ),
        (make("mul", const(1e-200), make("mul", const(1e-200), make("exp", Z))), make("mul", const(0), make("exp", Z))),
        (make("mul", const(1e-200), make("mul", const(1e-200), Z)), const(0)),
        (make("var_batch", Z), make("square", make("std_batch", Z))),
    ],
)
def test_pairs_that_differ_somewhere_keep_different_keys(one, other):
    assert key(one) != key(other)


HUGE = make("mul", const(1e155), make("sub", const(1), Z))


@pytest.mark.parametrize(
    "root",
    [
        make("mul", const(10), make("mul", const(1e308), make("sub", make("softplus", Z), const(0.69)))),
        make("mul", make("mul", const(1e155), make("relu", HUGE)), const(1e-300)),
        make("mul", make("div", make("softplus", Z), const(1e-309)), const(1e-309)),
        make("add", make("mul", const(1.2e308), Z), make("mul", const(1.2e308), Z)),
        make("sub", make("mul", const(1.7e308), Z), make("mul", const(1e308), Z)),
        make("sub", make("add", Z, const(1.7e308)), const(-1.7e308)),
        make("var_batch", HUGE),
        make("square", HUGE),
        make("mul", HUGE, HUGE),
        make("tanh", make("mul", const(1.7e308), Z)),
        make("relu", make("add", make("mul", const(-1e-200), Z), const(1e200))),
        make("where", make("gt", make("mul", const(1e-200), Z), const(1e200)), Z, HUGE),
        make("exp", make("mul", const(1e200), make("add", make("mul", const(1e200), Z), const(1)))),
        make("log", make("mul", const(1e-200), make("mul", const(1e-200), make("exp", Z)))),
        make("pow", make("mul", const(1e-160), make("exp", Z)), const(-2)),
    ],
)
def test_coefficients_beyond_floats_stay_as_they_were_written(root):
    found = program(root)
    assert found.key != program(make("neg", root)).key
    assert program(found.canonical).key
    arrays = {name: np.linspace(-1.0, 2.0, 7).reshape(1, 7, 1) for name in found.inputs}
    arrays["rejected_logps"] = np.full((1, 7, 1), 0.25)
    as_written, normal = (np.asarray(differentiate.evaluate(each, arrays)) for each in (root, found.canonical))
    finite = np.isfinite(as_written)
    np.testing.assert_allclose(np.broadcast_to(normal, finite.shape)[finite], as_written[finite], rtol=1e-9)


def test_keys_are_those_of_every_run_before():
    # Runs are stored by key: a change here makes every stored program unknown.
    beta = make("mul", const(0.1), margin())
    gate = make("where", make("lt", beta, const(2)), make("square", make("sub", beta, const(1))), make("tanh", beta))
    spread = make("div", make("detach", beta), make("add", const(1), make("std_batch", beta)))
    keys = [program(root).key for root in (make("softplus", make("neg", beta)), gate, spread)]
    assert keys == [
        "ec094e88691512f327b2a053fdc1f1e4",
        "fdade7e131d6af58f9328dd712329822",
        "eac539e92eab0536d9aa6cad616902d4",
    ]


def test_a_skeleton_forgets_constants_only():
    def of(weight, shift):
        return program(make("softplus", make("add", make("mul", const(weight), Z), const(shift))))

    assert of(-0.1, 1).skeleton == of(-3.0, 0.2).skeleton
    assert of(-0.1, 1).key != of(-3.0, 0.2).key
    assert of(-0.1, 1).skeleton != program(make("exp", make("mul", const(-0.1), Z))).skeleton


@pytest.mark.parametrize("seed", SEEDS)
def test_json_gives_the_same_program_back(seed):
    found = random_program(seed)
    again = from_json(to_json(found))
    assert again == found
    assert again.root is found.root
    assert again.key == found.key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "7",
        '{"version":1}',
        '{"version":2,"family":"preference","hyperparameters":{},"nodes":[["const","0x0p0"]]}',
    ]
    + [
        '{"version":1,"family":"preference","hyperparameters":{},"nodes":' + nodes + "}"
        for nodes in (
            "[]",
            '[["exp",0]]',
            '[["exp",-1]]',
            '[["input","x"]]',
            '[["const","nan"]]',
            '[["const",3]]',
            "[[]]",
            '["x"]',
            '[["input","chosen_logps"],["exp",true]]',
            '[["system","ls"]]',
            "[" * 100000,
        )
    ],
)
def test_json_that_holds_no_program_is_refused(text):
    with pytest.raises(ProgramError):
        from_json(text)


def test_the_text_of_a_program():
    found = with_setting("beta")
    assert one_line(found) == (
        "softplus(-(beta * (chosen_logps - rejected_logps - (ref_chosen_logps - ref_rejected_logps))))"
    )
    assert to_latex(found).startswith(r"\operatorname{softplus}\left(-\left(\beta")
    shared = make("square", Z)
    text = to_python(program(make("mul", shared, make("exp", shared))), "my_loss")
    assert text.splitlines()[0] == "def my_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):"
    assert text.count("square") == 1


def test_the_function_is_the_formula():
    inputs = random_inputs(3, scale=10)
    given = [inputs[name] for name in with_setting("beta").inputs]
    function = torch_function(with_setting("beta"))
    rho = (given[0] - given[1]) - (given[2] - given[3])
    torch.testing.assert_close(function(*given, beta=0.3), F.softplus(-0.3 * rho))
    torch.testing.assert_close(function(*given), F.softplus(-0.1 * rho))
    by_name = dict(zip(with_setting("beta").inputs, given, strict=True))
    torch.testing.assert_close(function(**by_name), F.softplus(-0.1 * rho))
    assert function(*[value.bfloat16() for value in given]).dtype == torch.float32
    with pytest.raises(TypeError, match="gamma"):
        function(*given, gamma=1)
    with pytest.raises(TypeError, match="ref_rejected_logps"):
        function(*given[:3])


def test_batch_statistics_of_one_pair_are_zero():
    for op in ("var_batch", "std_batch"):
        found = program(make("add", make(op, Z), make("mul", const(0), Z)))
        inputs = random_inputs(1, items=1)
        value, *gradients = value_and_gradients(found, inputs)
        assert value.tolist() == [0.0]
        assert all(part.tolist() == [0.0] for part in gradients)
    spread = program(make("div", Z, make("std_batch", Z)))
    assert not value_and_gradients(spread, random_inputs(1, items=1))[0].isfinite().any()
    inputs = random_inputs(2)
    rho = (inputs["chosen_logps"] - inputs["rejected_logps"]) - (
        inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"]
    )
    torch.testing.assert_close(value_and_gradients(spread, inputs)[0], rho / rho.std())


@pytest.mark.parametrize(
    "root",
    [
        make("sqrt", make("relu", Z)),
        make("pow", make("relu", Z), const(0.5)),
        make("sqrt", make("clamp", Z, const(0), const(math.inf))),
        make("sqrt", make("clamp", Z, const(-math.inf), const(1))),
        make("log", make("clamp", Z, const(0), const(2))),
        make("sqrt", make("max", Z, const(0))),
        make("sqrt", make("min", make("square", Z), make("relu", Z))),
        make("log", make("max", make("sub", const(2), Z), X["chosen_logps"])),
        make("log", make("abs", Z)),
        make("add", Z, make("pow", make("sqrt", Z), const(0))),
    ],
)
def test_gradients_on_arrays_are_those_of_torch_at_kinks_and_beyond(root):
    found = program(root)
    inputs = {name: torch.zeros(7, dtype=torch.float64) for name in found.inputs}
    inputs["chosen_logps"] = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    torch_value, *gradients = value_and_gradients(found, {k: v.requires_grad_() for k, v in inputs.items()})
    arrays = {name: value.detach().numpy().reshape(1, 7, 1) for name, value in inputs.items()}
    value, mine = differentiate.value_and_gradients(root, arrays, found.inputs)
    np.testing.assert_allclose(value[0, :, 0], torch_value.detach())
    for name, theirs in zip(found.inputs, gradients, strict=True):
        np.testing.assert_allclose(np.broadcast_to(mine[name], (1, 7, 1))[0, :, 0], theirs)


def test_a_program_is_an_objective_like_any_other():
    record = as_objective(with_setting("beta"), "found")
    assert (record.name, record.family, record.item, dict(record.hyperparameters)) == (
        "found",
        "preference",
        "pair",
        {"beta": 0.1},
    )
    assert not record.batch_coupled
    report = check_objective(record.function, family="preference", item="pair")
    assert report.passed, str(report)
    inputs = random_inputs(3)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    known = lossmith.loss("dpo")(*[inputs[name] for name in names], reduction="none")
    torch.testing.assert_close(record.function(*[inputs[name] for name in names]), known)
    with pytest.raises(ProgramError, match="per pair"):
        as_objective(program(make("mean_batch", Z)), "scalar")


def test_a_metric_program_reduces_over_candidates():
    x = inputs_of("metric")
    scores = make("mul", const(10), x["similarities"])
    near = make("mean_masked", scores, x["same"])
    far = make("log", make("mean_masked", make("exp", make("sub", scores, near)), x["different"]))
    function = torch_function(Program("metric", make("softplus", far)))
    generator = torch.Generator().manual_seed(0)
    similarities = torch.rand(4, 4, generator=generator)
    labels = torch.tensor([0, 0, 1, 1])
    same = (labels[:, None] == labels) & ~torch.eye(4, dtype=torch.bool)
    different = labels[:, None] != labels
    got = function(similarities, same, different)
    for i, j in ((0, 1), (3, 2)):
        others = [k for k in range(4) if labels[k] != labels[i]]
        mean = sum(math.exp(10 * float(similarities[i, k] - similarities[i, j])) for k in others) / 2
        assert math.isclose(float(got[i]), math.log1p(math.exp(math.log(mean))), rel_tol=1e-5)


def test_numbers_alone_are_computed_as_tensors_would():
    beta = setting("beta")
    root = make("mul", Z, make("div", make("exp", beta), make("sub", beta, const(1))))
    inputs = random_inputs(1)
    function = torch_function(program(root, beta=3.0))
    given = [inputs[name] for name in program(root, beta=3.0).inputs]
    rho = (given[0] - given[1]) - (given[2] - given[3])
    torch.testing.assert_close(function(*given), rho * (math.exp(3) / 2))
    assert function(*given, beta=1.0).isinf().all()


def test_a_compiled_function_is_the_same():
    found = with_setting("beta")
    function = torch_function(found)
    inputs = [value.detach() for name, value in random_inputs(1).items() if name in found.inputs]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(*inputs))


def depth_first(*roots: Node) -> list[Node]:
    """What `order` says, by recursion."""
    found: list[Node] = []

    def visit(node: Node) -> None:
        for arg in node.args:
            visit(arg)
        if node not in found:
            found.append(node)

    for root in roots:
        visit(root)
    return found


def test_order_holds_arguments_first_and_names():
    root = make("mul", setting("beta"), Z)
    nodes = order(root)
    assert nodes[-1] is root
    assert all(nodes.index(arg) < place for place, node in enumerate(nodes) for arg in node.args)
    assert names_of(nodes, "hyperparameter") == ["beta"]
    for seed in range(40):
        first, second = (random_program(place).root for place in (seed, seed + 1000))
        assert order(first, second) == depth_first(first, second)
    deep = X["chosen_logps"]
    for _ in range(5000):
        deep = make("exp", deep)
    assert len(order(deep)) == 5001


def test_numpy_and_random_are_left_alone():
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    wanted = (np.random.rand(), random.random(), float(torch.rand(())))
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    _ = random_program(5).key, to_python(random_program(5))
    assert (np.random.rand(), random.random(), float(torch.rand(()))) == wanted


def test_what_stands_still_at_a_kink_is_not_rewritten_there():
    # d is 0 at every input: abs, relu and clamp of it are at their kinks, where their rewrites have other gradients.
    still = make("sub", Z, make("detach", Z))
    by_abs = make("add", make("exp", make("neg", Z)), make("abs", still))
    by_relu = make("add", make("exp", make("neg", Z)), make("sub", make("mul", const(2), make("relu", still)), still))
    gradients = []
    for root in (by_abs, by_relu):
        inputs = {
            name: rows.requires_grad_() for name, rows in random_inputs(1).items() if name in program(root).inputs
        }
        torch_function(program(root))(**inputs).sum().backward()
        gradients.append(inputs["chosen_logps"].grad)
    assert not torch.allclose(*gradients)
    assert key(by_abs) != key(by_relu)
    assert key(make("abs", Z)) == key(make("sub", make("mul", const(2), make("relu", Z)), Z))


def test_comparisons_of_what_may_be_nan_are_not_negated():
    odd = make("div", Z, Z)
    above, below = make("gt", const(1), odd), make("not", make("ge", odd, const(1)))
    assert key(make("cast", above)) != key(make("cast", below))
    assert key(make("cast", make("gt", const(1), Z))) == key(make("cast", make("not", make("ge", Z, const(1)))))
