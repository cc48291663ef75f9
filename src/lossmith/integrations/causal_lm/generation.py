"""Answers written by a causal language model: batched greedy decoding, seeded samples, with transformers alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from lossmith.errors import ConfigurationError, DataError, ModelError
from lossmith.integrations.lm_head import base_model

OnBatch = Callable[[int, int], None]
"""Called after every batch with what is done and what there is in all."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote after one prompt."""

    text: str
    """Without special tokens."""
    tokens: int
    """How many were written, the stop token among them."""
    stopped: bool
    """Whether it ended with a stop token, and not because it had no room left."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    votes: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_token_ids: Sequence[int] | None = None,
    on_batch: OnBatch | None = None,
    merge: bool = False,
) -> list[list[Generated]]:
    """Let a model continue prompts until it stops.

    The checkpoint's own generation settings (sampling, penalties, forced tokens) are set aside, except for the tokens
    that it stops at. The model's mode, its configuration and all random generators are afterwards as they were.

    Args:
        model: A transformers model, or one with LoRA.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt, at least one.
        max_new_tokens: Most tokens of an answer, >= 1.
        batch_size: Answers that are written at once, >= 1.
        votes: Answers per prompt, >= 1; several need a temperature.
        temperature: Divides the scores before a token is drawn, >= 0; 0 takes the most likely token.
        top_p: Tokens are drawn from the most likely ones that together have this probability, in (0, 1].
        seed: Of the draws. Equal prompts in equal batches give equal answers, whatever was drawn before.
        stop_token_ids: Tokens after which an answer has ended; None takes those of `stop_ids`.
        on_batch: Called after every batch with the answers that are done and all there will be.
        merge: Add LoRA's matrices to the weights meanwhile, which is faster. Taking them out again rounds the weights,
            so that a training that goes on is not exactly what it would have been.

    Returns:
        For each prompt, in the order given, its answers.

    Raises:
        ConfigurationError: For a number out of its range, or settings that exclude each other.
        DataError: For a prompt without a token.
        ModelError: If prompt and answer together are longer than the model reads, or the model has an adapter that is
            no part of its layers.
    """
    stops = stop_ids(model, tokenizer) if stop_token_ids is None else list(stop_token_ids)
    written = generate_ids(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        votes=votes,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_token_ids=stops,
        on_batch=on_batch,
        merge=merge,
    )
    return [[cut_answer(tokenizer, ids, stops) for ids in answers] for answers in written]


def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    votes: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_token_ids: Sequence[int] | None = None,
    on_batch: OnBatch | None = None,
    merge: bool = False,
) -> list[list[list[int]]]:
    """As `generate`, with the token ids of each answer: its stop token is the last one, where it came to one."""
    check_sampling(max_new_tokens=max_new_tokens, votes=votes, temperature=temperature, top_p=top_p)
    if batch_size < 1:
        raise ConfigurationError(f"`batch_size` must be >= 1, got {batch_size}.")
    network: Any = base_model(model)
    _check_prompts(model, network, prompts, max_new_tokens)
    stops = stop_ids(model, tokenizer) if stop_token_ids is None else list(stop_token_ids)
    settings = _settings(
        stops, _padding(tokenizer, stops), max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
    )
    # Equal lengths beside each other waste least; the longest first shows at once whether memory suffices.
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    rows = [row for row in order for _ in range(votes)]
    answers: list[list[list[int]]] = [[] for _ in prompts]
    with evaluating(model), _own_settings(network, settings), _merged(model, merge):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            with _seeded(network.device, (seed, start // votes, start % votes), drawn=temperature > 0):
                written = _continue(network, [prompts[row] for row in batch], settings)
            for row, ids in zip(batch, written, strict=True):
                answers[row].append(up_to_stop(ids, stops))
            if on_batch is not None:
                on_batch(start + len(batch), len(rows))
    return answers


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens after which a model has finished: its tokenizer's and those of its generation settings, ascending.

    Raises:
        ModelError: If there is none.
    """
    settings = getattr(base_model(model), "generation_config", None)
    named = [tokenizer.eos_token_id, getattr(settings, "eos_token_id", None)]
    found = {token for entry in named if entry is not None for token in np.atleast_1d(np.asarray(entry)).tolist()}
    if not found:
        raise ModelError(
            "Neither the tokenizer nor the model's generation settings name an end-of-sequence token, so no answer "
            "would ever end: set `eos_token` in tokenizer_config.json."
        )
    return sorted(found)


