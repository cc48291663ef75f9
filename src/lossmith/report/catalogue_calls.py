"""What the generated catalogue says about calling: an example for each page, call arguments, settings, accumulation."""

from collections.abc import Mapping, Sequence

from lossmith.objectives import ObjectiveRecord
from lossmith.report.markdown import prose, table

EXAMPLES = {
    "token": """\
```python
import torch
import lossmith

logits = torch.randn(4, 7, 50, requires_grad=True)  # [batch, seq, vocab]
labels = torch.randint(50, (4, 7))  # aligned: labels[:, t] is the target of logits[:, t]
labels[:, :3] = -100  # the prompt does not count
value = lossmith.loss("focal", gamma=1.0)(logits, labels)
value.backward()
```

A causal language model predicts the next token, so its labels are shifted once, by the caller:
`loss(logits[:, :-1], labels[:, 1:])`. `unlikelihood` beside another loss, with labels of its own (the tokens that must
not be said, -100 elsewhere):

```python
wrong = torch.randint(50, (4, 7))
value = lossmith.loss("cross_entropy")(logits, labels) + 0.5 * lossmith.loss("unlikelihood")(logits, wrong)
value.backward()
```""",
    "region": """\
```python
import torch
import lossmith

logits = torch.randn(4, 7, 50, requires_grad=True)  # [batch, seq, vocab]
labels = torch.randint(50, (4, 7))
value = lossmith.loss("0.6*cross_entropy + 0.4*dice(region='sequence')")(logits, labels)
value.backward()
```""",
    "metric": """\
```python
import torch
import lossmith

embeddings = torch.randn(8, 32, requires_grad=True)  # [anchors, dim]
labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])  # two rows per class: every anchor has a positive
value = lossmith.loss("supcon", temperature=0.1)(embeddings, labels)
proxied = lossmith.loss("soft_triple", num_classes=4, embedding_dim=32)  # owns proxies
optimizer = torch.optim.AdamW(proxied.param_groups(lr=1e-4, proxy_lr_multiplier=10.0))  # beside the model's groups
value = value + proxied(embeddings, labels)
value.backward()
```""",
    "preference": """\
From the logits of a causal language model to what these losses read, and one call:

```python
import torch
import lossmith


def completion_logps(logits, input_ids, is_completion):
    \"\"\"Summed log-probability and number of tokens of each row's completion; the mask has the shape of the ids.\"\"\"
    logps = logits[:, :-1].float().log_softmax(-1)  # position t predicts token t + 1: shift once, here
    logps = logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # of the token that came
    counted = is_completion[:, 1:]
    return logps.masked_fill(~counted, 0.0).sum(-1), counted.sum(-1)


input_ids = torch.randint(50, (6, 9))  # three chosen rows, then three rejected ones: prompt, completion, padding
is_completion = torch.zeros(6, 9, dtype=torch.bool)
is_completion[:, 4:8] = True
policy_logits, reference_logits = torch.randn(6, 9, 50, requires_grad=True), torch.randn(6, 9, 50)
logps, lengths = completion_logps(policy_logits, input_ids, is_completion)
with torch.no_grad():
    ref_logps, _ = completion_logps(reference_logits, input_ids, is_completion)
value = lossmith.loss("dpo", beta=0.1)(*logps.chunk(2), *ref_logps.chunk(2), *lengths.chunk(2))
value.backward()
```""",
    "discovered": """\
Called with what [the preference losses](preference.md) read; that page has the way from logits to log-probabilities.

```python
import torch
import lossmith

chosen_logps = torch.tensor([-21.0, -35.5], requires_grad=True)  # summed over each completion, in nats
rejected_logps = torch.tensor([-24.0, -31.0], requires_grad=True)
ref_chosen_logps, ref_rejected_logps = torch.tensor([-22.0, -36.0]), torch.tensor([-23.5, -30.0])
value = lossmith.loss("lrml", beta=0.05)(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
value.backward()
```""",
    "unpaired": """\
```python
import torch
import lossmith

logps = torch.tensor([-21.0, -35.5, -18.0], requires_grad=True)  # summed over each completion, in nats
ref_logps = torch.tensor([-22.0, -34.0, -18.5])
desirable = torch.tensor([True, False, True])
mismatched = torch.tensor([-80.0, -95.0, -77.0])  # completion i + 1 after prompt i, under the policy ...
ref_mismatched = torch.tensor([-81.0, -95.5, -78.0])  # ... and under the reference
value = lossmith.loss("kto")(logps, ref_logps, desirable, mismatched - ref_mismatched)
value.backward()
```

`completion_logps` on [the page of the preference losses](preference.md) makes log-probabilities of logits. `kl` of
`kto` holds log-ratios, in nats, of policy to reference on *mismatched* pairs, any number of them: score completion
i + 1 after prompt i with both models. They are averaged, clamped at 0 and held constant. Where a batch has one
completion only, or a second pass costs too much, `running_kl=True` averages over all calls in training mode, and a call
may leave `kl` out. `bco` reads no `kl`: its shift is the running mean of the rewards.""",
}
"""Page -> the Markdown of an example that runs as it stands."""

