"""One step of a real language model with any loss, with and without its logits: same loss, same gradients.

    python examples/linear_logits.py "0.6*cross_entropy + 0.4*lovasz_softmax"

The model is the embedded SmolLM2-135M-Instruct, the text a shipped set of film reviews; no network is needed.
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lossmith
from lossmith.integrations.models import quiet_transformers, resolve_model
from lossmith.tasks import load_task


def main() -> None:
    """Compare the two ways."""
    loss = lossmith.loss(sys.argv[1] if len(sys.argv) > 1 else "focal")
    folder = resolve_model("embedded:smollm2-135m").location
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [example.text for example in load_task("mr").train[:24]]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    # The causal shift: position t predicts token t + 1. Padding does not count.
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]

    head = model.get_output_embeddings()
    for name in ("logits", "LinearLogits"):
        model.zero_grad()
        states = model.model(**batch).last_hidden_state[:, :-1]
        # The head's share of the step alone is timed: from the last hidden states to their gradient and the matrix's.
        hidden = states.detach().requires_grad_()
        start = time.perf_counter()
        logits = lossmith.LinearLogits(hidden, head.weight, head.bias) if name == "LinearLogits" else head(hidden)
        value = loss(logits, labels)
        value.backward()
        seconds = time.perf_counter() - start
        states.backward(hidden.grad)
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))
        print(f"{name}: loss {value.item():.5f}, gradient norm {norm:.4f}, head {seconds:.2f} s")
        print(f"  {loss.plan(logits, labels)}")


if __name__ == "__main__":
    main()
