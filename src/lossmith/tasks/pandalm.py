"""PandaLM's test set: answers of two 7B models, the better one by the majority of three people."""

from lossmith.tasks._shipped import PreferenceRecord

PANDALM = PreferenceRecord(
    name="pandalm",
    title="instructions with answers of two 7B models; three people chose",
    citation=(
        "Yidong Wang et al. PandaLM: an automatic evaluation benchmark for LLM instruction tuning optimization. ICLR "
        "2024. https://arxiv.org/abs/2306.05087"
    ),
    licence="Apache-2.0",
    source=(
        "https://github.com/WeOpenML/PandaLM, commit 3871806e72b4832f815ecafd24d3503c73403f48, data/testset-v1.json"
    ),
    splits="80/10/10 by prompt, seed 20240",
    split_sizes=(606, 76, 76),
    hub="",
    layout="`prompt`, `chosen` and `rejected`",
)
