"""transformers' TrainingArguments from the settings of a study."""

from typing import Any

from transformers import TrainingArguments

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError

PASSED_ON = frozenset(
    [
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "lr_scheduler_kwargs",
        "neftune_noise_alpha",
        "optim",
        "optim_args",
        "optim_target_modules",
        "project",
        "report_to",
        "run_name",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "train_sampling_strategy",
    ]
)
"""Training arguments that a study passes on. The others it sets itself, or they would do nothing here, send results
elsewhere, or put a secret into the record."""


def training_arguments(
    extra: dict[str, Any], *, kind: type[TrainingArguments] = TrainingArguments, **settings: Any
) -> Any:
    """`TrainingArguments` from a study's settings and the user's own `trainer` settings.

    Args:
        extra: The `trainer` settings.
        kind: The class to make, such as TRL's DPOConfig.
        **settings: What the study sets itself.

    Raises:
        ConfigurationError: For names that are not passed on (with the nearest), or values that transformers refuses.
    """
    for name in extra:
        if name not in PASSED_ON:
            raise ConfigurationError(
                f"`trainer.{name}` is not passed on: it is no training argument, or the study sets it itself, or it "
                f"would do nothing here.{did_you_mean(name, PASSED_ON)} Passed on: {', '.join(sorted(PASSED_ON))}."
            )
    try:
        arguments = kind(**settings, **extra, remove_unused_columns=False, disable_tqdm=True)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error
    if arguments.n_gpu > 1:
        # One run uses one device; DataParallel would split the batch that region and metric losses couple.
        arguments._n_gpu = 1
    return arguments
