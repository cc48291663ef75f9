"""Settings of a study in which a causal language model writes answers."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from lossmith.errors import LossmithError
from lossmith.evidence import CLASSIFICATION_ONLY, METRICS, PREFERENCE_ONLY
from lossmith.nn import parse_composition
from lossmith.studies.config import LoraConfig, PositiveInt, SharedConfig
from lossmith.tasks import completion_kind

RELEASED = {"masking": "zeroed", "end": "masked", "order": "file", "encoding": "released"}
"""What `preset: released` sets unless a setting says otherwise."""
CHOICE_METRICS = ("accuracy", "likelihood_accuracy", "released_accuracy", "answered", "stopped", "nll")
DECIDING = {
    # Programs have no results that could be wrong.
    "math": tuple(
        name
        for name in METRICS
        if name
        not in (
            *CHOICE_METRICS[:3],
            *("macro_f1", "weighted_f1", "wrong_results"),
            *CLASSIFICATION_ONLY,
            *PREFERENCE_ONLY,
        )
    ),
    "choice": CHOICE_METRICS,
    "text": ("exact_match", "answered", "stopped", "nll"),
}
"""Kind of answers -> the metrics that a study can be judged by."""
DEFAULT_METRICS = {"math": "exact_match", "choice": "accuracy", "text": "exact_match"}
"""Kind of answers -> the metric that decides."""


class CompletionConfig(SharedConfig):
    """A comparison of losses on one task whose answers a causal language model writes, paired by block."""

    model_config = ConfigDict(title="lossmith study of completions")

    loaded_by: ClassVar[str] = "AutoModelForCausalLM"
    free: ClassVar[frozenset[str]] = SharedConfig.free | {"preset", "data", "save"}

    task: str = "gsm8k"
    """gsm8k, mathqa, svamp, openbookqa, qasc, commonsenseqa, hellaswag, or a task file (.yaml)."""
    data: str = "shipped"
    """`shipped`, a folder with train and test, `hub`, or `hub:owner/name`."""
    preset: Literal["corrected", "released"] = "corrected"
    """`released` sets what the released code of the segmentation-loss paper does: masking zeroed, end masked, order
    file, encoding released, and the released metric."""
    model: str = "embedded:smollm2-135m"
    """`embedded:` name, folder or hub id of a causal language model."""
    losses: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "cross_entropy",
        "0.6*cross_entropy + 0.4*lovasz_softmax[answer]",
    )
    """Names or compositions; a term with [answer] reads the labels of the answer only."""
    metric: str = ""
    """Test metric that decides; by default exact_match, or accuracy where the answer is a letter."""
    train_examples: PositiveInt | None = None
    """Training rows, drawn per seed; None takes all."""
    test_examples: PositiveInt | None = None
    """Test rows, drawn once for all blocks; None takes all."""
    prompts: Literal["plain", "chat"] = "plain"
    """`chat` puts the question into the tokenizer's chat template, for instruct models."""
    max_length: Annotated[int, Field(ge=8)] = 256
    """Tokens of prompt and answer in training; longer prompts are cut on the left, answers never."""
    max_new_tokens: PositiveInt = 128
    """Tokens that the model may write per answer."""
    labels: Literal["all", "answer"] = "all"
    """Labels of terms without a scope: all tokens, or the answer's only."""
    masking: Literal["removed", "zeroed"] = "removed"
    """`zeroed` keeps ignored rows with zeros in them and builds the logits, as the released code does."""
    end: Literal["trained", "masked"] = "trained"
    """Whether the end-of-sequence token is a label."""
    order: Literal["shuffled", "file"] = "shuffled"
    """Whether training rows are shuffled, by the seed."""
    encoding: Literal["exact", "released"] = "exact"
    """`released` tokenises prompt and answer as one text, cuts on the left whatever is there, and pads on the left."""
    lora: LoraConfig | None = LoraConfig()
    """Adapters; null trains all weights."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the pretrained weights."""
    epochs: PositiveInt = 2
    """Passes over the training rows."""
    batch_size: PositiveInt = 8
    """Rows per step on the device."""
    eval_batch_size: PositiveInt = 16
    """Rows per batch when generating and scoring."""
    votes: PositiveInt = 1
    """Answers sampled per problem, of which the most frequent counts."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 decodes greedily; votes want more, such as 0.7."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability that is sampled from."""
    backend: Literal["auto", "transformers", "vllm"] = "auto"
    """What generates; `auto` takes vLLM where it is installed and the device is a GPU."""
    save: Literal["merged", "adapter"] = "merged"
    """What `lossmith train` writes: whole weights, or the adapters alone."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "released":
            return {**RELEASED, **values}
        return values

    @field_validator("losses", "baseline")
    @classmethod
    def _scopes_are_answers(cls, losses: Any) -> Any:
        for text in [losses] if isinstance(losses, str) else losses:
            for term in parse_composition(text).terms:
                if term.scope not in (None, "answer"):
                    raise ValueError(f"names the label scope [{term.scope}] in '{text}': here [answer] is the only one")
        return losses

    @model_validator(mode="before")
    @classmethod
    def _metric_of_the_task(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        try:
            kind = completion_kind(str(values.get("task", cls.model_fields["task"].default)))
        except LossmithError as error:
            raise ValueError(str(error)) from error
        if not values.get("metric"):
            released = values.get("preset") == "released" and kind != "text"
            return {**values, "metric": ("released_" if released else "") + DEFAULT_METRICS[kind]}
        if values["metric"] not in DECIDING[kind]:
            raise ValueError(
                f"`metric` must be one of {', '.join(DECIDING[kind])} for answers of the kind '{kind}', got "
                f"{values['metric']!r}"
            )
        return values

    @model_validator(mode="after")
    def _consistent_settings(self) -> "CompletionConfig":
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"`votes` = {self.votes} needs a `temperature` above 0: greedy answers are all the same")
        if self.top_p != 1 and self.temperature == 0:
            raise ValueError(f"`top_p` = {self.top_p} needs a `temperature` above 0: greedy decoding draws nothing")
        if self.prompts == "chat" and self.encoding == "released":
            raise ValueError("`prompts` must be plain where `encoding` is released: the released code knows no chat")
        if self.save == "adapter" and self.lora is None:
            raise ValueError("`save` must be merged where `lora` is null: there is no adapter to save")
        if "train_sampling_strategy" in self.trainer:
            raise ValueError("`trainer.train_sampling_strategy` and `order` both say how rows are ordered: use `order`")
        if self.masking == "zeroed" and self.labels == "answer":
            raise ValueError("`labels` must be all where `masking` is zeroed: the released code has no other")
        return self
