"""CR: is a sentence of a customer's product review positive or negative?"""

from lossmith.tasks._originals import class_files
from lossmith.tasks._shipped import ClassificationRecord

CR = ClassificationRecord(
    name="cr",
    title="polarity of sentences in customers' product reviews: negative, positive",
    citation=(
        "Minqing Hu and Bing Liu. Mining and summarizing customer reviews. KDD 2004. "
        "http://www.cs.uic.edu/~liub/FBS/sentiment-analysis.html"
    ),
    licence="CC BY 4.0",
    source=(
        "https://github.com/nltk/nltk_data, commit 5db857e6f7df11eabb5e5665836db9ec8df07e28, "
        "packages/corpora/product_reviews_1.zip"
    ),
    splits="80/10/10, stratified, seed 20240: CR has no official split; not the 3,775-row CR of SentEval",
    split_sizes=(1360, 169, 169),
    label_names=("negative", "positive"),
    numbered=True,
    aliases=(("neg", "negative"), ("pos", "positive")),
    hub="SetFit/CR",
    originals=class_files(negative="custrev.neg", positive="custrev.pos"),
    layout="`text` and `label` (0 negative, 1 positive), or the published `custrev.neg` and `custrev.pos`",
)
