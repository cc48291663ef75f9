"""SST-2: is a sentence of a movie review positive or negative? Not shipped, its licence is unclear."""

from lossmith.tasks._originals import sentiment_files
from lossmith.tasks._shipped import ClassificationRecord

SST2 = ClassificationRecord(
    name="sst2",
    shares_texts_with=("mr",),
    title="polarity of movie-review sentences (those of MR), neutral ones left out: negative, positive",
    citation=(
        "Richard Socher et al. Recursive deep models for semantic compositionality over a sentiment treebank. EMNLP "
        "2013. https://nlp.stanford.edu/sentiment"
    ),
    licence="not stated, research use",
    source="https://nlp.stanford.edu/sentiment",
    splits="official",
    split_sizes=None,
    label_names=("negative", "positive"),
    numbered=True,
    aliases=(("neg", "negative"), ("pos", "positive")),
    # The data set of GLUE has no test labels.
    hub="SetFit/sst2",
    hidden_test=True,
    originals=sentiment_files(train="sentiment-train", validation="sentiment-dev", test="sentiment-test"),
    layout=(
        "`text` (or `sentence`) and `label` (0 negative, 1 positive), or SentEval's `sentiment-train`, "
        "`sentiment-dev` and `sentiment-test`"
    ),
)