ARGUMENTS = (
    ("`reduction`", "all", '`"mean"` (default), `"sum"`, or `"none"`: one value per item, 0 where it does not count.'),
    (
        "`weights`",
        "all but `aot`, `aot_unpaired`",
        "One weight per item; the mean then divides by their sum. Class weights: "
        "`weights=class_weights[labels.clamp_min(0)]` (the label -100 may get any weight, it does not count). In a "
        'mixed sum a tensor reaches the token terms only; `{"token": w, "region": v}` says which. Negative weights '
        "need `num_items`.",
    ),
    (
        "`num_items`",
        "all",
        "What the mean divides by, instead of the items (or the sum of the weights) of this call: see "
        "[gradient accumulation](#gradient-accumulation). A number, or a dict by kind of item where a sum mixes kinds "
        'or scopes: `{"token": n, "token[answer]": m, "region": k}`.',
    ),
    (
        "`scopes`",
        "sums that name one",
        'Name -> bool tensor of the shape of `labels`. `"cross_entropy + 0.5*focal[answer]"` is called with '
        '`scopes={"answer": mask}`, and the second term counts only the labels where the mask is True.',
    ),
    (
        "`valid`",
        "preference, unpaired",
        "Bool, one per pair or completion; False takes it out. So does a length of 0 in `chosen_lengths` or "
        "`rejected_lengths`, also where the loss does not read lengths.",
    ),
    (
        "`kl`",
        "`kto`",
        "Log-ratios of mismatched prompts and completions, any number of them: see [unpaired losses](unpaired.md).",
    ),
)
"""Argument of a call, who takes it, meaning as Markdown."""

SETTINGS = (
    ("`num_classes`, `embedding_dim`", "{proxies}", "Shape of the proxies. Keywords only: not part of the string."),
    ("`region='sequence'`", "region losses", "One region per row of `labels` instead of one for the whole batch."),
    (
        "`gather=True`",
        "region and metric losses",
        "The batch is that of all ranks of `torch.distributed`; the mean over ranks of the gradients (what DDP does) "
        "is that of one rank with all rows.",
    ),
    (
        "`memory_size=4096`",
        "{row_local}",
        "Anchors are also compared with that many rows of earlier batches, without gradient; needs `embedding_dim`. "
        "The memory is filled in training mode only; in evaluation mode (`loss.eval()`) anchors are still compared "
        "with what is in it.",
    ),
    (
        "`miner='hard'`",
        "{mined}",
        "Compares an anchor with some rows only, chosen by the values of the batch and held constant. `'hard'`: the "
        "farthest positive and the nearest negative (batch-hard, Hermans et al. 2017, arXiv 1703.07737). "
        "`'multi_similarity'`: negatives nearer than the farthest positive and positives farther than the nearest "
        "negative, each with a slack of `miner_epsilon` (0.1, in the unit of the similarities or distances that the "
        "loss reads; Wang et al. 2019, arXiv 1904.06627). `'semi_hard'`, for `triplet_margin` alone: with each "
        "positive the negatives farther than it and within the margin (Schroff et al. 2015, arXiv 1503.03832). Rows "
        "of a memory and of other ranks are chosen from too. An anchor that nothing is left of does not count.",
    ),
    ("`running_kl=True`", "`kto`", "`kl` is averaged over all calls in training mode, and may be left out."),
    (
        "`running_delta=True`",
        "`bco_pair`",
        "The shift is the mean reward of all calls in training mode; `bco` always has it.",
    ),
)
"""Setting of `lossmith.loss`, who takes it, meaning as Markdown."""

