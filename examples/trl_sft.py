"""Supervised fine-tuning with a lossmith loss: `python examples/trl_sft.py "0.6*cross_entropy + 0.4*lovasz_softmax"`.

The script of TRL's documentation with two lines changed, the import and `loss=`: SmolLM2-135M with LoRA on questions of
GSM8K; saved, loaded by plain transformers and PEFT, and asked. Some minutes on two cores.
"""

import sys
import tempfile
from importlib.resources import files

from datasets import load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig

from lossmith.integrations.models import resolve_model
from lossmith.integrations.trl import SFTTrainer

DATA = files("lossmith.tasks") / "data" / "gsm8k" / "train.jsonl.gz"
LOSS = sys.argv[1] if len(sys.argv) > 1 else "0.6*cross_entropy + 0.4*lovasz_softmax"


def as_chat(row: dict) -> dict:
    """A question as prompt, its worked solution as completion."""
    pair = {"prompt": ("user", row["question"]), "completion": ("assistant", row["solution"])}
    return {part: [{"role": role, "content": text}] for part, (role, text) in pair.items()}


if __name__ == "__main__":
    model, folder = str(resolve_model("embedded:smollm2-135m").location), tempfile.mkdtemp()
    data = load_dataset("json", data_files=str(DATA), split="train[:200]")
    data = data.map(as_chat, remove_columns=data.column_names).train_test_split(16, seed=0)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            folder,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            max_steps=30,
            max_length=256,
            logging_steps=5,
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
    asked = [{"role": "user", "content": "A pen costs $3 and a book costs $5. How much do 2 pens and 1 book cost?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = trained.generate(**prompt, max_new_tokens=60, do_sample=False)
    print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
