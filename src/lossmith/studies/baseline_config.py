"""Settings of `lossmith baseline`."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lossmith.studies.config import PositiveInt
from lossmith.studies.recipes import checked


class BaselineConfig(BaseModel):
    """Inference with models as they are, on one task."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, title="lossmith baseline")

    task: str = "gsm8k"
    """gsm8k, mathqa, svamp, openbookqa, qasc, commonsenseqa, hellaswag, or a task file (.yaml)."""
    data: str = "shipped"
    """`shipped`, a folder with train and test, `hub`, or `hub:owner/name`."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("embedded:smollm2-135m",)
    """`embedded:` names, folders or hub ids of causal language models."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Solved training problems before each prompt, drawn by `seed`."""
    prompts: Literal["auto", "plain", "chat"] = "auto"
    """`chat` puts the question into the tokenizer's chat template; `auto` does so where there is one."""
    limit: PositiveInt | None = None
    """Test problems, the same draw as `test_examples` of a study; None takes all."""
    max_new_tokens: PositiveInt = 256
    """Tokens that a model may write per answer."""
    batch_size: PositiveInt = 16
    """Answers that are written at once."""
    votes: PositiveInt = 1
    """Answers sampled per problem, of which the most frequent counts."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 decodes greedily; votes want more, such as 0.7."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability that is sampled from."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the few-shot problems and of samples."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; `auto` takes one GPU, else MPS, else the CPU."""
    backend: Literal["auto", "transformers", "vllm"] = "auto"
    """What generates; `auto` takes vLLM where it is installed and the device is a GPU."""

    @field_validator("models")
    @classmethod
    def _different_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in models if models.count(name) > 1})
        if repeated:
            raise ValueError(f"names {', '.join(repeated)} twice: once is enough")
        return models

    @model_validator(mode="after")
    def _consistent_decoding(self) -> "BaselineConfig":
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"`votes` = {self.votes} needs a `temperature` above 0: greedy answers are all the same")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(f"`top_p` = {self.top_p} needs a `temperature` above 0: greedy decoding draws nothing")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.weights == "bfloat16" else torch.float32

    def settings(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return json.loads(self.model_dump_json())

    def command(self, folder: Path) -> str:
        """The shell command that makes `folder` again on the same machine with the same versions."""
        words = ["lossmith", "baseline"]
        for name, value in self.settings().items():
            if name == "models":
                words += [word for model in value for word in ("--model", model)]
            elif name == "prompts":
                words += {"auto": [], "chat": ["--chat"], "plain": ["--no-chat"]}[value]
            elif name == "task" or value != type(self).model_fields[name].default:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join([*words, "--out", str(folder)])


def make_baseline_config(values: dict[str, Any]) -> BaselineConfig:
    """A checked `BaselineConfig`.

    Raises:
        ConfigurationError: One sentence on the first setting that does not fit.
    """
    return checked(BaselineConfig, values, "settings")
