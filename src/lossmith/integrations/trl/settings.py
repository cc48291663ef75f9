"""What TRL's preference trainers must be told otherwise here: settings of TRL's own losses, losses, data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lossmith.errors import ConfigurationError, DataError, ObjectiveInputError
from lossmith.integrations.transformers.families import PLACES, build_loss, check_families
from lossmith.integrations.transformers.setup import loss_scopes
from lossmith.nn import LossModule, ObjectiveModule, WeightedSum

OURS = {
    "sigmoid": "dpo",
    "robust": "robust_dpo",
    "ipo": "ipo(average=True)",
    "discopop": "lrml",
    "sft": "cross_entropy",
    "sigmoid_norm": "dpo_length_normalized",
}
"""TRL's `loss_type` -> our name, where they differ."""


@dataclass(frozen=True)
class Setting:
    """A setting of TRL's own loss, which nothing here would read."""

    default: Any
    instead: str
    """What to do, as the end of a sentence."""


def _write(name: str) -> str:
    return f"write it into the loss, as in loss='{name}'"


_NOTHING = "lossmith has no such loss, leave it at {default!r}"

SHARED: dict[str, Setting] = {
    "label_smoothing_factor": Setting(0.0, "leave it at 0.0 and choose a loss that smooths, such as 'cdpo'"),
    "sync_ref_model": Setting(False, "the reference is computed once, before training, leave it at False"),
    "ref_model_mixup_alpha": Setting(0.6, "the reference is computed once, before training, leave it at 0.6"),
    "ref_model_sync_steps": Setting(512, "the reference is computed once, before training, leave it at 512"),
}

DPO: dict[str, Setting] = {
    "loss_weights": Setting(None, _write("0.8*dpo + 0.2*cross_entropy")),
    "label_smoothing": Setting(0.0, _write("cdpo(label_smoothing={value})") + " (or robust_dpo, exo_pair, aot)"),
    "f_divergence_type": Setting("reverse_kl", _NOTHING),
    "f_alpha_divergence_coef": Setting(0.5, _NOTHING),
    "ld_alpha": Setting(None, _NOTHING),
    "use_weighting": Setting(False, _NOTHING),
    "discopop_tau": Setting(0.05, _write("lrml(tau={value})")),
    "padding_free": Setting(False, "TRL 1.16 switches it off again, leave it at False"),
    **SHARED,
}

KTO: dict[str, Setting] = {
    "desirable_weight": Setting(1.0, _write("kto(desirable_weight={value})")),
    "undesirable_weight": Setting(1.0, _write("kto(undesirable_weight={value})")),
    **SHARED,
}


def terms_of(loss: LossModule) -> list[ObjectiveModule]:
    """The objectives of a loss, alone or summed."""
    parts = list(loss.terms) if isinstance(loss, WeightedSum) else [loss]
    return [part for part in parts if isinstance(part, ObjectiveModule)]


def read_loss(given: str | LossModule, *, family: str, trainer: str) -> LossModule:
    """The loss that a user names or gives, where this trainer can train with it.

    Args:
        given: A composition string or a module of `lossmith.loss`.
        family: The family that the trainer is for; token and region terms may stand beside it.
        trainer: Name of the trainer, for messages.

    Raises:
        ObjectiveInputError: For what is no loss or cannot be read.
        ConfigurationError: For a loss that belongs into another trainer.
    """
    found = check_families(given, (family, "token", "region"), f"a {trainer}")
    if family not in found:
        other, name = next(iter(found.items()))
        raise ConfigurationError(
            f"'{name}' is a {other} loss, which compares no completions, so a {trainer} cannot train it alone: use "
            f"{PLACES[other]}, or add it to a {family} loss."
        )
    loss = build_loss(given)
    if not terms_of(loss):
        raise ObjectiveInputError(f"`loss` must come from lossmith.loss, got {type(given).__name__}.")
    if scopes := loss_scopes(loss):
        raise ConfigurationError(
            f"'{loss}' names the scope [{scopes[0]}], but the data of a {trainer} has none: its terms on logits see "
            f"the good completions, leave the scope out."
        )
    return loss


def check_settings(args: Any, loss: LossModule, table: Mapping[str, Setting], *, loss_type: str) -> None:
    """Refuse settings that TRL's own loss would have read and ours does not.

    Args:
        args: TRL's configuration.
        loss: The loss in its place.
        table: Settings of TRL's loss that must stay at their default.
        loss_type: The default of `loss_type`.

    Raises:
        ConfigurationError: With what to write instead.
    """
    config = type(args).__name__
    if not hasattr(args, "loss_type"):
        raise ConfigurationError(
            f"`args` must be the configuration of TRL's trainer (DPOConfig, KTOConfig), got {config}."
        )
    chosen = [args.loss_type] if isinstance(args.loss_type, str) else list(args.loss_type)
    if chosen != [loss_type]:
        names = " + ".join(OURS.get(name, name) for name in chosen)
        advice = "'bco' or 'kto'" if loss_type == "kto" else f"'{names}'"
        raise ConfigurationError(
            f"`loss_type` of {config} chooses among TRL's losses and would do nothing here, got {args.loss_type!r}: "
            f"write loss={advice}."
        )
    for name, setting in table.items():
        value = getattr(args, name, setting.default)
        if value != setting.default:
            raise ConfigurationError(
                f"`{name}` of {config} would do nothing here, got {value!r}: "
                f"{setting.instead.format(value=value, default=setting.default)}."
            )
    _check_beta(args, loss, config)
    if not args.average_tokens_across_devices and args.world_size > 1:
        raise ConfigurationError(
            "`average_tokens_across_devices` must be True on several ranks, got False: every loss is divided by the "
            "items of all ranks."
        )
    if args.n_gpu > 1:
        raise ConfigurationError(
            f"{args.n_gpu} GPUs are visible to one process, which transformers' Trainer uses by nn.DataParallel: start "
            f"it with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one of them."
        )


