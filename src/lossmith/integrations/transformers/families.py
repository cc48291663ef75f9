"""Which losses fit which trainer, in sentences that say which would."""

from typing import Any

from lossmith.errors import ConfigurationError, ObjectiveInputError
from lossmith.nn import LossModule, WeightedSum, parse_composition
from lossmith.nn import loss as make_loss

PLACES = {
    "preference": "lossmith.integrations.trl.DPOTrainer",
    "unpaired": "lossmith.integrations.trl.KTOTrainer",
    "metric": "lossmith.integrations.sentence_transformers, or a LossTrainer on a sequence classifier",
    "token": "lossmith.integrations.trl.SFTTrainer or lossmith.integrations.transformers.LossTrainer",
    "region": "lossmith.integrations.trl.SFTTrainer or lossmith.integrations.transformers.LossTrainer",
}
"""Where a loss of each family is trained."""

_BY_INPUT = {"chosen_logps": "preference", "desirable": "unpaired", "embeddings": "metric", "logits": "token"}


def families(loss: str | LossModule) -> dict[str, str]:
    """The families of the terms of a loss, each with the first term of it.

    Raises:
        ObjectiveInputError: If it is no loss, or a string that cannot be read.
    """
    if isinstance(loss, str):
        return {term.record.family: term.record.name for term in reversed(parse_composition(loss).terms)}
    if isinstance(loss, WeightedSum):
        return {term.record.family: term.record.name for term in reversed(loss.composition.terms)}
    if not isinstance(loss, LossModule):
        raise ObjectiveInputError(
            f"`loss` must be a string such as 'focal' or a module from lossmith.loss, got {type(loss).__name__}."
        )
    record: Any = getattr(loss, "record", None)
    if record is not None:
        return {record.family: record.name}
    return {family: str(loss) for name, family in _BY_INPUT.items() if name in loss.inputs}


def check_families(loss: str | LossModule, allowed: tuple[str, ...], where: str) -> dict[str, str]:
    """The families of a loss, all of them `allowed`.

    Raises:
        ConfigurationError: Naming the term that does not fit and where it would.
    """
    found = families(loss)
    for family, name in found.items():
        if family not in allowed:
            article = "an" if family == "unpaired" else "a"
            raise ConfigurationError(
                f"'{name}' is {article} {family} loss, which {where} cannot train: use {PLACES[family]}."
            )
    return found


def check_on_logits(loss: str | LossModule, where: str) -> None:
    """Refuse a loss that reads anything but logits and labels."""
    check_families(loss, ("token", "region"), where)


def build_loss(loss: str | LossModule, **sizes: int) -> LossModule:
    """The loss of a string, with the sizes that its proxies need and that the caller knows; a module as it is."""
    if isinstance(loss, LossModule):
        return loss
    terms = parse_composition(loss).terms
    wanted = {size for term in terms for size in term.record.proxy_shape}
    wanted |= {"embedding_dim" for term in terms if term.hyperparameters.get("memory_size")}
    return make_loss(loss, **{name: size for name, size in sizes.items() if name in wanted})