def check_sampling(*, max_new_tokens: int, votes: int, temperature: float, top_p: float) -> None:
    """Refuse settings of generation that are out of range or exclude each other.

    Raises:
        ConfigurationError: With one sentence.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("votes", votes)):
        if value < 1:
            raise ConfigurationError(f"`{name}` must be >= 1, got {value}.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigurationError(f"`temperature` must be a number >= 0, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ConfigurationError(f"`top_p` must be in (0, 1], got {top_p}.")
    if votes > 1 and temperature == 0:
        raise ConfigurationError(
            f"`votes` is {votes} and `temperature` 0, at which all {votes} answers would be the same: give a "
            f"temperature such as 0.7, or one vote."
        )
    if top_p < 1 and temperature == 0:
        raise ConfigurationError(
            f"`top_p` is {top_p} and `temperature` 0, at which nothing is drawn: give a temperature such as 0.7, or "
            f"leave `top_p` out."
        )


def cut_answer(tokenizer: Any, ids: Sequence[int], stops: Sequence[int]) -> Generated:
    """An answer up to its first stop token; what follows is padding."""
    kept = up_to_stop(ids, stops)
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Generated(text=text, tokens=len(kept), stopped=bool(kept) and kept[-1] in stops)


def up_to_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Token ids up to the first stop token, which is kept."""
    end = next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def check_room(network: Any, longest: int, max_new_tokens: int = 0) -> None:
    """Refuse what is longer than a model has positions for.

    Raises:
        ModelError: With its length and the model's.
    """
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or longest + max_new_tokens <= limit:
        return
    if max_new_tokens == 0:
        raise ModelError(f"{type(network).__name__} reads at most {limit} tokens, got {longest}: shorten the text.")
    raise ModelError(
        f"{type(network).__name__} reads at most {limit} tokens, and a prompt of {longest} with `max_new_tokens` "
        f"{max_new_tokens} is longer: shorten the prompts or lower `max_new_tokens`."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each part of the model is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _settings(
    stops: list[int], padding: int, *, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    drawing: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # transformers takes the 50 most likely tokens unless told otherwise.
        drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens, use_cache=True, eos_token_id=stops, pad_token_id=padding, **drawing
    )


def _padding(tokenizer: Any, stops: list[int]) -> int:
    return stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id


@contextmanager
def _own_settings(network: Any, settings: GenerationConfig) -> Iterator[None]:
    """`settings` in the place of the model's own, from which transformers would fill in whatever is not set."""
    before = network.generation_config
    network.generation_config = settings
    try:
        yield
    finally:
        network.generation_config = before


@contextmanager
def _merged(model: Any, wanted: bool) -> Iterator[None]:
    if not (wanted and isinstance(model, PeftModel)):
        yield
        return
    tuner: Any = model.base_model
    tuner.merge_adapter()
    try:
        yield
    finally:
        tuner.unmerge_adapter()


@contextmanager
def _seeded(device: torch.device, key: tuple[int, ...], *, drawn: bool) -> Iterator[None]:
    """Draws of their own for one batch; the generators of the process stay as they are."""
    if not drawn:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield


def _continue(network: Any, prompts: Sequence[Sequence[int]], settings: GenerationConfig) -> list[list[int]]:
    """The new tokens of each row, padded to the longest."""
    width = max(len(prompt) for prompt in prompts)
    padding: Any = settings.pad_token_id
    ids = [[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    written: Tensor = network.generate(
        input_ids=torch.tensor(ids, device=network.device),
        attention_mask=torch.tensor(seen, device=network.device),
        generation_config=settings,
    )
    return written[:, width:].tolist()


def _check_prompts(model: Any, network: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    adapter = getattr(model, "active_peft_config", None) if isinstance(model, PeftModel) else None
    if getattr(adapter, "is_prompt_learning", False):
        raise ModelError(
            f"Answers cannot be generated with an adapter of virtual tokens ({type(adapter).__name__}): use one within "
            f"the layers, such as LoRA."
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError(f"Prompt {number} has no token: give each at least one.")
    longest = max((len(prompt) for prompt in prompts), default=0)
    check_room(network, longest, max_new_tokens)
