"""A fingerprint notices every change that moves a reference log-probability, and no other."""

import copy
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lossmith.errors import DataError, ModelError
from lossmith.integrations import fingerprints
from lossmith.integrations.fingerprints import (
    Fingerprint,
    fingerprint_adapter,
    fingerprint_model,
    fingerprint_rows,
    fingerprint_settings,
    fingerprint_template,
    fingerprint_tokenizer,
)
from reference_inputs import llama, lora, shake, tokenizer

ROWS = [{"prompt": [4, 5], "chosen": [6, 7, 8], "rejected": [9]}, {"prompt": [1], "chosen": [2], "rejected": [3, 3]}]
ROPE = {"rope_theta": 9e3, "rope_type": "default"}
SETTINGS = {"max_length": 64, "truncation": "keep_start", "dtype": torch.float32, "autocast": None}


def everything(**changed: Any) -> Fingerprint:
    given = {
        "model": llama(dtype=torch.float32),
        "tokenizer": tokenizer(),
        "rows": ROWS,
        "settings": SETTINGS,
        **changed,
    }
    return Fingerprint.of(
        given["model"],
        given["tokenizer"],
        given["rows"],
        columns=["prompt", "chosen", "rejected"],
        settings=given["settings"],
    )


def with_weight_moved() -> Any:
    model = llama(dtype=torch.float32)
    with torch.no_grad():
        # One unit in the last place: 6e-8 to 1.2e-7 of the weight.
        weight = model.model.layers[1].mlp.down_proj.weight.view(-1)
        weight[17] = torch.nextafter(weight[17], torch.tensor(9.0))
    return model


def with_ref() -> Any:
    model = lora(llama(dtype=torch.float32))
    model.add_adapter("ref", model.peft_config["default"])
    return model


CHANGES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "one weight by 1e-7": ("model", lambda: {"model": with_weight_moved()}),
    "rope": ("model", lambda: {"model": llama(dtype=torch.float32, rope_parameters=ROPE)}),
    "dtype": ("model", lambda: {"model": llama(dtype=torch.float64)}),
    "a ref adapter": ("adapter", lambda: {"model": with_ref()}),
    "one word more": ("tokenizer", lambda: {"tokenizer": tokenizer(words=60)}),
    "one special token": ("tokenizer", lambda: {"tokenizer": tokenizer(eos_token="w3")}),
    "roles of special tokens": ("tokenizer", lambda: {"tokenizer": tokenizer(eos_token="w1", pad_token="w2")}),
    "one character": ("template", lambda: {"tokenizer": tokenizer(template="{{ messages}}")}),
    "no template": ("template", lambda: {"tokenizer": tokenizer(template=None)}),
    "one token": ("data", lambda: {"rows": [{**ROWS[0], "chosen": [6, 7, 9]}, ROWS[1]]}),
    "one token by 256": ("data", lambda: {"rows": [{**ROWS[0], "chosen": [6, 7, 264]}, ROWS[1]]}),
    "order": ("data", lambda: {"rows": ROWS[::-1]}),
    "a token across a border": ("data", lambda: {"rows": [ROWS[0] | {"prompt": [4], "rejected": [5, 9]}, ROWS[1]]}),
    "a row less": ("data", lambda: {"rows": ROWS[:1]}),
    "a longer maximum": ("settings", lambda: {"settings": {**SETTINGS, "max_length": 65}}),
    "autocast": ("settings", lambda: {"settings": {**SETTINGS, "autocast": torch.bfloat16}}),
}  # fmt: skip


def test_equal_things_have_equal_fingerprints() -> None:
    assert everything() == everything()
    assert everything().digest == everything().digest
    assert everything().differing(everything()) == ()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_part_is_seen_in_that_part(change: str) -> None:
    part, make = CHANGES[change]
    changed = everything(**make())
    assert everything().differing(changed) == (part,)
    assert everything().digest != changed.digest


def test_a_format_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_settings(SETTINGS)
    monkeypatch.setattr(fingerprints, "FORMAT", fingerprints.FORMAT + 1)
    assert fingerprint_settings(SETTINGS) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_files_and_loading_change_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    model = llama(dtype=dtype)
    for name, size in (("one", "1GB"), ("many", "4KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    shutil.move(tmp_path / "many", tmp_path / "elsewhere")
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=dtype) for name in ("one", "elsewhere")]
    assert len({fingerprint_model(each) for each in (model, *loaded)}) == 1
    trained = copy.deepcopy(model)
    trained.config.use_cache, trained.config.pad_token_id = False, 5
    assert fingerprint_model(trained) == fingerprint_model(model)


def test_one_bit_of_bfloat16() -> None:
    model, other = llama(dtype=torch.bfloat16), llama(dtype=torch.bfloat16)
    with torch.no_grad():
        other.model.norm.weight.view(torch.int16)[3] += 1
    assert fingerprint_model(model) != fingerprint_model(other)


def test_tied_weights_count_once() -> None:
    tied = llama(tie_word_embeddings=True)
    hashed = [name for name, _ in fingerprints._base_tensors(tied)]
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(hashed)
    alone = fingerprint_model(tied)
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach().clone())
    assert fingerprint_model(tied) != alone


