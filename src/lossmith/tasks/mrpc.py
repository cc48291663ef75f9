"""MRPC: do two sentences say the same? Not shipped, its licence allows non-commercial use only."""

from lossmith.tasks._originals import paraphrase_files
from lossmith.tasks._shipped import ClassificationRecord

MRPC = ClassificationRecord(
    name="mrpc",
    title="pairs of sentences from news: not_paraphrase, paraphrase",
    citation=(
        "William B. Dolan and Chris Brockett. Automatically constructing a corpus of sentential paraphrases. Third "
        "International Workshop on Paraphrasing, 2005. https://www.microsoft.com/en-us/download/details.aspx?id=52398"
    ),
    licence="MSR-SSLA of Microsoft Research, non-commercial use only",
    source="https://www.microsoft.com/en-us/download/details.aspx?id=52398",
    splits="official train and test",
    split_sizes=None,
    label_names=("not_paraphrase", "paraphrase"),
    numbered=True,
    aliases=(
        ("not_equivalent", "not_paraphrase"),
        ("not equivalent", "not_paraphrase"),
        ("equivalent", "paraphrase"),
    ),
    pairs=True,
    hub="nyu-mll/glue",
    hub_config="mrpc",
    originals=paraphrase_files(train="msr_paraphrase_train.txt", test="msr_paraphrase_test.txt"),
    layout=(
        "`text_a`, `text_b` (or `sentence1`, `sentence2`) and `label` (1 paraphrase), or the published "
        "`msr_paraphrase_train.txt` and `msr_paraphrase_test.txt`"
    ),
)
