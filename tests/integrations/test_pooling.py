"""Pooling: what is not known is refused; the values are tested with the trainers that pool."""

import pytest
import torch

from lossmith.errors import ObjectiveInputError
from lossmith.integrations.pooling import pool


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ObjectiveInputError, match=r"`pooling` must be one of 'mean', 'cls', 'last', got 'max'\."):
        pool(torch.randn(1, 3, 2), torch.ones(1, 3), "max")
