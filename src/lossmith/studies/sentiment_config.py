"""Settings of sentiment-controlled generation: a policy, a reward of its answers, and losses on its own pairs."""

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, field_validator, model_validator

from lossmith.studies.config import MAX_BLOCKS, PositiveInt
from lossmith.studies.preference_config import PreferenceFields
from lossmith.tasks.sentiment import SENTIMENT

SENTIMENT_METRICS = ("reward", "kl", "kl_sampled", "kl_per_token", "kl_released", "stopped")
"""Metrics that such a study can be judged by."""
SAMPLED = "sampled"
"""Pairs are sampled from the policy before training."""

IDLE = {
    "curve_examples": "nothing is scored on the way, leave it out",
    "curve_points": "nothing is scored on the way, leave it out",
    "prompts": "prompts are texts that an answer continues, leave it out",
    "reference": "it is the policy before training, by which the divergence is measured, leave it out",
}
"""Settings of other studies of preferences that do nothing here."""


class SentimentConfig(PreferenceFields):
    """A comparison of losses that make a model's answers positive, by reward and by how far they move the model."""

    model_config = ConfigDict(title="lossmith study of sentiment-controlled generation")

    free: ClassVar[frozenset[str]] = PreferenceFields.free | {"data", "pairs_data", "reward", "reviews", "kl_range"}

    task: str = SENTIMENT
    """sentiment: a policy continues beginnings of film reviews, and a classifier says how positive the text is."""
    reviews: str = "mr"
    """Whose beginnings are the prompts: a classification set (mr, sst2 ...), imdb, a file, or a folder with train and
    test."""
    data: str = "shipped"
    """Where the rows of a known set are: `shipped`, a folder, `hub`, or `hub:owner/name`."""
    train_prompts: PositiveInt = 128
    """Training prompts, the same for all blocks; each gives a pair at most."""
    test_prompts: PositiveInt = 64
    """Test prompts, the same for all blocks."""
    prompt_tokens: tuple[PositiveInt, PositiveInt] = (2, 8)
    """Fewest and most tokens of a prompt."""
    prompt_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw of the prompts."""
    max_new_tokens: PositiveInt = 32
    """Most tokens of an answer, in pairs and in the test."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers that are sampled for a pair, which is made of the best and the worst."""
    sft_reviews: Annotated[int, Field(ge=0)] = 0
    """Training reviews that the model learns by cross-entropy, in one pass with all its weights, before anything else;
    0 takes it as it is."""
    pairs: str = SAMPLED
    """`sampled` from the policy before training, once per block and the same for all losses; or a set of pairs
    (imdb_preference), a file or folder of them."""
    pairs_data: str = "shipped"
    """Where the rows of a known set of pairs are: `shipped`, a folder, `hub`, or `hub:owner/name`."""
    reward: str = "trained"
    """A sequence classifier: folder or hub id; `trained` is one that lossmith trains once on mr."""
    reward_label: str | None = None
    """Its class whose probability is the reward; None finds it by the names positive, pos, LABEL_1."""
    sampling_seeds: Annotated[int, Field(ge=1, le=MAX_BLOCKS)] | Annotated[tuple[int, ...], Field(min_length=1)] = 2
    """How often, or with which seeds, each trained policy answers the test prompts."""
    kl_range: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] | None = None
    """Range of KL, in nats per answer, of the area under the frontier; None takes from 0 to where the baseline was
    measured."""
    metric: str = "reward"
    """Test metric that decides: reward, kl, kl_per_token, kl_sampled, kl_released, stopped."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Peak learning rate of AdamW."""
    epochs: PositiveInt = 2
    """Passes over the training pairs."""
    batch_size: PositiveInt = 8
    """Pairs per step on the device."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of prompt and answer."""
    eval_batch_size: PositiveInt = 32
    """Answers that are written at once, and that are scored at once."""
    curve_examples: Annotated[int, Field(ge=0)] = 0
    """Must be 0: nothing is scored on the way."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric not in SENTIMENT_METRICS:
            raise ValueError(f"must be one of {', '.join(SENTIMENT_METRICS)}, got '{metric}'")
        return metric

    @model_validator(mode="after")
    def _consistent_sentiment(self) -> "SentimentConfig":
        for name, why in IDLE.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` has nothing to act on here, got {value!r}: {why}")
        fewest, most = self.prompt_tokens
        if fewest > most:
            raise ValueError(f"`prompt_tokens` must be two numbers, the first at most the second, got {[fewest, most]}")
        if self.kl_range is not None and self.kl_range[0] >= self.kl_range[1]:
            raise ValueError(f"`kl_range` must be two numbers, the first below the second, got {list(self.kl_range)}")
        drawn = self.drawing_seeds
        if len(set(drawn)) != len(drawn) or any(not 0 <= seed < 2**32 for seed in drawn):
            raise ValueError(f"`sampling_seeds` must differ and be in [0, 2**32), got {list(drawn)}")
        if self.pairs == SAMPLED and self.pairs_data != "shipped":
            raise ValueError(f"`pairs_data` has nothing to act on where `pairs` are sampled, got '{self.pairs_data}'")
        if self.pairs == SAMPLED and most + self.max_new_tokens > self.max_length:
            raise ValueError(
                f"`max_length` must hold {most} tokens of a prompt and `max_new_tokens` = {self.max_new_tokens}, got "
                f"{self.max_length}: raise it"
            )
        return self

    @property
    def drawing_seeds(self) -> tuple[int, ...]:
        """The seeds with which answers of the test are drawn."""
        return tuple(range(self.sampling_seeds)) if isinstance(self.sampling_seeds, int) else self.sampling_seeds
