"""What a study is: one frozen value that fixes everything but the machine."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lossmith.evidence.metrics import METHOD_METRICS, METHOD_PREFIXES
from lossmith.nn import parse_composition

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


MAX_BLOCKS = 1000
DECIDING_METRICS = tuple(prefix + name for prefix in METHOD_PREFIXES.values() for name in METHOD_METRICS)
"""Metrics that a classification can be judged by."""


class LoraConfig(BaseModel):
    """Low-rank adapters, https://arxiv.org/abs/2106.09685; the defaults are those of the segmentation-loss paper."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    r: PositiveInt = 8
    """Rank."""
    alpha: PositiveFloat = 16.0
    """Updates are scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout before the adapters."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of modules, or `all-linear`: every linear map of attention and MLP, but not the output embedding."""


class SharedConfig(BaseModel):
    """What studies of all kinds share; a kind adds its data, its model and its test."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    loaded_by: ClassVar[str]
    """What loads a saved model."""
    free: ClassVar[frozenset[str]] = frozenset({"losses", "baseline", "seeds", "metric", "task", "model"})
    """Settings in which the runs of one results folder may differ, or that are told apart by content."""

    task: str
    """A shipped task, or the user's own."""
    model: str
    """`embedded:` name, folder or hub id."""
    losses: Annotated[tuple[str, ...], Field(min_length=1)] = ("cross_entropy", "focal")
    """Names or compositions, such as `0.4*cross_entropy + 0.6*soft_triple`."""
    baseline: str = "cross_entropy"
    """The loss that the others are compared with; it is run even if `losses` does not name it."""
    seeds: Annotated[int, Field(ge=1, le=MAX_BLOCKS)] | Annotated[tuple[int, ...], Field(min_length=1)] = 5
    """Number of blocks (seeds 0, 1, ...), or the list of seeds."""
    metric: str
    """Test metric that decides."""
    epochs: PositiveInt
    """Passes over the training rows."""
    batch_size: PositiveInt
    """Rows per step on the device."""
    accumulation: PositiveInt = 1
    """Micro-batches per optimiser step."""
    eval_batch_size: PositiveInt
    """Rows per forward pass when testing."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW; none on biases, norms and proxies."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the learning rate rises; None takes `warmup_ratio` of all."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Course of the learning rate after the warm-up, over the true number of steps."""
    max_grad_norm: PositiveFloat = 1.0
    """The model's gradient is scaled down to this norm."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Arithmetic of training (automatic mixed precision for the half types)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; `auto` takes one GPU, else MPS, else the CPU."""
    curve_examples: Annotated[int, Field(ge=0)] = 64
    """Validation rows for the learning curve (never used to choose anything); 0 draws none."""
    curve_points: PositiveInt = 8
    """How often, evenly spaced and at the end, the validation rows are scored."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of transformers' TrainingArguments, such as `report_to` or `optim`."""

    @field_validator("lora", mode="before", check_fields=False)
    @classmethod
    def _partly_given_adapters(cls, given: Any) -> Any:
        # What is left out is the default of this kind of study, and not of adapters at large.
        default = cls.model_fields["lora"].default
        return default.model_dump() | given if isinstance(default, LoraConfig) and isinstance(given, dict) else given

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
    def _consistent(self) -> "SharedConfig":
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
        return {name: value for name, value in self.settings().items() if name not in self.free}

    def warmup_steps_of(self, steps: int) -> int:
        """Steps in which the learning rate rises, of a run of so many."""
        return round(self.warmup_ratio * steps) if self.warmup_steps is None else self.warmup_steps


