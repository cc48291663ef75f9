"""The state of a loss in a Trainer's checkpoints."""

from pathlib import Path
from typing import Any

from lossmith.integrations.saving import load_loss, save_loss
from lossmith.nn import LossModule


class LossState:
    """Writes a Trainer's `loss` beside its model, and brings its proxies, running means and schedule back."""

    loss: LossModule
    args: Any
    state: Any
    is_deepspeed_enabled: bool

    def saved_settings(self) -> dict[str, Any]:
        """What is written beside the loss."""
        return {}

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, in checkpoints too, with the loss beside the model."""
        super().save_model(output_dir, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_loss(self.loss, folder, **self.saved_settings())

    def _load_best_model(self) -> None:
        super()._load_best_model()  # pyright: ignore[reportAttributeAccessIssue]
        load_loss(self.loss, Path(self.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # pyright: ignore[reportAttributeAccessIssue]
        load_loss(self.loss, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        # DeepSpeed loads a model by itself, without `_load_from_checkpoint`.
        if checkpoint is not None and self.is_deepspeed_enabled:
            load_loss(self.loss, Path(checkpoint))
