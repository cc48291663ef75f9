"""Whether classifiers learnt anything: against always saying the most frequent class of the test set."""

from collections import Counter
from collections.abc import Sequence

from lossmith.evidence.metrics import format_value
from lossmith.evidence.records import RunRecord


def majority(record: RunRecord) -> tuple[str, float] | None:
    """Name and share of the most frequent class of a run's test set; None where no classes were told apart.

    Example:
        >>> majority(RunRecord(loss="focal", seed=0, status="finished", config={}, metrics={}, labels=[0, 1, 1],
        ...                    label_names=["bad", "good"]))
        ('good', 0.6666666666666666)
    """
    if not record.labels or not record.label_names:
        return None
    label, count = Counter(record.labels).most_common(1)[0]
    return record.label_names[label], count / len(record.labels)


def chance_notices(records: Sequence[RunRecord], losses: Sequence[str]) -> list[str]:
    """One sentence on the losses whose accuracy over their seeds is no better than always saying one class.

    Args:
        records: Runs of a study; those that are not finished, or know no classes, do not count.
        losses: In the order in which they are to be named.
    """
    named, label, share = [], "", 0.0
    for loss in losses:
        runs = [run for run in records if run.loss == loss and run.status == "finished" and "accuracy" in run.metrics]
        found = [(run, known) for run in runs if (known := majority(run)) is not None]
        if not found:
            continue
        accuracy = sum(run.metrics["accuracy"] for run, _ in found) / len(found)
        label, share = found[0][1][0], sum(known[1] for _, known in found) / len(found)
        if accuracy > share:
            continue
        single = sum(len(set(run.predictions)) == 1 for run, _ in found)
        constant = f" ({single} of {len(found)} runs say one class for all texts)" if single else ""
        named.append(f"{loss} {format_value(accuracy, 'accuracy')}{constant}")
    if not named:
        return []
    return [
        f"Always saying '{label}' has accuracy {format_value(share, 'accuracy')} here, and not better are: "
        f"{', '.join(named)}. Such a head has learnt nothing that the test shows: train longer (`epochs`, "
        f"`learning_rate`), try `head=pooled`, or look at the other ways of inference."
    ]