class StudyConfig(SharedConfig):
    """A comparison of losses on one classification task with one model, paired by block."""

    model_config = ConfigDict(title="lossmith study of a classification")

    free: ClassVar[frozenset[str]] = SharedConfig.free | {"data"}

    task: str = "mr"
    """A shipped task (mr, subj, cr, banking77), a known one whose rows `data` brings (sst2, mrpc, trec, trec50, mpqa),
    a CSV, TSV, JSONL or parquet file, or a folder with train and test."""
    data: str = "shipped"
    """Where a known task's rows are: `shipped`, a folder, `hub`, or `hub:owner/name`."""
    model: str = "embedded:minilm-l6"
    """`embedded:` name, folder or hub id of an encoder or decoder."""
    text_column: str = "text"
    """Column of a file that holds the text."""
    text_pair_column: str | None = None
    """Column of a file that holds the second text of a pair; None for single texts."""
    label_column: str = "label"
    """Column of a file that holds the label."""
    split_seed: int = 0
    """Seed of the stratified split of a single file; the same for all blocks."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a single file that is kept for the test."""
    shots: PositiveInt | None = None
    """Training texts per class, drawn per seed; None with `shots_total` None takes the whole training set."""
    shots_total: PositiveInt | None = None
    """Training texts in total, drawn per seed."""
    draw: Literal["stratified", "random"] = "stratified"
    """How `shots_total` is drawn: in the proportions of the classes, or from all alike, which may miss a class."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation over all rows of the task: the block of seed s is tested on fold s modulo this. None takes the
    task's own test set."""
    fold_seed: Annotated[int, Field(ge=0)] = 2048
    """Seed of the folds, the same for all blocks."""
    test_examples: PositiveInt | None = None
    """Test texts, drawn once with `split_seed` and the same for all runs; None takes all."""
    metric: str = "accuracy"
    """Test metric that decides: accuracy, macro_f1, weighted_f1 or nll of the head, or with a prefix that of another
    way of inference: proxies_, mixture_, neighbours_."""
    epochs: PositiveInt = 15
    """Passes over the training texts."""
    batch_size: PositiveInt = 20
    """Texts per step on the device."""
    eval_batch_size: PositiveInt = 64
    """Texts per forward pass when testing."""
    proxy_lr_multiplier: PositiveFloat = 10.0
    """Proxies of a loss learn at `learning_rate` times this."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens per text; longer ones are cut on the right. None is 128, or what the model reads if that is less."""
    head: Literal["own", "pooled"] = "own"
    """`own` is the head that transformers gives the architecture, which pools as it does; `pooled` is a linear map of
    the pooled hidden states, so that head and metric loss read one embedding."""
    pooling: Literal["mean", "cls", "last", "tokens"] = "mean"
    """How an embedding comes from the last hidden states; with `tokens` every token of a text, but padding and special
    ones, is an embedding of its own for metric losses, and their mean is the text's."""
    lora: LoraConfig | None = None
    """Adapters; None trains all weights. The head is trained whole either way."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """`balanced` makes batches of some classes with several texts each, as in-batch metric losses need them."""
    samples_per_class: Annotated[int, Field(ge=2)] = 2
    """Least texts of a class in a balanced batch."""
    mixture: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Share of the head's probability in the mixture with the proxies'."""
    calibration_examples: Annotated[int, Field(ge=0)] = 200
    """Texts on which temperatures are fitted: validation rows, or training rows that were not drawn; 0 fits none."""

    @property
    def loaded_by(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What loads a saved model."""
        if self.head == "pooled":
            return "AutoModel (its trunk; `lossmith predict` has the head)"
        return "AutoModelForSequenceClassification"

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric not in DECIDING_METRICS:
            raise ValueError(f"must be one of {', '.join(DECIDING_METRICS)}, got '{metric}'")
        return metric

    @model_validator(mode="after")
    def _one_kind_of_shots(self) -> "StudyConfig":
        if self.shots is not None and self.shots_total is not None:
            raise ValueError("`shots` (per class) and `shots_total` exclude each other, got both")
        if self.draw == "random" and self.shots_total is None:
            raise ValueError("`draw` random needs `shots_total`: `shots` (per class) is stratified by itself")
        return self
