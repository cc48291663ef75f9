"""Studies of preferences: a causal language model is trained on given answers and then asked which it prefers.

The answers are pairs, or are rated one by one; `answer_kinds.py` has what differs.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lossmith.errors import ConfigurationError, LossmithError, TrainingDivergedError
from lossmith.evaluation.preferences import margin_histogram
from lossmith.evidence import START
from lossmith.integrations.causal_lm.generation import generate
from lossmith.integrations.causal_lm.loading import adapted_modules, load_causal_lm, save_causal_lm
from lossmith.integrations.models import ResolvedModel
from lossmith.studies.answer_kinds import (
    RATED,
    AnswerKind,
    AnyEncoded,
    AnyItem,
    AnyLogps,
    AnyRow,
    AnyTask,
    check_both_kinds,
    label_counts,
)
from lossmith.studies.answer_sampling import AnswerSampling
from lossmith.studies.preference_config import AnswerFields
from lossmith.studies.preference_training import AnyTrainer, make_trainer
from lossmith.studies.run import TRAINING_SHARE, Progress, Setting, data_notice
from lossmith.tasks import draw_problems
from lossmith.tasks.preference import prompt_text

WHOLE = -1
"""Key of all training rows among the draws of the blocks."""
CONTRARY_NATS = 0.5
"""Mean margin below minus which a training is said to have taught the contrary."""
CHECKED_ROWS = 4
"""Training pairs of the trainers that are made, and not used, before a study begins."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Answers as token rows, with their log-probabilities before training and under the reference."""

    encoded: AnyEncoded
    start: AnyLogps
    reference: AnyLogps


