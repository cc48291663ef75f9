"""The type checks of the root `conftest.py` are on: a wrongly shaped call fails, in every checked layer."""

import jaxtyping
import pytest
import torch

from lossmith._numerics import safe_pow
from lossmith._reduce import reduce_loss
from lossmith.engines import DenseTokenStatistics
from lossmith.nn import parse_composition
from lossmith.objectives import cross_entropy_loss, focal_loss, list_losses


def test_a_matrix_where_one_axis_is_declared_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="token_logps"):
        focal_loss(torch.zeros(3, 2))


def test_axes_of_one_name_must_agree() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        cross_entropy_loss(torch.zeros(3), torch.zeros(1))


def test_engines_modules_and_base_are_checked_too() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        DenseTokenStatistics(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(jaxtyping.TypeCheckError):
        parse_composition(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(jaxtyping.TypeCheckError):
        reduce_loss([1.0], torch.ones(1, dtype=torch.bool))  # pyright: ignore[reportArgumentType]
    with pytest.raises(jaxtyping.TypeCheckError):
        safe_pow(torch.tensor([1, 2]), 0.5)


def test_the_registry_holds_checked_functions() -> None:
    for record in list_losses():
        assert hasattr(record.function, "__wrapped__"), record
