"""MR: is a sentence of a movie review positive or negative?"""

from lossmith.tasks._shipped import ShippedTask, load_shipped
from lossmith.tasks.classification import ClassificationTask

MR = ShippedTask(
    name="mr",
    title="polarity of movie-review sentences: negative, positive",
    citation=(
        "Bo Pang and Lillian Lee. Seeing stars: exploiting class relationships for sentiment categorization with "
        "respect to rating scales. ACL 2005. http://www.cs.cornell.edu/people/pabo/movie-review-data"
    ),
    licence="CC BY 4.0",
    source=(
        "https://github.com/nltk/nltk_data, commit 5db857e6f7df11eabb5e5665836db9ec8df07e28, "
        "packages/corpora/sentence_polarity.zip"
    ),
    splits="80/10/10, stratified, seed 20240: MR has no official split, papers use 10-fold cross-validation",
    split_sizes=(8530, 1066, 1066),
)


def load() -> ClassificationTask:
    """MR: 8,530 train, 1,066 validation and 1,066 test sentences, balanced. Shares sentences with SST-2."""
    return load_shipped(MR)
