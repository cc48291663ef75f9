"""Ask a trained classifier for classes, in every way of inference, and fit what its probabilities are divided by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lossmith.evaluation.inference import InferenceScores, SupportSet, fit_temperatures, inference_scores
from lossmith.integrations.classification import ClassificationTrainer, predict_outputs
from lossmith.integrations.classifiers import trained_scores
from lossmith.studies.draws import calibration_rows, trained_on
from lossmith.studies.run import Progress
from lossmith.tasks import Example

if TYPE_CHECKING:
    from lossmith.studies.classification import ClassificationSetting

REFERENCE_TEXTS = 2000
"""Most training texts that class means and nearest neighbours are made of: the first ones drawn."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a trained classifier says, by every way of inference."""

    test: InferenceScores
    """Scores of the test texts."""
    support: SupportSet
    """Its training texts."""
    temperatures: dict[str, float]
    """Method -> temperature; empty without texts to fit it on."""
    calibration_texts: int
    """How many it was fitted on."""
    learnt_proxies: bool
    """Whether the proxies are the loss's own, and not class means."""


def ask(
    setting: "ClassificationSetting",
    trainer: ClassificationTrainer,
    seed: int,
    report: Progress,
    *,
    test: Sequence[Example] | None = None,
) -> Asked:
    """Ask a trained classifier for the classes of its block's test texts, in every way.

    Args:
        setting: The study.
        trainer: Holds the model and the loss.
        seed: The block.
        report: Progress.
        test: Other texts than the test set; none at all only fits temperatures.
    """
    config, task = setting.config, setting.task_of(seed)
    known = trained_on(setting, seed)[:REFERENCE_TEXTS]
    held_out = calibration_rows(setting, seed)
    asked = list(task.test if test is None else test)
    everything = [*known, *held_out, *asked]
    outputs = predict_outputs(
        trainer.model,
        trainer.processing_class,
        setting.encoded(trainer.processing_class, everything),
        config.eval_batch_size,
        pooling=config.pooling,
        on_batch=lambda done, total: report(done / total),
    )
    logits, embeddings = outputs.logits.numpy(), outputs.embeddings.numpy()
    own = trained_scores(trainer.loss, outputs.embeddings)
    support = SupportSet(embeddings=embeddings[: len(known)], labels=np.array([example.label for example in known]))

    def scores(rows: slice) -> InferenceScores:
        return inference_scores(
            logits=logits[rows],
            embeddings=embeddings[rows],
            proxy_scores=None if own is None else own.numpy()[rows],
            support=support,
            mixture=config.mixture,
        )

    temperatures: dict[str, float] = {}
    finite = bool(np.isfinite(logits).all() and np.isfinite(embeddings).all())
    if held_out and finite:
        labels = np.array([example.label for example in held_out])
        temperatures = fit_temperatures(scores(slice(len(known), len(known) + len(held_out))), labels)
    return Asked(
        test=scores(slice(len(known) + len(held_out), None)),
        support=support,
        temperatures=temperatures,
        calibration_texts=len(held_out),
        learnt_proxies=own is not None,
    )
