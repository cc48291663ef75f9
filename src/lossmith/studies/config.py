"""What a study is: one frozen value that fixes everything but the machine; recipes are its YAML form."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, LossmithError
from lossmith.nn import parse_composition

Metric = Literal["accuracy", "macro_f1", "weighted_f1", "nll"]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


MAX_BLOCKS = 1000


class StudyConfig(BaseModel):
    """A comparison of losses on one task with one model, paired by block."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, title="lossmith study")

    task: str = "mr"
    """A shipped task (mr, subj, cr, banking77), a CSV, TSV, JSONL or parquet file, or a folder with train and test."""
    text_column: str = "text"
    """Column of a file that holds the text."""
    label_column: str = "label"
    """Column of a file that holds the label."""
    split_seed: int = 0
    """Seed of the stratified split of a single file; the same for all blocks."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a single file that is kept for the test."""
    model: str = "embedded:minilm-l6"
    """`embedded:` name, folder or hub id of an encoder or decoder."""
    losses: Annotated[tuple[str, ...], Field(min_length=1)] = ("cross_entropy", "focal")
    """Names or compositions, such as `0.4*cross_entropy + 0.6*soft_triple`."""
    baseline: str = "cross_entropy"
    """The loss that the others are compared with; it is run even if `losses` does not name it."""
    seeds: Annotated[int, Field(ge=1, le=MAX_BLOCKS)] | Annotated[tuple[int, ...], Field(min_length=1)] = 5
    """Number of blocks (seeds 0, 1, ...), or the list of seeds."""
    shots: PositiveInt | None = None
    """Training texts per class, drawn per seed; None with `shots_total` None takes the whole training set."""
    shots_total: PositiveInt | None = None
    """Training texts in total, drawn per seed in the proportions of the classes."""
    metric: Metric = "accuracy"
    """Test metric that decides."""
    epochs: PositiveInt = 15
    """Passes over the training texts."""
    batch_size: PositiveInt = 20
    """Texts per step on the device."""
    accumulation: PositiveInt = 1
    """Micro-batches per optimiser step."""
    eval_batch_size: PositiveInt = 64
    """Texts per forward pass when testing."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    proxy_lr_multiplier: PositiveFloat = 10.0
    """Proxies of a loss learn at `learning_rate` times this."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW; none on biases, norms and proxies."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Course of the learning rate after the warm-up, over the true number of steps."""
    max_grad_norm: PositiveFloat = 1.0
    """The model's gradient is scaled down to this norm."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens per text; longer ones are cut on the right. None is 128, or what the model reads if that is less."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How embeddings for metric losses come from the last hidden states; the head pools as its model does."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Arithmetic of training (automatic mixed precision for the half types)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; `auto` takes one GPU, else MPS, else the CPU."""
    curve_examples: Annotated[int, Field(ge=0)] = 64
    """Validation texts for the learning curve (never used to choose anything); 0 draws none."""
    curve_points: PositiveInt = 8
    """Epochs, evenly spaced and with the last, after which the validation texts are scored."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of transformers' TrainingArguments, such as `report_to` or `optim`."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any) -> Any:
        # YAML reads yes and on as True, which pydantic would take for 1.
        if isinstance(value, bool):
            raise ValueError(f"must not be {value}: no setting is switched on or off")
        return value

    @field_validator("losses", mode="before")
    @classmethod
    def _one_loss_is_a_list(cls, losses: Any) -> Any:
        return [losses] if isinstance(losses, str) else losses

    @field_validator("losses")
    @classmethod
    def _canonical_losses(cls, losses: tuple[str, ...]) -> tuple[str, ...]:
        canonical = [str(parse_composition(text)) for text in losses]
        repeated = sorted({text for text in canonical if canonical.count(text) > 1})
        if repeated:
            raise ValueError(f"names {repeated} twice (after aliases and defaults are resolved)")
        return tuple(canonical)

    @field_validator("baseline")
    @classmethod
    def _canonical_baseline(cls, baseline: str) -> str:
        return str(parse_composition(baseline))

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        if self.shots is not None and self.shots_total is not None:
            raise ValueError("`shots` (per class) and `shots_total` exclude each other, got both")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"`seeds` must differ, got {list(self.blocks)}")
        if any(not 0 <= seed < 2**32 for seed in self.blocks):
            raise ValueError(f"`seeds` must be in [0, 2**32), got {list(self.blocks)}")
        return self

    @property
    def blocks(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def all_losses(self) -> tuple[str, ...]:
        """The losses to run, the baseline first."""
        return (self.baseline, *(text for text in self.losses if text != self.baseline))

    def settings(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return json.loads(self.model_dump_json())

    def identity(self) -> dict[str, Any]:
        """What all runs of one results folder must share; losses, seeds and how they are read may grow and change."""
        free = {"losses", "baseline", "seeds", "metric", "task", "model"}
        return {name: value for name, value in self.settings().items() if name not in free}


def make_config(values: dict[str, Any], *, place: str = "settings") -> StudyConfig:
    """A checked `StudyConfig`.

    Args:
        values: Settings by name.
        place: What to call them in an error message: a recipe's file name, or "settings".

    Raises:
        ConfigurationError: One sentence on the first setting that does not fit.
    """
    known = StudyConfig.model_fields
    for name in values:
        if name not in known:
            raise ConfigurationError(
                f"{place}: there is no setting `{name}`.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
    try:
        return StudyConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if first["type"] == "value_error" and cause is not None:
            name = str(first["loc"][0]) if first["loc"] else ""
            named = f"`{name}` {cause}" if name and not isinstance(cause, LossmithError) else str(cause)
            raise ConfigurationError(f"{place}: {named}") from None
        name = str(first["loc"][0]) if first["loc"] else "settings"
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigurationError(f"{place}: `{name}`: {message}, got {first['input']!r}.") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Settings of a YAML recipe, by safe loading.

    Raises:
        ConfigurationError: If the file cannot be read or is no mapping of settings.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigurationError(f"The recipe {path} must be a mapping of settings, such as `task: mr`.")
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Settings with `key=value` and `trainer.key=value` overrides, each value read as YAML.

    Raises:
        ConfigurationError: For a word that is no `key=value`, or a value that is no YAML.

    Example:
        >>> apply_overrides({"epochs": 3}, ["epochs=5", "trainer.optim=sgd"])
        {'epochs': 5, 'trainer': {'optim': 'sgd'}}
    """
    result = {**values}
    for word in overrides:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"An override is written as key=value, got '{word}'.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigurationError(f"The value of override '{word}' is not valid YAML.") from None
        group, dot, inner = name.partition(".")
        if dot:
            if group != "trainer":
                raise ConfigurationError(f"Only `trainer.` has settings below it, got '{word}'.")
            result["trainer"] = {**(result.get("trainer") or {}), inner: value}
        else:
            result[name] = value
    return result


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    schema = StudyConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
