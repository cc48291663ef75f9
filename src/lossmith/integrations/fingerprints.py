"""What reference log-probabilities depend on, as one digest per part: equal digests, equal numbers."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmith._extras import require
from lossmith.errors import DataError, ModelError
from lossmith.integrations.lm_head import base_model

FORMAT = 1
"""Counts up when the same inputs no longer give the same numbers, or the files another layout."""

BLOCK_BYTES = 1 << 25
"""Weights are hashed in blocks of this size, by several threads; at most one block each is on its way from a device."""

NEUTRAL_CONFIG = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Entries of a configuration that change no log-probability; trainers set some of them while they train."""

NEUTRAL_ADAPTER = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """One digest (SHA-256, hexadecimal) per part of what reference log-probabilities depend on."""

    model: str
    """Weights (names, dtypes, shapes, bytes) and configuration, without adapters."""
    adapter: str
    """"off", or of the adapter that is on while the reference computes."""
    tokenizer: str
    """Everything that turns text into token ids, and the special tokens."""
    template: str
    """The chat template; "none" where there is none."""
    data: str
    """Token ids of all rows, in their order."""
    settings: str
    """Lengths, truncation, precision and the version of this format."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: Any,
        rows: Iterable[Mapping[str, Any]],
        *,
        columns: Sequence[str],
        settings: Mapping[str, Any],
        adapter: str = "ref",
    ) -> "Fingerprint":
        """Fingerprint of what a reference run reads.

        Args:
            model: The reference, or the PEFT model within which it lies; not yet wrapped or sharded.
            tokenizer: Tokenizer or processor; None where there is none.
            rows: The tokenised rows in the order of the results.
            columns: Columns of `rows` that hold integers the results depend on (`prompt_ids`, `chosen_ids` ...).
            settings: What else changes the numbers, such as max_length, truncation, dtype and autocast dtype: values
                that JSON or `str` can write.
            adapter: Adapter that is on while the reference computes, if the model has it; otherwise all are off.

        Raises:
            ModelError: If weights cannot be read here (sharded, on the meta device).
            DataError: If a column is missing or holds no integers.
        """
        return cls(
            model=fingerprint_model(model),
            adapter=fingerprint_adapter(model, adapter),
            tokenizer=fingerprint_tokenizer(tokenizer),
            template=fingerprint_template(tokenizer),
            data=fingerprint_rows(rows, columns),
            settings=fingerprint_settings(settings),
        )

    @property
    def digest(self) -> str:
        """One digest of all parts."""
        return _digest_of(self.parts)

    @property
    def parts(self) -> dict[str, str]:
        """Digest by part."""
        return asdict(self)

    def differing(self, other: "Fingerprint") -> tuple[str, ...]:
        """Parts that differ."""
        return tuple(part.name for part in fields(self) if getattr(self, part.name) != getattr(other, part.name))


def fingerprint_model(model: nn.Module) -> str:
    """Digest of weights, persistent buffers and configuration, without adapters.

    A PEFT model has the digest of the model it was made from, and a tied weight counts once. How files are cut, the
    device and the version of transformers change nothing.

    Raises:
        ModelError: If weights cannot be read here (sharded, on the meta device).
    """
    base = base_model(model)
    config: Any = getattr(base, "config", None)
    described = _without(config.to_dict(), NEUTRAL_CONFIG) if hasattr(config, "to_dict") else None
    return _digest_of({"config": described, "weights": _digest_of_tensors(_base_tensors(base))})


def fingerprint_adapter(model: nn.Module, adapter: str = "ref") -> str:
    """Digest of weights and configuration of one adapter; "off" where the model has no adapter of that name."""
    configs = getattr(model, "peft_config", {})
    if adapter not in configs:
        return "off"
    peft = require("peft", extra="train", purpose="read adapters")
    tensors = peft.get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    described = _without(configs[adapter].to_dict(), NEUTRAL_ADAPTER)
    return _digest_of({"config": described, "weights": _digest_of_tensors(tensors.items())})


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Digest of everything that turns text into token ids; "none" where there is no tokenizer.

    Truncation and padding are left out: they are settings of the last call, not of the tokenizer.
    """
    if tokenizer is None:
        return "none"
    inner = getattr(tokenizer, "tokenizer", None)
    # A processor holds its tokenizer.
    tokenizer = inner if hasattr(inner, "special_tokens_map") else tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        described = {name: part for name, part in json.loads(backend.to_str()).items() if name not in _CALL_STATE}
    else:
        described = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _digest_of({"backend": described, "special": special})


_CALL_STATE = ("truncation", "padding")