SCHEDULES = (
    (
        "`A -> B @ 0.3`",
        "A alone until 30% of training, then a linear hand-over that ends with training (65%: half each)",
    ),
    ("`A -> B @ 0.3:0.5`", "the hand-over ends at 50%, and B is alone from there"),
    ("`A -> B @ 0.3:0.3`", "switches at once"),
    ("`A -> B @ 0.2:0.4 -> C @ 0.6`", "a chain: every hand-over but the last needs its end"),
)
"""Schedule -> what it does."""

ACCUMULATION = """\
```python
import torch
import lossmith

loss = lossmith.loss("0.6*cross_entropy + 0.4*dice(region='sequence')")
logits, labels = torch.randn(8, 5, 20, requires_grad=True), torch.randint(20, (8, 5))
labels[3:, :2] = -100
num_items = {"token": int((labels != -100).sum()), "region": len(labels)}  # of all micro-batches together
for rows in (slice(0, 3), slice(3, 8)):
    loss(logits[rows], labels[rows], num_items=num_items).backward()  # gradients add up to those of one batch
```"""


def calls_text(records: Sequence[ObjectiveRecord], links: Mapping[str, str]) -> str:
    """The part of the index on call arguments, settings, schedules and gradient accumulation."""
    proxies = _named([record for record in records if record.proxy_shape], links)
    row_local = _named([record for record in records if record.row_local], links)
    mined = _named([record for record in records if record.takes_miner], links)
    lists = {"{proxies}": proxies, "{row_local}": row_local, "{mined}": mined}
    settings = [(name, lists.get(who, prose(who, links)), meaning) for name, who, meaning in SETTINGS]
    arguments = [(name, prose(who, links), meaning) for name, who, meaning in ARGUMENTS]
    exact = [record for record in records if not record.batch_coupled]
    exact_metric = _named([record for record in exact if record.family == "metric"], links)
    exact_unpaired = _named([record for record in exact if record.family == "unpaired"], links)
    coupled = {record.family: _named(_coupled(records, record.family), links) for record in records}
    return "\n\n".join(
        [
            "### Call arguments",
            table(("argument", "of", "meaning"), arguments),
            "### Settings",
            prose(
                "Given to `lossmith.loss` as keywords, like hyper-parameters, or written inside the string "
                "(`dice(region='sequence')`, `supcon(memory_size=4096)`); `str(loss)` prints them."
            ),
            table(("setting", "of", "meaning"), settings),
            "### Schedules",
            prose(
                "`loss.set_progress(step / num_steps)` before each step says which share of training is done. Any loss "
                "may be told; a schedule that was not refuses to be called. A and B are losses or sums. A term that "
                "stands in several phases, with the same hyper-parameters and scope, is one: its proxies, its memory "
                "and its running means go on, and a batch enters them once. Whoever asks a trained loss for its "
                "proxies gets those of the last phase."
            ),
            table(("schedule", "meaning"), SCHEDULES),
            "### Gradient accumulation",
            prose(
                "Exact, which means that k micro-batches give the gradient of one batch, where each call gets the same "
                "`num_items`: the number of items that count in *all* micro-batches together (with `weights`, the sum "
                "of those). Under DDP, which averages over ranks, give the total over ranks divided by their number "
                "(the total itself to metric losses with `gather=True`)."
            ),
            ACCUMULATION,
            "\n".join(
                [
                    f"- **Exact**: all token losses but {coupled['token']}; region losses with `region='sequence'`; "
                    f"the metric losses {exact_metric}; all preference losses but {coupled['preference']}; of the "
                    f"unpaired losses {exact_unpaired}. Neither `running_kl` nor `running_delta` is exact.",
                    "- **Not exact**: [those coupled over the batch](#coupled-over-the-batch). An item's loss depends "
                    "on the other items of its micro-batch, and no divisor mends that. Such a loss warns once, where "
                    "`num_items` is more than the items of the call (on a GPU: more than "
                    " the batch has, as counting what is valid would make it wait).",
                ]
            ),
        ]
    )


def _coupled(records: Sequence[ObjectiveRecord], family: str) -> list[ObjectiveRecord]:
    return [record for record in records if record.family == family and record.batch_coupled]


def _named(records: Sequence[ObjectiveRecord], links: Mapping[str, str]) -> str:
    return ", ".join(prose(f"`{record.name}`", links) for record in records)
