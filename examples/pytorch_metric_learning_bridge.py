"""pytorch-metric-learning both ways: their loss and miner in a lossmith call, our loss in their cross-batch memory.

    python examples/pytorch_metric_learning_bridge.py

A real encoder (embedded all-MiniLM-L6-v2) learns to tell bank customers' intents apart; no network is needed.
"""

import torch
from pytorch_metric_learning import losses, miners
from transformers import AutoModel, AutoTokenizer

import lossmith
from lossmith.integrations.models import resolve_model
from lossmith.integrations.pooling import pool
from lossmith.integrations.pytorch_metric_learning import from_pml, to_pml
from lossmith.tasks import load_task

FOLDER = resolve_model("embedded:minilm-l6").location
CLASSES, STEPS = 24, 16
LOSSES = {
    "theirs, with their miner": from_pml(losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(margin=0.2)),
    "theirs, with proxies": from_pml(losses.ProxyAnchorLoss(CLASSES, 384)),
    "ours, with their miner": from_pml("nt_xent", miners.MultiSimilarityMiner(epsilon=0.1)),
    "ours, in their memory": from_pml(losses.CrossBatchMemory(to_pml("supcon", temperature=0.1), 384, memory_size=128)),
}


def main() -> None:
    """Train with each loss and say how often the nearest training text has the class of a test text."""
    task, tokenizer = load_task("banking77"), AutoTokenizer.from_pretrained(FOLDER)
    settings = {"padding": True, "truncation": True, "max_length": 32, "return_tensors": "pt"}
    parts = [[row for row in rows if row.label < CLASSES][::step] for rows, step in ((task.train, 12), (task.test, 4))]
    train, test = (tokenizer([row.text for row in rows], **settings) for rows in parts)
    labels, test_labels = (torch.tensor([row.label for row in rows]) for rows in parts)

    for name, loss in {"before training": None, **LOSSES}.items():
        encoder = AutoModel.from_pretrained(FOLDER, dtype="float32")
        if loss is not None:
            own = loss.param_groups(lr=3e-5, proxy_lr_multiplier=100.0)
            optimizer = torch.optim.AdamW([{"params": encoder.parameters(), "lr": 3e-5}, *own])
            sampler = lossmith.nn.PKBatchSampler(labels, classes_per_batch=8, samples_per_class=3)
            for _, rows in zip(range(STEPS), sampler, strict=False):
                optimizer.zero_grad()
                loss(embed(encoder, train, rows), labels[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            nearest = (embed(encoder, test) @ embed(encoder, train).T).argmax(-1)
        print(f"{name}: {(labels[nearest] == test_labels).float().mean():.1%}")


def embed(encoder, batch, rows=slice(None)) -> torch.Tensor:
    """Unit vectors of some texts."""
    inputs = {name: value[rows] for name, value in batch.items()}
    hidden = encoder(**inputs).last_hidden_state
    return torch.nn.functional.normalize(pool(hidden, inputs["attention_mask"], "mean"), dim=-1)


if __name__ == "__main__":
    main()
