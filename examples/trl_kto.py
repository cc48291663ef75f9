"""Thumbs up and down with a lossmith loss: `python examples/trl_kto.py "kto + 0.1*cross_entropy"`.

The script of TRL's documentation with two lines changed, the import and `loss=`: SmolLM2-135M with LoRA learns from
polite and impolite answers, or from a JSONL file of your own, the second argument; saved, loaded and asked.
"""

import sys
import tempfile
from pathlib import Path

from datasets import load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoTokenizer
from trl import KTOConfig

from lossmith.integrations.models import resolve_model
from lossmith.integrations.trl import KTOTrainer

LOSS = sys.argv[1] if len(sys.argv) > 1 else "kto + 0.1*cross_entropy"
DATA = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).parent / "data" / "polite_pairs.jsonl.gz")


def judged(row: dict, place: int) -> dict:
    """One answer to each question: every other one the polite one."""
    good = place % 2 == 0
    return {"completion": [{"role": "assistant", "content": row["chosen" if good else "rejected"]}], "label": good}


if __name__ == "__main__":
    model, folder = str(resolve_model("embedded:smollm2-135m").location), tempfile.mkdtemp()
    data = load_dataset("json", data_files=DATA, split="train")
    data = data if "label" in data.column_names else data.map(judged, with_indices=True)
    data = data.select_columns(["prompt", "completion", "label"]).train_test_split(16, 128, seed=0)
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(
            folder,
            per_device_train_batch_size=4,
            learning_rate=3e-4,
            max_steps=32,
            logging_steps=4,
            train_sampling_strategy="random",
            bf16=False,  # TRL's default needs a GPU
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        loss=LOSS,
    )
    print("before:", trainer.evaluate())
    trainer.train()
    print("after: ", trainer.evaluate())
    trainer.save_model(folder)

    tokenizer, trained = AutoTokenizer.from_pretrained(model), AutoPeftModelForCausalLM.from_pretrained(folder)
    asked = [{"role": "user", "content": "Name the capital of Italy."}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = trained.generate(**prompt, max_new_tokens=40, do_sample=False)
    print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
