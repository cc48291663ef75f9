"""SUBJ: does a sentence tell an opinion or a plot?"""

from lossmith.tasks._originals import class_files
from lossmith.tasks._shipped import ClassificationRecord

SUBJ = ClassificationRecord(
    name="subj",
    title="sentences about films: objective (plot summaries), subjective (reviews)",
    citation=(
        "Bo Pang and Lillian Lee. A sentimental education: sentiment analysis using subjectivity summarization based "
        "on minimum cuts. ACL 2004. http://www.cs.cornell.edu/people/pabo/movie-review-data"
    ),
    licence="CC BY 4.0",
    source=(
        "https://github.com/nltk/nltk_data, commit 5db857e6f7df11eabb5e5665836db9ec8df07e28, "
        "packages/corpora/subjectivity.zip"
    ),
    splits="80/10/10, stratified, seed 20240: SUBJ has no official split, papers use 10-fold cross-validation",
    split_sizes=(8000, 1000, 1000),
    label_names=("objective", "subjective"),
    hub="SetFit/subj",
    originals=class_files(objective="subj.objective", subjective="subj.subjective"),
    layout=("`text` and `label_name` (objective, subjective), or the published `subj.objective` and `subj.subjective`"),
)
