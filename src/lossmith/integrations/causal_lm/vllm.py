"""Answers written by vLLM where it is installed, in the same form as by transformers."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from lossmith._extras import require
from lossmith.errors import ConfigurationError, ModelError
from lossmith.integrations.causal_lm.generation import Generated, OnBatch, check_sampling, cut_answer

BACKENDS = ("auto", "transformers", "vllm")
PROMPTS_AT_ONCE = 512
"""Prompts that are handed to vLLM together: several times what it works on at once, so that it never runs short."""
MEMORY_SHARE = 0.9
"""Of the GPU memory that is free, what vLLM may take."""


class VllmEngine:
    """A model within vLLM, for several calls; a context manager that gives its memory back.

    Args:
        folder: A saved transformers model, adapters merged into it.
        **engine: Further arguments of `vllm.LLM`, such as `tensor_parallel_size` or `dtype`; by default vLLM takes the
            checkpoint's own dtype, or a half one where that is float32.

    Raises:
        MissingExtraError: If vLLM is not installed.
        ModelError: If vLLM cannot load the model.
    """

    def __init__(self, folder: str | Path, **engine: Any):
        self._vllm = require("vllm", extra="vllm", purpose="generate with vLLM")
        inputs = require("vllm.inputs", extra="vllm", purpose="generate with vLLM")
        self._prompt = inputs.TokensPrompt
        settings = {"enable_prefix_caching": True, "gpu_memory_utilization": _memory_share(), **engine}
        try:
            self._model: Any = self._vllm.LLM(
                # Its own defaults, not the sampling settings that come with a checkpoint.
                model=str(folder),
                trust_remote_code=False,
                generation_config="vllm",
                **settings,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(
                f"vLLM cannot load the model in {folder}: {str(error).strip().splitlines()[0]} Generate with "
                f"transformers instead (`backend` transformers)."
            ) from error

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generate(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        votes: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        on_batch: OnBatch | None = None,
    ) -> list[list[Generated]]:
        """Let the model continue prompts until it stops; see `generate_with_vllm`."""
        check_sampling(max_new_tokens=max_new_tokens, votes=votes, temperature=temperature, top_p=top_p)
        asked: dict[str, Any] = {
            "n": votes,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_new_tokens,
            "stop_token_ids": list(stop_token_ids),
            "detokenize": False,
        }
        answers: list[list[Generated]] = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            batch = prompts[start : start + PROMPTS_AT_ONCE]
            rows = range(start, start + len(batch))
            outputs = self._model.generate(
                [self._prompt(prompt_token_ids=list(prompt)) for prompt in batch],
                [self._vllm.SamplingParams(**asked, seed=_seed_of(seed, row, temperature)) for row in rows],
                use_tqdm=False,
            )
            answers += [
                [cut_answer(tokenizer, list(one.token_ids), stop_token_ids) for one in output.outputs]
                for output in outputs
            ]
            if on_batch is not None:
                on_batch(len(answers) * votes, len(prompts) * votes)
        return answers


def generate_with_vllm(
    folder: str | Path,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    votes: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_batch: OnBatch | None = None,
    **engine: Any,
) -> list[list[Generated]]:
    """Let a saved model continue prompts until it stops, with vLLM.

    Args:
        folder: A saved transformers model, adapters merged into it.
        prompts: Token ids of each prompt.
        tokenizer: Its tokenizer.
        max_new_tokens: Most tokens of an answer, >= 1.
        stop_token_ids: Tokens after which an answer has ended (`generation.stop_ids`).
        votes: Answers per prompt, >= 1; several need a temperature.
        temperature: Divides the scores before a token is drawn, >= 0; 0 takes the most likely token.
        top_p: Tokens are drawn from the most likely ones that together have this probability, in (0, 1].
        seed: Of the draws; each prompt has a stream of its own.
        on_batch: Called from time to time with the answers that are done and all there will be.
        **engine: Further arguments of `vllm.LLM`.

    Returns:
        For each prompt, in the order given, its answers.

    Raises:
        MissingExtraError: If vLLM is not installed.
        ConfigurationError: For a number out of its range, or settings that exclude each other.
        ModelError: If vLLM cannot load the model.
    """
    check_sampling(max_new_tokens=max_new_tokens, votes=votes, temperature=temperature, top_p=top_p)
    with VllmEngine(folder, **engine) as model:
        return model.generate(
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            votes=votes,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_batch=on_batch,
        )


def pick_backend(name: str, device: str) -> str:
    """What generates: "auto" takes vLLM only where it is installed and the device is a CUDA one.

    Args:
        name: "auto", "transformers" or "vllm".
        device: Kind of the device, such as "cuda".

    Returns:
        "transformers" or "vllm".

    Raises:
        ConfigurationError: For another name, or vLLM without a CUDA device.
        MissingExtraError: If vLLM is asked for and not installed.

    Example:
        >>> pick_backend("auto", "cpu")
        'transformers'
    """
    if name not in BACKENDS:
        raise ConfigurationError(f"`backend` must be one of {', '.join(BACKENDS)}, got '{name}'.")
    if name == "auto":
        return "vllm" if device == "cuda" and importlib.util.find_spec("vllm") is not None else "transformers"
    if name == "vllm" and device != "cuda":
        raise ConfigurationError(f"`backend` vllm needs a CUDA device, this is {device}: take transformers or auto.")
    if name == "vllm":
        require("vllm", extra="vllm", purpose="generate with vLLM")
    return name


def _seed_of(seed: int, row: int, temperature: float) -> int | None:
    """A stream of its own for each prompt; with one seed for all, their draws would go together."""
    return None if temperature == 0 else int(np.random.SeedSequence((seed, row)).generate_state(1)[0])


def _memory_share() -> float:
    """Of all GPU memory, what vLLM may take: another model may lie there."""
    if not torch.cuda.is_available():
        return MEMORY_SHARE
    free, total = torch.cuda.mem_get_info()
    return MEMORY_SHARE * free / total
