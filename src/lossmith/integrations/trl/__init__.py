"""TRL's trainers with any lossmith loss: change the import, and give `loss=`.

TRL's configurations come along, so that one line imports both.
"""

from lossmith.integrations._versions import require_version

require_version("trl", "1.14", "2", extra="train")

from trl.trainer.dpo_config import DPOConfig  # noqa: E402
from trl.trainer.kto_config import KTOConfig  # noqa: E402
from trl.trainer.sft_config import SFTConfig  # noqa: E402

from lossmith.integrations.trl.dpo import DPOTrainer  # noqa: E402
from lossmith.integrations.trl.kto import KTOTrainer  # noqa: E402
from lossmith.integrations.trl.sft import SFTTrainer  # noqa: E402

__all__ = ["DPOConfig", "DPOTrainer", "KTOConfig", "KTOTrainer", "SFTConfig", "SFTTrainer"]
