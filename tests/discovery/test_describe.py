"""What `lossmith discover explain` shows: the closest loss lies beside the candidate, whatever their scales."""

import numpy as np
import pytest

from lossmith.discovery.describe import describe_candidate
from lossmith.discovery.program import to_python
from lossmith.report.discovery_candidate import write_picture

DPO = """
def loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    rho = chosen_logps - rejected_logps - ref_chosen_logps + ref_rejected_logps
    return {factor} * F.logsigmoid(0.3 * rho) + {shift}
"""


@pytest.mark.parametrize(("factor", "shift"), [(-0.01, 0.0), (-25.0, 3.0), (-1.0, 0.0)])
def test_a_scaled_and_shifted_known_loss_is_drawn_on_top_of_the_candidate(factor: float, shift: float) -> None:
    own, known = describe_candidate(DPO.format(factor=factor, shift=shift)).curves
    assert known.x == own.x
    np.testing.assert_allclose(known.gradient, own.gradient, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(known.loss, own.loss, rtol=1e-6, atol=1e-9)
    times = "" if factor == -1 else f"{-factor:g} * "
    assert known.name == f"{times}dpo(beta=0.3)" + (f" + {shift:g}" if shift else "")


@pytest.mark.parametrize(
    ("family", "source", "known"),
    [
        ("token", "def loss(token_logps):\n    return 3 * (1 - token_logps.exp()) ** 1.5 * -token_logps", "focal"),
        (
            "metric",
            "def loss(similarities, same, different):\n"
            "    return mean_masked(torch.relu(similarities - 0.2), different) - 0.7 * mean_masked(similarities, same)",
            "nt_xent",
        ),
    ],
)
def test_every_family_has_its_relative_beside_it(family: str, source: str, known: str) -> None:
    own, beside = describe_candidate(source, family).curves
    assert known in beside.name
    assert beside.x == own.x
    sizes = [float(np.linalg.norm(curve.gradient)) for curve in (own, beside)]
    assert 0.5 < sizes[0] / sizes[1] < 2
    if own.implied_target is not None:
        assert beside.implied_target is not None
        np.testing.assert_allclose(np.add(beside.implied_target, beside.gradient), own.x, atol=1e-12)


def test_a_relative_that_pulls_the_other_way_along_the_line_is_not_turned_round() -> None:
    own, known = describe_candidate(DPO.format(factor=0.5, shift=0.0)).curves
    assert np.array(own.gradient) @ np.array(known.gradient) < 0
    assert "*" not in known.name


@pytest.mark.parametrize(
    ("family", "source"),
    [
        ("metric", "def f(same): return mean_masked(same.float(), same)"),
        ("metric", "def f(similarities, same): return mean_masked(similarities.detach(), same)"),
        ("token", "def f(entropy): return (entropy > 1).float()"),
        ("preference", "def f(chosen_lengths): return chosen_lengths"),
    ],
)
def test_what_trains_nothing_has_a_level_curve(family: str, source: str) -> None:
    found = describe_candidate(source, family)
    assert found.verdict.category == "no-grad"
    assert not any(found.curves[0].gradient)


def test_the_picture_is_written(tmp_path) -> None:
    found = describe_candidate(DPO.format(factor=-2, shift=0))
    write_picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert found.verdict.program is not None
    assert "logsigmoid" in to_python(found.verdict.program)
