"""pytorch-metric-learning, both ways: their losses and miners as ours, our metric losses under their call.

`from_pml(loss, miner)` is called as every lossmith loss, `to_pml(loss)` as every one of theirs.
"""

from lossmith.integrations._versions import require_version

require_version("pytorch-metric-learning", "2.5", "3", extra="metric")

from lossmith.integrations.pytorch_metric_learning.ours import THEIR_NAMES, ToPml, to_pml  # noqa: E402
from lossmith.integrations.pytorch_metric_learning.theirs import FromPml, from_pml, joint  # noqa: E402

__all__ = ["THEIR_NAMES", "FromPml", "ToPml", "from_pml", "joint", "to_pml"]
