"""MPQA: is a phrase that states an opinion positive or negative? Not shipped, its licence is unclear."""

from lossmith.tasks._originals import class_files
from lossmith.tasks._shipped import ClassificationRecord

MPQA = ClassificationRecord(
    name="mpqa",
    title="polarity of opinions in news, most of them a few words long: negative, positive",
    citation=(
        "Janyce Wiebe, Theresa Wilson and Claire Cardie. Annotating expressions of opinions and emotions in language. "
        "Language Resources and Evaluation, 2005. https://mpqa.cs.pitt.edu"
    ),
    licence="not stated with the phrases",
    source="https://github.com/facebookresearch/SentEval",
    splits="none: papers use 10-fold cross-validation",
    split_sizes=None,
    label_names=("negative", "positive"),
    numbered=True,
    aliases=(("neg", "negative"), ("pos", "positive")),
    hub="rahulsikder223/SentEval-MPQA",
    originals=class_files(negative="mpqa.neg", positive="mpqa.pos"),
    layout="`text` (or `sentence`) and `label` (0 negative, 1 positive), or SentEval's `mpqa.neg` and `mpqa.pos`",
)
