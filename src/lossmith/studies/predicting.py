"""A saved classifier at work: label and probability of new texts, by any of the ways of inference."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, DataError, LossmithWarning, ModelError
from lossmith.evaluation.calibration import softmax
from lossmith.evaluation.inference import INFERENCE_METHODS, SupportSet, inference_scores
from lossmith.evidence.store import STORE_FILE
from lossmith.integrations.classification import Outputs, encode, predict_outputs
from lossmith.integrations.classifiers import COLUMNS, SavedClassifier, load_saved, trained_scores
from lossmith.integrations.models import token_limit
from lossmith.integrations.pooling import TOKENS
from lossmith.studies.run import pick_device

LONGEST = 512
"""Tokens per text of a model that neither says what it was trained on nor what it reads."""
TEXTS_AT_ONCE = 4096
"""Texts whose tokens and embeddings are held at once; within them batches are made of equal lengths."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says of one text."""

    label: str | None
    """Name of the most probable class; None where it abstains."""
    probability: float
    """Of the most probable class, as the model gives it."""
    calibrated_probability: float | None
    """The same after temperature scaling; None where no temperature was fitted."""
    abstained: bool
    """Whether the probability is below the threshold: the calibrated one where there is one."""
    guess: str
    """Name of the most probable class, also where it abstains."""
    probabilities: Float[np.ndarray, " classes"] = field(repr=False, compare=False)
    """Of every class, in the order of `Predictor.label_names`; calibrated where a temperature was fitted."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A saved classifier with a way to ask it, for any number of calls. Made by `open_predictor`."""

    folder: Path
    """Where it was loaded from."""
    classifier: SavedClassifier
    """Model, tokenizer, loss and what the ways of inference need."""
    method: str
    """One of `lossmith.evaluation.inference.INFERENCE_METHODS`."""
    threshold: float | None
    """It abstains below this probability; None never abstains."""
    max_length: int
    """Tokens per text; longer ones are cut."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class id."""
        return self.classifier.label_names

    @property
    def pairs(self) -> bool | None:
        """Whether it was trained on pairs of texts; None where nobody wrote it down."""
        return None if self.classifier.inference is None else self.classifier.inference.pairs

    @property
    def temperature(self) -> float | None:
        """What its scores are divided by for calibrated probabilities; None where none was fitted."""
        inference = self.classifier.inference
        return None if inference is None else inference.temperatures.get(self.method)

    @property
    def columns(self) -> dict[str, str]:
        """Setting -> the column of the file that it was trained on; empty where nobody wrote them down."""
        found = {name: getattr(self.classifier.inference, name, None) for name in COLUMNS}
        return {name: column for name, column in found.items() if column is not None}

    def check_pairs(self, given: bool) -> None:
        """Refuse single texts where the model was trained on pairs, and the reverse.

        Raises:
            ConfigurationError: If they do not fit.
        """
        if self.pairs is True and not given:
            raise ConfigurationError(
                f"`{self.folder}` was trained on pairs of texts, got single ones: give the second ones too (`pairs`, "
                f"`--text-pair-column`)."
            )
        if self.pairs is False and given:
            raise ConfigurationError(
                f"`{self.folder}` was trained on single texts, got pairs: leave out the second ones (`pairs`, "
                f"`--text-pair-column`)."
            )

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> list[Prediction]:
        """One prediction per text, in their order; see `predict`."""
        texts, pairs = _strings("texts", texts), None if pairs is None else _strings("pairs", pairs)
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"`pairs` must hold one text for each of the {len(texts)} `texts`, got {len(pairs)}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be an integer >= 1, got {batch_size!r}.")
        self.check_pairs(pairs is not None)
        found: list[Prediction] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = slice(start, start + TEXTS_AT_ONCE)
            outputs = self._outputs(
                texts[some],
                None if pairs is None else pairs[some],
                batch_size,
                # Bound now: the next round has another start.
                lambda done, _, before=start: on_batch(before + done, len(texts)) if on_batch else None,
            )
            found += self._predictions(self._scores(outputs))
        return found

    def _outputs(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        batch_size: int,
        on_batch: Callable[[int, int], None],
    ) -> Outputs:
        saved = self.classifier
        pooling = "mean" if saved.inference is None else saved.inference.pooling
        encoded = encode(
            saved.tokenizer, texts, [0] * len(texts), self.max_length, pairs=pairs, mark_special=pooling == TOKENS
        )
        return predict_outputs(saved.model, saved.tokenizer, encoded, batch_size, pooling=pooling, on_batch=on_batch)

    def _scores(self, outputs: Outputs) -> np.ndarray:
        saved = self.classifier
        scores = outputs.logits.numpy()
        if self.method != "head":
            assert saved.inference is not None
            assert saved.support is not None
            own = trained_scores(saved.loss, outputs.embeddings)
            embeddings, labels = (tensor.numpy() for tensor in saved.support)
            scores = inference_scores(
                logits=scores,
                embeddings=outputs.embeddings.numpy(),
                proxy_scores=None if own is None else own.numpy(),
                support=SupportSet(embeddings=embeddings, labels=labels),
                mixture=saved.inference.mixture,
            ).of(self.method)
        if not np.isfinite(scores).all():
            raise ModelError(f"`{self.folder}` gives scores that are not finite: its training has diverged.")
        return scores

    def _predictions(self, scores: np.ndarray) -> list[Prediction]:
        temperature = self.temperature
        raw = softmax(scores)
        trusted = raw if temperature is None else softmax(scores, temperature)
        found = []
        # The class of the scores themselves: in a hot softmax two classes may round to one probability.
        for row, best in enumerate(scores.argmax(axis=1)):
            abstained = self.threshold is not None and bool(trusted[row, best] < self.threshold)
            guess = self.label_names[best]
            found.append(
                Prediction(
                    label=None if abstained else guess,
                    probability=float(raw[row, best]),
                    calibrated_probability=None if temperature is None else float(trusted[row, best]),
                    abstained=abstained,
                    guess=guess,
                    probabilities=trusted[row],
                )
            )
        return found


