"""What is asked of vLLM and what is made of its outputs, with a stand-in of its documented interface."""

import importlib.machinery
import sys
import types
from dataclasses import dataclass, field

import pytest

from lossmith.errors import ConfigurationError, MissingExtraError, ModelError
from lossmith.integrations.causal_lm import vllm as ours
from lossmith.integrations.causal_lm.generation import Generated
from lossmith.integrations.causal_lm.vllm import generate_with_vllm, pick_backend

STOP, OTHER_STOP = 2, 7


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass
class SamplingParams:
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool
    seed: int | None


@dataclass
class Calls:
    made: list[dict] = field(default_factory=list)
    asked: list[tuple[list, list[SamplingParams], bool]] = field(default_factory=list)


class Words:
    def decode(self, ids, **settings) -> str:
        assert settings == {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return " ".join(str(token) for token in ids if token not in (STOP, OTHER_STOP))


@pytest.fixture
def calls(monkeypatch) -> Calls:
    seen = Calls()

    class LLM:
        def __init__(self, **settings):
            seen.made.append(settings)
            if settings["model"] == "broken":
                raise ValueError("No such architecture.\nand a long trace")

        def generate(self, prompts, sampling_params, *, use_tqdm):
            seen.asked.append((prompts, sampling_params, use_tqdm))
            return [
                RequestOutput(
                    prompt["prompt_token_ids"],
                    [
                        CompletionOutput(vote, "", (*prompt["prompt_token_ids"], 40 + vote, *end), reason)
                        for vote, end, reason in zip(
                            range(asked.n), [(STOP,), (), (OTHER_STOP,)], ["stop", "length", "stop"], strict=False
                        )
                    ],
                )
                for prompt, asked in zip(prompts, sampling_params, strict=True)
            ]

    module, inputs = types.ModuleType("vllm"), types.ModuleType("vllm.inputs")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, inputs.TokensPrompt = LLM, SamplingParams, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)
    return seen


ASKED = {"tokenizer": Words(), "max_new_tokens": 9, "stop_token_ids": [STOP, OTHER_STOP]}


def test_answers_have_the_same_form(calls, monkeypatch):
    monkeypatch.setattr(ours, "PROMPTS_AT_ONCE", 2)
    seen: list[tuple[int, int]] = []
    answers = generate_with_vllm(
        "folder", [[11], [12, 13], [14]], votes=3, temperature=0.7, top_p=0.9, seed=5,
        on_batch=lambda *at: seen.append(at), tensor_parallel_size=2, gpu_memory_utilization=0.4, **ASKED,
    )  # fmt: skip
    assert answers[1] == [
        Generated(text="12 13 40", tokens=4, stopped=True),
        Generated(text="12 13 41", tokens=3, stopped=False),
        Generated(text="12 13 42", tokens=4, stopped=True),
    ]
    assert [row[0].text for row in answers] == ["11 40", "12 13 40", "14 40"]
    assert calls.made == [
        {
            "model": "folder", "trust_remote_code": False, "generation_config": "vllm", "enable_prefix_caching": True,
            "gpu_memory_utilization": 0.4, "tensor_parallel_size": 2,
        }
    ]  # fmt: skip
    assert seen == [(6, 9), (9, 9)]
    assert [[p["prompt_token_ids"] for p in prompts] for prompts, _, _ in calls.asked] == [[[11], [12, 13]], [[14]]]
    params = [one for _, each, _ in calls.asked for one in each]
    assert (params[0].n, params[0].temperature, params[0].top_p, params[0].max_tokens) == (3, 0.7, 0.9, 9)
    assert params[0].stop_token_ids == [STOP, OTHER_STOP]
    assert len({one.seed for one in params}) == 3
    assert not any(shown for _, _, shown in calls.asked)


def test_seeds_are_those_of_the_call(calls):
    for seed in (5, 5, 6):
        generate_with_vllm("folder", [[11], [12]], votes=2, temperature=0.7, seed=seed, **ASKED)
    first, again, other = ([one.seed for one in params] for _, params, _ in calls.asked)
    assert first == again
    assert set(first).isdisjoint(other)
    generate_with_vllm("folder", [[11]], seed=5, **ASKED)
    assert calls.asked[-1][1][0].seed is None


def test_a_model_that_vllm_refuses_is_one_sentence(calls):
    with pytest.raises(ModelError, match=r"vLLM cannot load the model in broken: No such architecture\. Generate with"):
        generate_with_vllm("broken", [[11]], **ASKED)
    with pytest.raises(ConfigurationError, match="`votes` is 2 and `temperature` 0"):
        generate_with_vllm("folder", [[11]], votes=2, **ASKED)
    assert len(calls.made) == 1


def test_without_vllm_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    sentence = r"`vllm` is needed to generate with vLLM and is not installed: pip install 'lossmith\[vllm\]'"
    with pytest.raises(MissingExtraError, match=sentence):
        generate_with_vllm("folder", [[11]], **ASKED)
    with pytest.raises(MissingExtraError, match=sentence):
        pick_backend("vllm", "cuda")


def test_the_backend_is_vllm_only_where_it_runs(calls, monkeypatch):
    assert pick_backend("auto", "cuda") == "vllm"
    assert pick_backend("auto", "cpu") == "transformers"
    assert pick_backend("vllm", "cuda") == "vllm"
    assert pick_backend("transformers", "cuda") == "transformers"
    with pytest.raises(ConfigurationError, match="`backend` vllm needs a CUDA device, this is cpu"):
        pick_backend("vllm", "cpu")
    with pytest.raises(ConfigurationError, match="must be one of auto, transformers, vllm, got 'vlm'"):
        pick_backend("vlm", "cpu")
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    assert pick_backend("auto", "cuda") == "transformers"
