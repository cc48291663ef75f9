"""TRL's trainers with any lossmith loss: change the import, and give `loss=`."""

from lossmith.integrations._versions import require_version

require_version("trl", "1.10", "2", extra="train")

from lossmith.integrations.trl.dpo import DPOTrainer  # noqa: E402
from lossmith.integrations.trl.kto import KTOTrainer  # noqa: E402
from lossmith.integrations.trl.sft import SFTTrainer  # noqa: E402

__all__ = ["DPOTrainer", "KTOTrainer", "SFTTrainer"]
