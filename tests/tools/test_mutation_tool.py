"""The tool that plants mistakes: each kind of mistake, what it leaves alone, and a small run from end to end."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import mutate  # noqa: E402
from mutation_report import Outcome, Summary  # noqa: E402
from mutations import Mutation, controls, grown, plan  # noqa: E402

HEAD = "def f(a: Tensor, b: Tensor, *, scale: float = 2.0, on: bool = False, form: str = 'x') -> Float:\n"


def texts(body: str, kind: str | None = None) -> set[str]:
    """What is planted in a function with this body, apart from its defaults."""
    found = plan(HEAD + "".join(f"    {line}\n" for line in body.splitlines()), "f.py")
    return {m.text for m in found if m.kind not in ("default",) and not m.value and kind in (None, m.kind)}


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ("return a + b", "sign", {"a + b -> -(a + b)", "a + b -> a - b"}),
        ("return a - b", "sign", {"a - b -> -(a - b)", "a - b -> a + b"}),
        ("return -a", "sign", {"-a -> a"}),
        ("return -a * b", "sign", {"-a -> a"}),
        ("c = ~a\nreturn c", "sign", {"~a -> a", "c -> -c"}),
        ("return a + b", "dropped term", {"a + b -> a", "a + b -> b"}),
        ("return a - b", "dropped term", {"a - b -> a", "a - b -> -b"}),
        ("return a | b", "dropped term", {"a | b -> a", "a | b -> b"}),
        ("return a * b", "dropped factor", {"a * b -> a", "a * b -> b"}),
        ("return a / b", "dropped factor", {"a / b -> a"}),
        ("return 3 * a", "constant", {"3 * a -> 3.0300000000000002 * a"}),
        ("return a.clamp(min=0)", "constant", {"min=0 -> min=0.01"}),
        ("return a.clamp(min=0)", "bound", {"a.clamp(min=0) -> a.clamp(max=0)"}),
        ("return a.clamp(min=b, max=1.0)", "bound", {"a.clamp(min=b, max=1.0) -> a.clamp(max=b, min=1.0)"}),
        ("return max(a, b)", "bound", {"max(a, b) -> min(a, b)"}),
        ("return a.clamp(min=0)", "dropped call", {"a.clamp(min=0) -> a"}),
        ("return F.relu(a)", "dropped call", {"F.relu(a) -> a"}),
        ("return a.square()", "dropped call", {"a.square() -> a"}),
        ("return a.detach()", "detach", {"a.detach() -> a"}),
        ("return a > b", "comparison", {"a > b -> a <= b"}),
        ("return a if b == 0 else b", "comparison", {"b == 0 -> b != 0"}),
        ("return a.sort(descending=True)", "switch", {"descending=True -> descending=False"}),
    ],
)
def test_each_kind_of_mistake(body: str, kind: str, expected: set[str]) -> None:
    assert texts(body, kind) == expected


@pytest.mark.parametrize(
    "body",
    [
        "return a.sum(-1), b",
        "return a.gather(1, b), b",
        "return F.pad(a, (1, 0)), b",
        "return torch.softmax(a, dim=-1), b",
        "return a[:, 0], b",
        "return a.unsqueeze(1), b",
        "return torch.arange(1, b), b",
        "return a.bincount(minlength=3), b",
        '"""Text with 3."""\nreturn a, b',
        'check_positive("scale", 2 * scale)\nreturn a, b',
        'if scale > 3:\n    raise ValueError(f"{scale - 1}")\nreturn a, b',
    ],
)
def test_axes_checks_and_text_are_left_alone(body: str) -> None:
    assert texts(body) == set()


def test_defaults_switches_and_constants_of_the_module() -> None:
    found = plan("LIMIT = -2.5\nNAME = 'x'\n" + HEAD + "    return a\n", "f.py")
    values = {(m.function, m.value, m.kind) for m in found if m.value}
    assert values == {("LIMIT", "LIMIT", "constant"), ("f", "scale", "default"), ("f", "on", "switch")}
    assert (grown(2.0), grown(0.0), grown(False), grown(True)) == (2.02, 0.01, True, False)


def test_checks_are_not_functions_to_mutate() -> None:
    assert plan("def _check_share(value: float) -> Float:\n    return value + 1\n", "f.py") == []


def test_the_code_of_a_mutation_does_what_its_text_says() -> None:
    def f(a, b):
        raise AssertionError

    results = {}
    for mutation in plan("def f(a: T, b: T) -> Float:\n    return a - b * 10\n", "f.py"):
        assert mutation.code is not None
        f.__code__ = mutation.code
        results[mutation.text] = f(5.0, 0.25)
    assert results == {
        "a - b * 10 -> -(a - b * 10)": -2.5,
        "a - b * 10 -> a + b * 10": 7.5,
        "a - b * 10 -> a": 5.0,
        "a - b * 10 -> -(b * 10)": -2.5,
        "b * 10 -> b": 4.75,
        "b * 10 -> 10": -5.0,
        "b * 10 -> b * 10.1": 5.0 - 0.25 * 10.1,
    }


def test_keys_tell_two_places_apart_and_know_no_lines() -> None:
    body = "    c = a * b\n    d = a * b\n    return c\n"
    first, second = plan(HEAD + body, "f.py"), plan("\n\n" + HEAD + body, "f.py")
    assert len({mutation.key for mutation in first}) == len(first)
    assert [mutation.key for mutation in first] == [mutation.key for mutation in second]
    assert {m.text for m in first if "(place 2)" in m.text} == {"a * b -> a (place 2)", "a * b -> b (place 2)"}


def test_every_objective_has_mutations() -> None:
    from lossmith.objectives import list_losses

    options = mutate.argparse.Namespace(only=[], family=None, sample=None, seed=0, control=False)
    functions = {mutation.function for mutation in mutate.planned(options)}
    # A loss of one call of another function without a sign of its own still has its defaults.
    assert {record.function.__name__ for record in list_losses()} <= functions


def test_a_sample_is_drawn_from_its_seed() -> None:
    def draw(seed: int) -> list[tuple[str, str, str]]:
        options = mutate.argparse.Namespace(only=[], family="region", sample=12, seed=seed, control=False)
        return [mutation.key for mutation in mutate.planned(options)]

    assert len(draw(1)) == 12
    assert draw(1) == draw(1) != draw(2)


def test_an_unknown_function_is_refused() -> None:
    options = mutate.argparse.Namespace(only=["dppo"], family=None, sample=None, seed=0, control=False)
    with pytest.raises(SystemExit, match="No function to mutate named dppo"):
        mutate.planned(options)


def outcome(how: str, reason: str = "") -> Outcome:
    mutation = Mutation(file="f.py", function="f", line=3, kind="sign", text="a | b -> a")
    return Outcome(mutation, how, "token", reason)


def test_the_shares_count_what_is_equivalent_apart() -> None:
    summary = Summary([outcome("killed"), outcome("timeout"), outcome("survived"), outcome("survived", "same")], 1.0)
    assert summary.share == 0.5
    assert summary.share_of_real == pytest.approx(2 / 3)
    assert summary.rows("family") == [("token", 4, 2, 1, 1), ("all", 4, 2, 1, 1)]
    page = summary.markdown("python tools/mutate.py")
    assert "**50.00%** of 4; **66.67%**" in page
    assert "| f.py:3 f | `a \\| b -> a` | same |" in page
    assert Summary([], 0.0).share == 0.0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/mutate.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_from_end_to_end_good_tests_kill_and_none_do_not() -> None:
    options = mutate.argparse.Namespace(only=["bco"], family=None, sample=None, seed=0, control=False)
    count = len(mutate.planned(options))
    strong = run("--only", "bco", "--tests", "tests/objectives/test_unpaired_objectives.py")
    assert strong.returncode == 0, strong.stdout + strong.stderr
    assert f"Killed 100.00% of {count} (100.00% of those that change a result)" in strong.stdout
    weak = run("--only", "bco", "--tests", "tests/objectives/test_registry.py")
    assert weak.returncode == 1
    assert f"Killed 0.00% of {count}" in weak.stdout
    assert weak.stdout.count("SURVIVED: objectives/unpaired.py") == count > 5


def test_unchanged_functions_survive() -> None:
    found = {mutation.function: mutation for mutation in controls(HEAD + "    return a - b\n", "f.py")}

    def f(a, b, *, scale=2.0, on=False, form="x"):
        raise AssertionError

    f.__code__ = found["f"].code
    assert f(3.0, 1.0) == 2.0


def test_nothing_is_mutated_where_the_tests_fail_without_it(tmp_path: Path) -> None:
    test = tmp_path / "test_red.py"
    test.write_text(
        "import torch\nfrom lossmith.objectives import dft_loss\n\n"
        "def test_red():\n    assert dft_loss(torch.zeros(2)).sum() == 7\n",
        encoding="utf-8",
    )
    red = run("--only", "dft", "--tests", str(test))
    assert red.returncode == 1
    assert "Not mutated, as their tests fail on the tree as it is: objectives/token/gated.py:dft_loss." in red.stdout


def test_nothing_is_mutated_where_a_test_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "test_unreadable.py").write_text("import lossmith.no_such_module\n", encoding="utf-8")
    red = run("--only", "dft", "--tests", str(tmp_path))
    assert red.returncode == 1
    assert "Killed 0.00% of 0" in red.stdout