@dataclass(frozen=True, kw_only=True)
class PreferenceSetting(Setting):
    """Given answers, and a causal language model that is trained anew for every block."""

    config: AnswerFields
    kind: AnswerKind
    task: AnyTask
    tokenizer: Any
    reference: ResolvedModel | None
    """A reference of its own; None for the model before training."""
    validation: Scored
    """Rows for the learning curve, perhaps none."""
    test: Scored
    """Rows of the final test."""
    shown: tuple[tuple[AnyItem, list[int]], ...]
    """Test rows, with the token ids of their prompts, that are answered for the report."""
    sampling: AnswerSampling | None
    """Answers that trained models sample, where that is asked for."""
    measured: tuple[dict[str, Any], ...]
    """Lengths and repeats of the data, by split."""
    notices: tuple[str, ...]
    """What a reader of the report must know of all runs."""
    made: dict[int, AnyEncoded] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Seed -> its training rows, made once; all of them under `WHOLE`."""

    def identity(self) -> dict[str, Any]:
        """See `Setting`."""
        return self.config.identity() | {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint,
            "model": self.config.model,
            "model_fingerprint": self.model.fingerprint,
            "reference_fingerprint": self.reference and self.reference.fingerprint,
            "device": self.device.type,
            **(self.sampling.identity if self.sampling else {}),
        }

    def described(self, seed: int) -> dict[str, Any]:
        """See `Setting`."""
        encoded = self.drawn(seed)
        return {
            "config": {
                "kind": self.kind.name,
                "task_fingerprint": self.task.fingerprint,
                "attribution": data_notice(self.task),
                "notices": self._noticed(seed),
                "lengths": list(self.measured),
                "train_texts": len(encoded.rows),
                "test_texts": len(self.test.encoded.rows),
                "train_labels": label_counts(encoded.rows),
                "test_labels": label_counts(self.test.encoded.rows),
            }
        }

    def _noticed(self, seed: int) -> list[str]:
        cut = self.kind.sentence(self.drawn(seed), "train")
        return [*self.notices, *([cut] if cut else [])]

    def drawn(self, seed: int) -> AnyEncoded:
        """The training rows of a block.

        Raises:
            DataError: If no row is left, or none of one kind where rows are rated.
        """
        draw = 0 if self.config.train_examples is None else seed
        if draw not in self.made:
            items = [self.task.train[place] for place in self._draw(draw)]
            self.made[draw] = self.kind.encode(self.config, self.tokenizer, items, "train")
            if self.kind is RATED:
                check_both_kinds(self.made[draw].rows, "training")
        return self.made[draw]

    def _draw(self, draw: int) -> Sequence[int]:
        """Places of the drawn training items in the task."""
        places = draw_problems(range(len(self.task.train)), self.config.train_examples, seed=draw)
        return sorted(places) if self.config.order == "file" else places

    def _pool(self, seed: int) -> tuple[Sequence[AnyRow], list[int]] | None:
        """All training rows, and the places there of those that a block has drawn; None where it has all."""
        if self.config.train_examples is None:
            return None
        if WHOLE not in self.made:
            self.made[WHOLE] = self.kind.encode(self.config, self.tokenizer, self.task.train, "train")
        rows = {item: row for row, item in enumerate(self.made[WHOLE].places)}
        drawn = self._draw(seed)
        return self.made[WHOLE].rows, [rows[drawn[place]] for place in self.drawn(seed).places]

    def prepare(self, text: str, seed: int, workspace: Path, report: Progress) -> AnyTrainer:
        """See `Setting`."""
        measured: list[AnyTrainer] = []
        trainer = self._trainer(
            self._network(self.model),
            text,
            seed,
            workspace,
            report,
            rows=self.drawn(seed).rows,
            pool=self._pool(seed),
            measure=lambda step, total: self._validate(measured[0], step, total),
        )
        measured.append(trainer)
        return trainer

    def _network(self, model: ResolvedModel) -> Any:
        weights = torch.bfloat16 if self.config.weights == "bfloat16" else torch.float32
        return load_causal_lm(model, device=self.device, dtype=weights)[0]

    def _trainer(
        self, network: Any, text: str, seed: int, workspace: Path, report: Progress, **settings: Any
    ) -> AnyTrainer:
        return make_trainer(
            self.config,
            network,
            self.tokenizer,
            settings.pop("rows"),
            text=text,
            seed=seed,
            workspace=workspace,
            on_cpu=self.device.type == "cpu",
            reference_cache=settings.pop("reference_cache", None),
            report=report,
            reference=None if self.reference is None else self._network(self.reference),
            **settings,
        )

    def scores(self, model: Any, encoded: AnyEncoded, **settings: Any) -> AnyLogps:
        """Log-probabilities of given answers under a model."""
        pad, size = self.tokenizer.pad_token_id, self.config.eval_batch_size
        return self.kind.score(model, encoded.rows, pad_token_id=pad, batch_size=size, **settings)

    def _validate(self, trainer: AnyTrainer, step: int, total: int) -> None:
        """A point of the validation curves, at evenly spaced steps; draws no random numbers."""
        points = min(self.config.curve_points, total)
        encoded = self.validation.encoded
        if not encoded.rows or step not in {round(point * total / points) for point in range(1, points + 1)}:
            return
        found = self.scores(trainer.model, encoded)
        if found.finite:
            metrics, _ = self.kind.metrics(found, self.validation.reference)
            for name in self.kind.curves:
                trainer.curves.setdefault(f"validation_{name}", []).append([float(step), metrics[name]])

    def evaluate(self, trainer: AnyTrainer, report: Progress) -> dict[str, Any]:
        """What the trained model prefers on the test rows, beside the model before training.

        Raises:
            TrainingDivergedError: If it gives log-probabilities that are no numbers.
        """
        begun = time.perf_counter()

        def scored(done: int, total: int) -> None:
            report(TRAINING_SHARE + (1 - TRAINING_SHARE) * done / total)

        found = self.scores(trainer.model, self.test.encoded, on_batch=scored)
        if not found.finite:
            recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
            raise TrainingDivergedError(trainer.state.global_step, [*recent, float("nan")])
        metrics, scores = self.kind.metrics(found, self.test.reference)
        before, _ = self.kind.metrics(self.test.start, self.test.reference)
        sampled: dict[str, Any] = {"metrics": {}, "scores": {}, "config": {}, "said": []}
        if self.sampling is not None:
            recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
            run = f"{trainer.loss}, seed {trainer.args.seed}"
            sampled = self.sampling.measure(trainer.model, run=run, step=trainer.state.global_step, losses=recent)
        return {
            "metrics": metrics | {START + name: value for name, value in before.items()} | sampled["metrics"],
            "scores": scores | sampled["scores"],
            "evaluation_seconds": time.perf_counter() - begun,
            "config": {
                **sampled["config"],
                "notices": [*self._noticed(trainer.args.seed), *_contrary(trainer, metrics), *sampled["said"]],
                "rho": margin_histogram(trainer.seen),
                "shown": self._answers(trainer.model),
                "adapted_modules": adapted_modules(trainer.model),
            },
        }

    def _answers(self, model: Any) -> list[dict[str, str]]:
        """What the model now writes after some test prompts, greedily."""
        if not self.shown:
            return []
        written = generate(
            model,
            self.tokenizer,
            [prompt for _, prompt in self.shown],
            max_new_tokens=self.config.shown_tokens,
            batch_size=self.config.eval_batch_size,
            # Training is over, so that rounding by adding the adapters to the weights is harmless.
            merge=True,
        )
        return [
            {"prompt": prompt_text(item.prompt), **self.kind.sides(item), "answer": answers[0].text}
            for (item, _), answers in zip(self.shown, written, strict=True)
        ]

    def save(self, trainer: AnyTrainer, folder: Path) -> None:
        """See `Setting`."""
        save_causal_lm(trainer.model, self.tokenizer, folder, merge=self.config.save == "merged")

    def check(self) -> None:
        """See `Setting`."""
        config = self.config
        if config.precision == "fp16" and self.device.type != "cuda":
            raise ConfigurationError(
                f"`precision` fp16 needs a CUDA device, this is {self.device.type}: use bf16 or float32."
            )
        for seed in config.blocks if self.kind is RATED else config.blocks[:1]:
            self.drawn(seed)
        rows = _few(self.drawn(config.blocks[0]).rows)
        network = self._network(self.model)
        try:
            with tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
                for place, text in enumerate(config.all_losses):
                    folder = Path(workspace)
                    trainer = self._trainer(
                        network, text, 0, folder, lambda share: None, rows=rows, reference_cache=folder / str(place)
                    )
                    trained: Any = trainer.model
                    network = trained if config.lora is None else trained.unload()
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            if isinstance(error, LossmithError):
                raise
            raise ConfigurationError(f"The training settings are refused: {str(error).splitlines()[0]}") from error


def _few(rows: Sequence[AnyRow]) -> Sequence[AnyRow]:
    """Some rows to make trainers with: of rated ones good and bad ones."""
    half = CHECKED_ROWS // 2
    kinds = [[row for row in rows if getattr(row, "label", None) is label][:half] for label in (True, False)]
    return [*kinds[0], *kinds[1]] or rows[:CHECKED_ROWS]


def _contrary(trainer: AnyTrainer, metrics: dict[str, float]) -> list[str]:
    """What to say where a training on pairs taught the contrary."""
    margin = metrics.get("margin", 0.0)
    if margin > -CONTRARY_NATS:
        return []
    return [
        f"{trainer.loss}, seed {trainer.args.seed}: the rejected answers gained on the chosen ones, the mean margin of "
        f"the test is {margin:.2f} nats. Some losses (lrml and the released aql at small betas) push margins down "
        f"before they lift them; swapped columns look like this too."
    ]
