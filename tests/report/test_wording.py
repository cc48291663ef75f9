"""Numbers as a person reads them."""

import pytest

from lossmith.evidence import paired_t
from lossmith.report.wording import difference_with_interval


@pytest.mark.parametrize(
    ("candidate", "shown"),
    [
        ([0.55, 0.60, 0.62], "+3.0 [-1.3, 7.3]"),
        ([0.58, 0.62, 0.59], "+3.7 [-2.6, 9.9]"),
        # No spread is no certainty.
        ([0.55, 0.57, 0.59], "+1.0 (all 3)"),
        ([0.54, 0.56, 0.58], "0.0 (all 3)"),
    ],
)
def test_a_difference_without_spread_has_no_interval(candidate, shown):
    assert difference_with_interval(paired_t([0.54, 0.56, 0.58], candidate), "accuracy") == shown
