"""Settings of studies in which a causal language model is trained on preferences."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from lossmith.evidence.metrics import RATED_NATS, RATED_SHARES
from lossmith.nn import Composition, parse_composition
from lossmith.studies.config import LoraConfig, PositiveFloat, PositiveInt, SharedConfig

DECIDING = (
    "preference_accuracy",
    "preference_accuracy_per_token",
    "length_controlled_accuracy",
    "policy_accuracy",
    "margin",
    "margin_per_token",
    "chosen_shift",
    "rejected_shift",
    "nll",
)
"""Metrics that a study of preferences can be judged by."""

RATED_DECIDING = (*RATED_SHARES, *RATED_NATS)
"""Metrics that a study of rated answers can be judged by; no other kind of study has them."""

SAMPLED_METRICS = {
    "kl": "sampled_prompts",
    "reward": "reward",
    "reward_score": "reward",
    "reward_win_rate": "reward",
    "likelihood_win_rate": "likelihood",
}
"""Deciding metrics of answers that the trained models sample -> the setting that they are measured with."""


def with_beta(text: str, beta: float) -> str | None:
    """The loss with this beta in every term that takes one, in canonical form; None where no term does.

    Example:
        >>> with_beta("ipo + 0.1*cross_entropy", 0.5), with_beta("orpo", 0.5)
        ('ipo(beta=0.5) + 0.1*cross_entropy', None)
    """
    composition = parse_composition(text)
    if not any("beta" in term.record.hyperparameters for term in composition.terms):
        return None
    terms = tuple(
        replace(term, hyperparameters={**term.hyperparameters, "beta": beta})
        if "beta" in term.record.hyperparameters
        else term
        for term in composition.terms
    )
    return str(parse_composition(str(Composition(terms, composition.handovers))))


class PreferenceFields(SharedConfig):
    """What all studies share that train on pairs of answers."""

    losses: Annotated[tuple[str, ...], Field(min_length=1)] = ("dpo", "ipo", "hinge", "lrml")
    """Preference losses (dpo), unpaired ones (kto), either with terms on the chosen answers (dpo + 0.1*cross_entropy),
    or such terms alone, which is supervised fine-tuning on the chosen answers (cross_entropy)."""
    baseline: str = "dpo"
    """The loss that the others are compared with; it is run even if `losses` does not name it, at its own beta."""
    betas: tuple[PositiveFloat, ...] = ()
    """Each loss of `losses` that takes a beta is run once with each of these; the others stay as they are."""
    model: str = "embedded:smollm2-135m"
    """`embedded:` name, folder or hub id of a causal language model."""
    reference: str | None = None
    """Model that is the reference, with the same tokenizer; None takes `model` as it is before training."""
    prompts: Literal["given", "chat"] = "given"
    """`chat` puts prompts that are texts into the tokenizer's chat template, as prompts that are chats always are."""
    max_length: Annotated[int, Field(ge=8)] = 256
    """Tokens of prompt and answer; a longer prompt is cut on its left, an answer that does not fit behind half of this
    on its right."""
    max_prompt_length: PositiveInt | None = None
    """Tokens of a prompt, which is cut on its left; None sets no bound beside `max_length`."""
    lora: LoraConfig | None = LoraConfig(dropout=0.0)
    """Adapters; null trains all weights. The model's own dropout is off either way."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the pretrained weights."""
    epochs: PositiveInt = 1
    """Passes over the training pairs."""
    batch_size: PositiveInt = 8
    """Pairs per step on the device; losses that see answers one by one get both answers of as many pairs."""
    accumulation: PositiveInt = 1
    """Micro-batches per optimiser step; losses that couple the pairs of a batch want 1."""
    eval_batch_size: PositiveInt = 8
    """Answers per forward pass when scoring."""
    order: Literal["shuffled", "file"] = "shuffled"
    """Whether training pairs are shuffled, by the seed; the order is the same for all losses."""
    save: Literal["merged", "adapter"] = "merged"
    """What `lossmith train` writes: whole weights, or the adapters alone."""

    loaded_by: ClassVar[str] = "AutoModelForCausalLM"
    free: ClassVar[frozenset[str]] = SharedConfig.free | {"betas", "reference", "save"}

    @field_validator("betas", mode="before")
    @classmethod
    def _one_beta_is_a_list(cls, betas: Any) -> Any:
        return [betas] if isinstance(betas, int | float) else betas

    @field_validator("losses", "baseline")
    @classmethod
    def _no_scopes(cls, losses: Any) -> Any:
        for text in [losses] if isinstance(losses, str) else losses:
            for term in parse_composition(text).terms:
                if term.scope is not None:
                    raise ValueError(
                        f"names the label scope [{term.scope}] in '{text}': here terms on tokens see the chosen answer "
                        f"anyway, leave it out"
                    )
        return losses

    @model_validator(mode="before")
    @classmethod
    def _beta_once(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("betas"):
            return values
        losses = values.get("losses", cls.model_fields["losses"].default)
        for text in [losses] if isinstance(losses, str) else losses:
            if any("beta" in term.written for term in parse_composition(str(text)).terms):
                raise ValueError(f"`betas` and '{text}' both give beta: leave it out of one of them")
        return values

    @model_validator(mode="after")
    def _consistent_preferences(self) -> "PreferenceFields":
        if len(set(self.betas)) != len(self.betas):
            raise ValueError(f"`betas` must differ, got {list(self.betas)}")
        if self.betas and all(with_beta(text, self.betas[0]) is None for text in self.losses):
            raise ValueError(f"`betas` would do nothing: none of {', '.join(self.losses)} takes a beta")
        if self.max_prompt_length is not None and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"`max_prompt_length` must be below `max_length` = {self.max_length}, got {self.max_prompt_length}"
            )
        if self.save == "adapter" and self.lora is None:
            raise ValueError("`save` must be merged where `lora` is null: there is no adapter to save")
        if "train_sampling_strategy" in self.trainer:
            raise ValueError(
                "`trainer.train_sampling_strategy` and `order` both say how pairs are ordered: use `order`"
            )
        return self

    @property
    def all_losses(self) -> tuple[str, ...]:
        """The losses to run, the baseline first, each with each beta."""
        spread = [
            found
            for text in self.losses
            for beta in (self.betas or (None,))
            if (found := text if beta is None else with_beta(text, beta) or text)
        ]
        return tuple(dict.fromkeys((self.baseline, *spread)))


