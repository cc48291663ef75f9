"""BANKING77: which of 77 intents does a bank customer's question have?"""

from lossmith.tasks._shipped import ShippedTask, load_shipped
from lossmith.tasks.classification import ClassificationTask

BANKING77 = ShippedTask(
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
)


def load() -> ClassificationTask:
    """BANKING77: 8,992 train rows (31 to 168 per class), 1,000 validation and 3,080 test rows (40 per class)."""
    return load_shipped(BANKING77)
