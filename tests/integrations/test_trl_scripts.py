"""A vanilla TRL script becomes ours by two changed lines: the import, and `loss=`."""

import json
import math

import pytest

import lossmith
from reference_inputs import llama
from trl_inputs import OF_OTHERS, completions, pairs, words

pytestmark = [pytest.mark.filterwarnings(line) for line in OF_OTHERS]

SCRIPT = """
from datasets import load_dataset
from trl import {kind}Config, {kind}Trainer
dataset = load_dataset("json", data_files=DATA, split="train")
trainer = {kind}Trainer(
    model=MODEL,
    args={kind}Config(OUTPUT, use_cpu=True, bf16=False, max_steps=4, logging_steps=1, learning_rate=5e-3,
                      per_device_train_batch_size=8, report_to="none", disable_tqdm=True, dataloader_pin_memory=False),
    train_dataset=dataset,
)
trainer.train()
trainer.save_model(OUTPUT)
"""

CASES = {
    "SFT": (
        "0.6*cross_entropy + 0.4*lovasz_softmax",
        lambda: [{"text": row["prompt"] + row["chosen"]} for row in pairs()],
    ),
    "DPO": ("lrml(beta=0.05)", lambda: list(pairs())),
    "KTO": ("kto", lambda: list(completions())),
}


def changed(script: str, kind: str, loss: str) -> str:
    ours = script.replace("from trl import", "from lossmith.integrations.trl import")
    return ours.replace("    train_dataset=dataset,\n", f"    train_dataset=dataset, loss={loss!r},\n")


@pytest.mark.parametrize("kind", CASES)
def test_two_changed_lines(kind, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    loss, rows = CASES[kind]
    llama().float().save_pretrained(tmp_path / "model")
    words().save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows()), encoding="utf-8")
    vanilla = SCRIPT.format(kind=kind)
    ours = changed(vanilla, kind, loss)
    assert sum(a != b for a, b in zip(vanilla.splitlines(), ours.splitlines(), strict=True)) == 2

    scope = {"DATA": str(data), "MODEL": str(tmp_path / "model"), "OUTPUT": str(tmp_path / "out")}
    exec(compile(ours, f"{kind} script", "exec"), scope)  # noqa: S102 - our own text
    trainer = scope["trainer"]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert type(trainer).__module__.startswith("lossmith.")
    assert str(trainer.loss) == str(lossmith.loss(loss))
    assert len(history) == 4
    assert all(math.isfinite(entry["loss"]) and entry["nll"] > 0 for entry in history)
    assert history[-1]["loss"] < history[0]["loss"]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert any(not weight.equal(before[name]) for name, weight in trained.named_parameters())
    assert json.loads((tmp_path / "out" / "lossmith.json").read_text())["loss"] == str(trainer.loss)