def _check_beta(args: Any, loss: LossModule, config: str) -> None:
    own = beta_of(loss)
    if args.beta in (type(args).__dataclass_fields__["beta"].default, own):
        return
    name = terms_of(loss)[0].record.name
    raise ConfigurationError(
        f"`beta` of {config} would do nothing here, got {args.beta:g} where '{loss}' has {own if own else 'none'}: "
        + (f"write loss='{name}(beta={args.beta:g})'." if own else "leave it at its default.")
    )


def beta_of(loss: LossModule) -> float | None:
    """The beta of the first term that compares completions; None where it has none, as `orpo`."""
    first = next(term for term in terms_of(loss) if term.record.family in ("preference", "unpaired"))
    return first.hyperparameters.get("beta")


def check_columns(dataset: Any, name: str, wanted: tuple[tuple[str, ...], ...], trainer: str) -> None:
    """Refuse a dataset that lacks what the trainer reads.

    Args:
        dataset: A map-style or streaming dataset.
        name: "train", "eval" or what the user calls it.
        wanted: Sets of columns, one of which must be there.
        trainer: Name of the trainer.

    Raises:
        DataError: For columns that are missing, no rows, or images.
    """
    columns = _columns(dataset)
    if columns is None:
        raise DataError(f"The {name} dataset has no rows.")
    if columns & {"image", "images"}:
        raise DataError(f"The {name} dataset has images, which lossmith's {trainer} does not read: use text only.")
    if any(set(group) <= columns for group in wanted):
        return
    ways = " or ".join(" and ".join(f"`{column}`" for column in group) for group in wanted)
    prompt = "" if trainer == "SFTTrainer" else " (and `prompt`)"
    found = ", ".join(f"`{column}`" for column in sorted(columns))
    raise DataError(f"The {name} dataset of {trainer} needs the columns {ways}{prompt}, got {found}.{_hint(columns)}")


def _columns(dataset: Any) -> set[str] | None:
    names = getattr(dataset, "column_names", None)
    if names is None or (hasattr(dataset, "__len__") and len(dataset) == 0):
        row = next(iter(dataset), None)
        return None if row is None else set(row)
    return set(names)


def _hint(columns: set[str]) -> str:
    if {"completion", "label"} <= columns:
        return " It is unpaired: use KTOTrainer."
    if {"chosen", "rejected"} <= columns:
        return " It is paired: use DPOTrainer."
    if columns & {"text", "messages", "completion"}:
        return " It holds no preferences: use SFTTrainer."
    return ""


def each_dataset(datasets: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Names and datasets of one, a dict of them, or none."""
    if isinstance(datasets, Mapping):
        yield from datasets.items()
    elif datasets is not None:
        yield name, datasets


def check_processing(processing_class: Any, compute_metrics: object, trainer: str) -> None:
    """Refuse what would need images or logits.

    Raises:
        ConfigurationError: For a processor of images, or metrics of logits.
    """
    if hasattr(processing_class, "image_processor"):
        raise ConfigurationError(
            f"`processing_class` must be a tokenizer, got {type(processing_class).__name__}: lossmith's {trainer} "
            f"reads text only."
        )
    if compute_metrics is not None:
        raise ConfigurationError(
            f"`compute_metrics` reads logits, which lossmith's {trainer} never builds: leave it out, "
            f"log-probabilities, rewards, margins and accuracy are logged."
        )


def check_reference(ref_model: object, loss: LossModule, args: Any, *, needed: bool) -> None:
    """Refuse a reference model that nothing would read, or that would be sharded before it is used.

    Raises:
        ConfigurationError: If it is given and cannot serve.
    """
    if ref_model is None:
        return
    if not needed:
        raise ConfigurationError(f"'{loss}' reads no reference: leave `ref_model` out.")
    if args.fsdp or args.deepspeed:
        raise ConfigurationError(
            "`ref_model` must be None under FSDP and DeepSpeed, which would shard it: the model as it is before "
            "training is the reference then."
        )


def model_name(model: Any) -> str:
    """The last part of a model's name, for a default output folder."""
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    return name.rstrip("/").split("/")[-1] or "model"
