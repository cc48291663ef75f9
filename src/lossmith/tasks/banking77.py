"""BANKING77: which of 77 intents does a bank customer's question have?"""

from lossmith.tasks._shipped import ClassificationRecord

BANKING77 = ClassificationRecord(
    name="banking77",
    title="intents of bank customers' questions, 77 fine-grained classes",
    citation=(
        "Iñigo Casanueva, Tadas Temčinas, Daniela Gerz, Matthew Henderson and Ivan Vulić. Efficient intent detection "
        "with dual sentence encoders. NLP for Conversational AI, ACL 2020. https://arxiv.org/abs/2003.04807"
    ),
    licence="CC BY 4.0",
    source=(
        "https://github.com/PolyAI-LDN/task-specific-datasets, commit 57ec275d8078af65b7731c2a98be812d844a6d6b, "
        "banking_data"
    ),
    splits="official train and test; validation is 10% of train, stratified, seed 20240",
    split_sizes=(8992, 1000, 3080),
    class_fields=("label_name", "label_text", "category", "label"),
    hub="PolyAI/banking77",
    hub_revision="refs/convert/parquet",
    layout="`text` and `label_name` (or `category`, as in the published train.csv and test.csv)",
)
