"""TREC: what does a question ask for? 6 coarse or 50 fine classes; not shipped, its licence is unclear."""

from dataclasses import replace

from lossmith.tasks._originals import question_files
from lossmith.tasks._shipped import ClassificationRecord

FINE = {
    "ABBR": "abb exp",
    "DESC": "def desc manner reason",
    "ENTY": (
        "animal body color cremat currency dismed event food instru lang letter other plant product religion sport "
        "substance symbol techmeth termeq veh word"
    ),
    "HUM": "desc gr ind title",
    "LOC": "city country mount other state",
    "NUM": "code count date dist money ord other perc period speed temp volsize weight",
}
"""Coarse class -> its fine classes."""

TREC = ClassificationRecord(
    name="trec",
    shares_texts_with=("trec50",),
    title="what a question asks for, 6 coarse classes",
    citation=(
        "Xin Li and Dan Roth. Learning question classifiers. COLING 2002. https://cogcomp.seas.upenn.edu/Data/QA/QC"
    ),
    licence="not stated",
    source="https://cogcomp.seas.upenn.edu/Data/QA/QC",
    splits="official train and test",
    split_sizes=None,
    label_names=tuple(FINE),
    class_fields=("label_name", "coarse_label_name", "coarse_label", "label"),
    hub="CogComp/trec",
    hub_revision="refs/convert/parquet",
    originals=question_files(train="train_5500.label", test="TREC_10.label"),
    layout="`text` and `label_name` (ABBR ...), or the published `train_5500.label` and `TREC_10.label`",
)

TREC50 = replace(
    TREC,
    name="trec50",
    shares_texts_with=("trec",),
    title="what a question asks for, 50 fine classes, the rarest with 3 questions in all",
    label_names=tuple(f"{coarse}:{fine}" for coarse, kinds in FINE.items() for fine in kinds.split()),
    class_fields=("fine_name", "fine_label_name", "fine_label", "label_name", "label"),
    layout="`text` and `fine_name` (ABBR:abb ...), or the published `train_5500.label` and `TREC_10.label`",
)