def fingerprint_template(tokenizer: Any) -> str:
    """Digest of the chat template of a tokenizer or processor; "none" where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return "none" if template is None else _digest_of(template)


def fingerprint_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Digest of the integers in these columns of all rows, in their order.

    Raises:
        DataError: If no column is named, or one is missing or holds no integers.
    """
    if isinstance(columns, str) or not columns:
        raise DataError(f"`columns` must be a list of the columns that the results depend on, got {columns!r}.")
    digest = hashlib.sha256(json.dumps(sorted(columns)).encode())
    for number, row in enumerate(rows):
        for column in sorted(columns):
            if column not in row:
                raise DataError(f"Row {number} must have the columns {', '.join(sorted(columns))}; no `{column}`.")
            try:
                values = np.asarray(row[column])
            except ValueError:  # lists of uneven length
                values = np.asarray([None])
            if values.dtype.kind not in "biu" and values.size:
                raise DataError(
                    f"`{column}` of row {number} must hold integers, in lists of equal length, got "
                    f"{_shown(row[column])}."
                )
            digest.update(f"{values.shape}".encode())
            digest.update(np.ascontiguousarray(values, dtype="<i8").data)
    return digest.hexdigest()


def fingerprint_settings(settings: Mapping[str, Any]) -> str:
    """Digest of settings by name, and of the version of this format."""
    return _digest_of({"format": FORMAT, **{name: _plain(value) for name, value in settings.items()}})


def _base_tensors(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and persistent buffers by the names that they have without adapters."""
    inner = dict(_wrappers(base))
    for name, tensor in base.state_dict(keep_vars=True).items():
        plain = _plain_name(name, inner)
        if plain is None:
            continue
        if not isinstance(tensor, Tensor):
            raise ModelError(f"The state '{plain}' of {type(base).__name__} is no tensor, so it has no fingerprint.")
        yield plain, tensor


def _wrappers(base: nn.Module) -> Iterator[tuple[str, str]]:
    """Path of each module that PEFT put in another one's place, and where in it that other one is."""
    if not hasattr(base, "peft_config") and not any(hasattr(module, "base_layer") for module in base.modules()):
        kinds = ()
    else:
        kinds = _peft_kinds()
    for path, module in base.named_modules():
        for kind, attribute in kinds:
            if isinstance(module, kind):
                yield path, attribute


def _peft_kinds() -> tuple[tuple[type, str], ...]:
    tuners = require("peft.tuners.tuners_utils", extra="train", purpose="read adapters")
    other = require("peft.utils.other", extra="train", purpose="read adapters")
    return (tuners.BaseTunerLayer, "base_layer"), (other.AuxiliaryTrainingWrapper, "original_module")


def _plain_name(name: str, inner: Mapping[str, str]) -> str | None:
    """`name` without the steps that adapters added to it; None where it belongs to an adapter."""
    steps, kept, path = name.split("."), [], ""
    place = 0
    while place < len(steps):
        if path in inner:
            if steps[place] != inner[path]:
                return None
        else:
            kept.append(steps[place])
        path = f"{path}.{steps[place]}" if path else steps[place]
        place += 1
    return ".".join(kept)


def _digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of names, dtypes, shapes and bytes, whatever the order; tied tensors count once."""
    pairs = sorted(tensors, key=lambda pair: pair[0])
    seen: set[int] = set()
    heads: list[list[Any]] = []
    blocks: list[tuple[Tensor, int]] = []
    for name, tensor in pairs:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        flat = _flat(name, tensor)
        starts = range(0, len(flat), max(1, BLOCK_BYTES // flat.element_size()))
        heads.append([name, str(tensor.dtype), list(tensor.shape), len(starts)])
        blocks += [(flat, start) for start in starts]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(_digest_of_block, blocks))
    return _digest_of([heads, digests])


def _flat(name: str, tensor: Tensor) -> Tensor:
    # ZeRO-3 leaves an empty placeholder with the true size in `ds_shape`; FSDP2 leaves a DTensor.
    if hasattr(tensor, "ds_shape") or hasattr(tensor, "full_tensor") or tensor.device.type == "meta":
        raise ModelError(
            f"The weight '{name}' is not whole on this device: fingerprint the model before it is sharded."
        )
    return tensor.detach().reshape(-1)


def _digest_of_block(block: tuple[Tensor, int]) -> str:
    flat, start = block
    part = flat[start : start + max(1, BLOCK_BYTES // flat.element_size())].contiguous().view(torch.uint8)
    return hashlib.sha256(part.cpu().numpy().data).hexdigest()


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _without(entries: Mapping[str, Any], neutral: set[str]) -> dict[str, Any]:
    """A configuration without private and neutral entries, at any depth."""
    return {
        str(name): _without(value, neutral) if isinstance(value, Mapping) else value
        for name, value in entries.items()
        if str(name) not in neutral and not str(name).startswith("_")
    }


def _plain(value: Any) -> Any:
    """The same as JSON has it; sets in order, and what JSON does not know as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(entry) for entry in value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
