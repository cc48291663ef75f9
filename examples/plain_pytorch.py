"""A language model fine-tuned in a plain loop: the same steps with `python` and `torchrun --nproc-per-node 2`."""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorWithPadding

import lossmith
from lossmith.integrations.batches import aligned_labels
from lossmith.integrations.models import resolve_model
from lossmith.tasks import load_task

ROWS_PER_STEP, STEPS = 8, 24


class ModelWithLoss(torch.nn.Module):
    """The loss inside the forward that DDP wraps; the logits are never built."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch, labels, num_items) -> torch.Tensor:
        """What the micro-batch adds to the mean over the tokens of the whole step."""
        hidden, head = self.model.base_model(**batch).last_hidden_state, self.model.get_output_embeddings()
        return self.loss(lossmith.LinearLogits(hidden, head.weight, head.bias), labels, num_items=num_items)


def train(model, rows, loss, steps) -> None:
    """Train in place; print the loss of each step over all processes."""
    # The end of the data must not cut a step into several: its micro-batches are drawn ahead to count their tokens.
    plugin = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    # Without `cpu`, accelerate takes each process of torchrun on a machine without a GPU for one alone.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), gradient_accumulation_plugin=plugin)
    accelerator.gradient_accumulation_steps = parts = ROWS_PER_STEP // rows.batch_size // accelerator.num_processes
    module = ModelWithLoss(model.train(), loss)
    module, optimizer, rows = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=2e-5), rows)
    stream = iter(rows)
    for step in range(1, steps + 1):
        drawn = [dict(next(stream)) for _ in range(parts)]
        labels = [aligned_labels(batch["input_ids"], attention_mask=batch["attention_mask"]) for batch in drawn]
        num_items = accelerator.reduce(sum((part != -100).sum() for part in labels))
        values = []
        for batch, part in zip(drawn, labels, strict=True):
            with accelerator.accumulate(module):
                values.append(module(batch, part, num_items))
                # accelerate divides by the micro-batches and DDP by the processes; `num_items` counts them all already.
                accelerator.backward(values[-1] * parts * accelerator.num_processes)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"step {step:2d}  loss {accelerator.reduce(torch.stack(values).detach().sum()):.6f}")


if __name__ == "__main__":
    folder = resolve_model("embedded:smollm2-135m").location
    model, encode = AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)
    rows = [encode(example.text) for example in load_task("mr").train[: STEPS * ROWS_PER_STEP]]
    batches = torch.utils.data.DataLoader(rows, 2, collate_fn=DataCollatorWithPadding(encode))
    train(model, batches, lossmith.loss("focal"), STEPS)