class AnswerFields(PreferenceFields):
    """What studies share that are tested on given answers: pairs of them, or answers rated one by one."""

    free: ClassVar[frozenset[str]] = PreferenceFields.free | {
        *("data", "test_fraction", "split_seed", "reward", "likelihood"),
        *("shown_answers", "shown_tokens"),
    }

    data: str = "shipped"
    """Where a known set's rows are: `shipped`, a folder, `hub`, or `hub:owner/name`."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts that is kept for the test where the data bring no test rows."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of that split; the same for all blocks."""
    train_examples: PositiveInt | None = None
    """Training rows, drawn per seed; None takes all."""
    test_examples: PositiveInt | None = None
    """Test rows, drawn once for all blocks; None takes all."""
    curve_examples: Annotated[int, Field(ge=0)] = 32
    """Validation rows for the learning curve (never used to choose anything); 0 draws none."""
    curve_points: PositiveInt = 4
    """How often, evenly spaced and at the end, the validation rows are scored."""
    shown_answers: Annotated[int, Field(ge=0)] = 4
    """Test prompts that each trained model answers for the report; 0 writes none."""
    shown_tokens: PositiveInt = 64
    """Tokens that it may write for each."""
    sampled_prompts: Annotated[int, Field(ge=0)] = 0
    """Test prompts that each trained model answers at random, for KL(policy || reference) and, with `reward` and
    `likelihood`, for those; 0 measures none of them."""
    sampled_tokens: PositiveInt = 64
    """Most tokens of such an answer, the stop token among them."""
    sampling_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of these answers, the same for all runs."""
    reward: str | None = None
    """Sequence classifier (folder or hub id) that scores the sampled answers: a reward model with one output, or one
    whose probability of `reward_label` is the reward."""
    reward_label: str | None = None
    """Its class; None finds it by the names positive, pos, LABEL_1."""
    likelihood: str | None = None
    """Causal language model by which sampled answers are likelier, per token, than those before training, or not."""

    @model_validator(mode="after")
    def _consistent_sampling(self) -> "AnswerFields":
        for name in ("reward", "likelihood"):
            if getattr(self, name) is not None and not self.sampled_prompts:
                raise ValueError(f"`{name}` needs sampled answers: give `sampled_prompts`, such as 64")
        if self.reward_label is not None and self.reward is None:
            raise ValueError(f"`reward_label` has nothing to act on without `reward`, got '{self.reward_label}'")
        wanted = SAMPLED_METRICS.get(self.metric)
        if wanted is not None and not getattr(self, wanted):
            raise ValueError(f"`metric` {self.metric} is measured with `{wanted}` alone: give it")
        return self


class PreferenceConfig(AnswerFields):
    """A comparison of losses on pairs of answers, paired by block."""

    model_config = ConfigDict(title="lossmith study of preferences")

    task: str = "polite_pairs"
    """A shipped set of pairs (polite_pairs, pandalm, persona_pairs), a known one whose rows `data` brings, a file of
    pairs, or a folder with train and test."""
    metric: str = "preference_accuracy"
    """Test metric that decides: preference_accuracy, margin, policy_accuracy, nll and others."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric not in (*DECIDING, *SAMPLED_METRICS):
            raise ValueError(f"must be one of {', '.join((*DECIDING, *SAMPLED_METRICS))}, got '{metric}'")
        return metric


class RatedConfig(AnswerFields):
    """A comparison of losses on answers that are rated one by one, good or bad, paired by block."""

    model_config = ConfigDict(title="lossmith study of rated answers")

    task: str
    """A file of rated answers (`prompt`, `completion`, `label`), or a folder with train and test."""
    losses: Annotated[tuple[str, ...], Field(min_length=1)] = ("kto", "bco")
    """Unpaired losses (kto, bco), perhaps with terms on the good answers (kto + 0.1*cross_entropy), or such terms
    alone, which is supervised fine-tuning on the good answers (cross_entropy)."""
    baseline: str = "kto"
    """The loss that the others are compared with; it is run even if `losses` does not name it, at its own beta."""
    metric: str = "auc"
    """Test metric that decides: auc, auc_per_token, policy_auc, rated_accuracy, shift_gap and the shifts."""
    batch_size: PositiveInt = 16
    """Answers per step on the device."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric not in (*RATED_DECIDING, *SAMPLED_METRICS):
            raise ValueError(f"must be one of {', '.join((*RATED_DECIDING, *SAMPLED_METRICS))}, got '{metric}'")
        return metric