def test_blocks_threads_and_strides_change_nothing_but_bytes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(600.0).view(20, 30)
    of = fingerprints._digest_of_tensors
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 256)
    transposed = weight.T.contiguous().T
    assert not transposed.is_contiguous()
    assert of([("a", transposed)]) == of([("a", weight)])
    assert of([("a", weight), ("b", weight + 1)]) == of([("b", weight + 1), ("a", weight)])
    assert of([("a", weight.view(30, 20))]) != of([("a", weight)])
    assert of([("b", weight)]) != of([("a", weight)])
    # The last entry lies in a block that is not full.
    assert of([("a", torch.cat([weight.view(-1)[:-1], torch.tensor([0.0])]).view(20, 30))]) != of([("a", weight)])
    # Alone in the last block.
    long = torch.arange(65.0)
    assert of([("a", long)]) != of([("a", torch.cat([long[:-1], torch.zeros(1)]))])
    assert of([("a", torch.zeros(0))]) != of([("a", torch.tensor(0.0))])


def test_blocks_are_small_and_hashed_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    hashed = fingerprints._digest_of_block

    def noted(block: tuple[torch.Tensor, int]) -> str:
        seen.append((len(block[0][block[1] : block[1] + 256]), threading.get_ident()))
        return hashed(block)

    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(fingerprints, "_digest_of_block", noted)
    model = llama(dtype=torch.float32)
    fingerprint_model(model)
    assert sum(size for size, _ in seen) == sum(weight.numel() for weight in model.parameters())
    assert threading.get_ident() not in {thread for _, thread in seen}


@pytest.mark.parametrize("copied", [["lm_head"], ["embed_tokens"], None])
def test_the_base_of_a_peft_model_has_the_fingerprint_of_the_model(copied: list[str] | None) -> None:
    plain = fingerprint_model(llama())
    model = lora(llama(), modules_to_save=copied, target_modules="all-linear")
    assert fingerprint_model(model) == plain
    shake(model)
    assert fingerprint_model(model) == plain
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight[0, 0] += 1
    assert fingerprint_model(model) != plain


def test_weights_and_scale_of_the_ref_adapter_count() -> None:
    model = with_ref()
    assert fingerprint_adapter(lora(llama())) == "off"
    before = fingerprint_adapter(model)
    shake(model)
    assert fingerprint_adapter(model) == before
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.ref.weight"
    with torch.no_grad():
        model.get_parameter(name)[0, 0] += 1e-7
    moved = fingerprint_adapter(model)
    assert moved not in (before, "off")
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = 0
    assert fingerprint_adapter(model) == before
    model.peft_config["ref"].lora_alpha += 1
    assert fingerprint_adapter(model) != before
    assert fingerprint_adapter(model, "default") not in (before, "off")


def test_what_a_call_leaves_behind_in_a_tokenizer_does_not_count() -> None:
    used = tokenizer()
    used(["w4 w5", "w6"], truncation=True, max_length=1, padding="max_length")
    assert json.loads(used.backend_tokenizer.to_str())["truncation"] is not None
    assert fingerprint_tokenizer(used) == fingerprint_tokenizer(tokenizer())


class Plain:
    """A tokenizer without a backend."""

    def __init__(self, **vocabulary: int):
        self.vocabulary, self.special_tokens_map = vocabulary, {"eos_token": "b"}
        self.chat_template = None

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_tokenizers_without_a_backend_processors_and_none() -> None:
    assert fingerprint_tokenizer(Plain(a=0, b=1)) == fingerprint_tokenizer(Plain(b=1, a=0))
    assert fingerprint_tokenizer(Plain(a=0, b=1)) != fingerprint_tokenizer(Plain(a=1, b=0))
    processor = type("Processor", (), {"tokenizer": tokenizer(), "chat_template": "its own"})()
    assert fingerprint_tokenizer(processor) == fingerprint_tokenizer(tokenizer())
    assert fingerprint_template(processor) != fingerprint_template(tokenizer())
    assert fingerprint_tokenizer(None) == fingerprint_template(None) == fingerprint_template(Plain()) == "none"


def test_rows_of_lists_tensors_and_masks_are_the_same_integers() -> None:
    rows = [{"ids": [3, 4, 5], "mask": [0, 1, 1]}, {"ids": [], "mask": []}]
    tensors = [
        {"ids": torch.tensor(row["ids"], dtype=torch.int32), "mask": torch.tensor(row["mask"]).bool()} for row in rows
    ]
    assert fingerprint_rows(rows, ["ids", "mask"]) == fingerprint_rows(iter(tensors), ["mask", "ids"])
    assert fingerprint_rows(rows, ["ids"]) != fingerprint_rows(rows, ["ids", "mask"])


def test_bad_rows() -> None:
    with pytest.raises(DataError, match="Row 1 must have the columns chosen, prompt; no `chosen`"):
        fingerprint_rows([ROWS[0], {"prompt": [1]}], ["prompt", "chosen"])
    with pytest.raises(DataError, match=r"`prompt` of row 0 must hold integers, in lists of equal length, got 'Why\?'"):
        fingerprint_rows([{"prompt": "Why?"}], ["prompt"])
    with pytest.raises(DataError, match=r"in lists of equal length, got \[\[1\], \[2, 3\]\]"):
        fingerprint_rows([{"prompt": [[1], [2, 3]]}], ["prompt"])


@pytest.mark.parametrize("columns", [[], "prompt"])
def test_columns_that_would_let_data_pass_unseen(columns: Any) -> None:
    with pytest.raises(DataError, match=r"`columns` must be a list of the columns .* got (\[\]|'prompt')\."):
        fingerprint_rows(ROWS, columns)


def test_weights_that_are_not_here() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    with pytest.raises(ModelError, match="The weight 'bias' is not whole on this device: fingerprint the model before"):
        fingerprint_model(model)
    sharded = torch.nn.Linear(3, 2)
    sharded.weight.ds_shape = (4, 4)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ModelError, match="The weight 'weight' is not whole"):
        fingerprint_model(sharded)
