"""MR: is a sentence of a movie review positive or negative?"""

from lossmith.tasks._originals import class_files
from lossmith.tasks._shipped import ClassificationRecord

MR = ClassificationRecord(
    name="mr",
    shares_texts_with=("sst2",),
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
    label_names=("negative", "positive"),
    numbered=True,
    aliases=(("neg", "negative"), ("pos", "positive")),
    hub="cornell-movie-review-data/rotten_tomatoes",
    originals=class_files(negative="rt-polarity.neg", positive="rt-polarity.pos"),
    layout="`text` and `label` (0 negative, 1 positive), or the published `rt-polarity.neg` and `rt-polarity.pos`",
)