def open_predictor(
    folder: Path | str, *, method: str = "head", threshold: float | None = None, device: str = "auto"
) -> Predictor:
    """Load a saved classifier once, to ask it many times.

    Warns where its probabilities are not calibrated. For the arguments and the errors see `predict`.
    """
    if method not in INFERENCE_METHODS:
        raise ConfigurationError(
            f"`method` must be one of {', '.join(INFERENCE_METHODS)}, got '{method}'."
            f"{did_you_mean(method, INFERENCE_METHODS)}"
        )
    if threshold is not None and not 0 < threshold <= 1:
        raise ConfigurationError(
            f"`threshold` must be in (0, 1], the least probability that is answered, got {threshold}."
        )
    place = pick_device(device)
    folder = Path(folder)
    _check_no_study(folder)
    saved = load_saved(folder)
    _check_method(folder, saved, method)
    saved.model.to(place)
    max_length = saved.inference.max_length if saved.inference else token_limit(saved.model, saved.tokenizer) or LONGEST
    predictor = Predictor(folder=folder, classifier=saved, method=method, threshold=threshold, max_length=max_length)
    if predictor.temperature is None:
        why = (
            f"`{folder}` was not saved by `lossmith train` of this version: only its head can be asked, and its"
            if saved.inference is None
            else f"No temperature was fitted for `{folder}`: its"
        )
        acts = "" if threshold is None else " `threshold` acts on them as they are."
        warnings.warn(f"{why} probabilities are not calibrated.{acts}", LossmithWarning, stacklevel=2)
    return predictor


def _check_no_study(folder: Path) -> None:
    # os.path, since Path.is_file raises on a name that is too long.
    if os.path.isfile(folder / STORE_FILE) and not os.path.isfile(folder / "config.json"):
        raise ModelError(
            f"`{folder}` holds the results of a study, which keeps no model: `lossmith train ... --out FOLDER` saves "
            f"one."
        )


def _strings(name: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str):
        raise DataError(f"`{name}` must be a list of strings, got one string: put it into a list.")
    for row, text in enumerate(given):
        if not isinstance(text, str):
            raise DataError(f"`{name}` must hold strings, got {type(text).__name__} at index {row}.")
    return list(given)


def _check_method(folder: Path, saved: SavedClassifier, method: str) -> None:
    if saved.inference is None:
        if method != "head":
            raise ModelError(
                f"`{folder}` was not saved by `lossmith train` of this version, so it has no proxies and no training "
                f"texts for `method` {method}: only 'head' can be asked."
            )
        return
    if method in ("head", "mixture") and saved.loss is not None and "logits" not in saved.loss.inputs:
        raise ModelError(
            f"The head of `{folder}` was never trained, since '{saved.loss}' reads embeddings only: use `method` "
            f"proxies or neighbours."
        )
    if method != "head" and saved.support is None:
        raise ModelError(
            f"`{folder}` lacks the embeddings of its training texts (reference.safetensors), which `method` {method} "
            f"needs: save the model again, or use 'head'."
        )


def predict(
    folder: Path | str,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    method: str = "head",
    batch_size: int = 64,
    threshold: float | None = None,
    device: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Ask a classifier that `lossmith train` saved for the classes of texts.

    Args:
        folder: Where it was saved. A sequence classifier that transformers saved works too, with its head alone.
        texts: The texts, or the first ones of pairs.
        pairs: The second texts, for a model of pairs.
        method: "head"; "proxies", the loss's own or else the mean embedding of each class; "mixture" of these two;
            "neighbours", the nearest training text.
        batch_size: Texts per forward pass.
        threshold: In (0, 1]. It abstains where the calibrated probability of the best class is below this; where no
            temperature was fitted, where the model's own probability is.
        device: "cpu", "cuda", "mps", or "auto" for the best there is.
        on_batch: Called with (done, all) after each batch.

    Returns:
        One prediction per text, in their order.

    Raises:
        ConfigurationError: If a setting is out of range, or pairs are given to a model of single texts, or the reverse.
        DataError: If the texts are no strings, or there is not one second text for each.
        ModelError: If the folder holds no trained classifier, or none that can be asked by this method.
    """
    predictor = open_predictor(folder, method=method, threshold=threshold, device=device)
    return predictor.predict(texts, pairs, batch_size=batch_size, on_batch=on_batch)
