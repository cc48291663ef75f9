"""SetFit with a metric loss: the body learns from single texts in class-balanced batches, not from pairs.

    python examples/setfit_loss.py supcon

Embedded all-MiniLM-L6-v2 on 8 customer queries of each of 20 intents (of Banking77); about a minute on two CPU cores.
"""

import sys
import tempfile

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from setfit import SetFitModel, TrainingArguments
from sklearn.linear_model import LogisticRegression

from lossmith.integrations.models import quiet_transformers, resolve_model
from lossmith.integrations.setfit import Trainer, loss
from lossmith.tasks import draw_shots, load_task


def accuracy(predicted: list[int], expected: list[int]) -> float:
    """Share of the predictions that are right."""
    return sum(int(a) == int(b) for a, b in zip(predicted, expected, strict=True)) / len(expected)


def main() -> None:
    """Train, test, save, load and test again."""
    text = sys.argv[1] if len(sys.argv) > 1 else "supcon"
    task = load_task("banking77")
    shots = [task.train[row] for row in draw_shots(task, seed=0, shots_per_class=8)]
    intents = range(20)
    train, test = (
        Dataset.from_dict({"text": [row.text for row in rows], "label": [row.label for row in rows]})
        for rows in ([row for row in part if row.label in intents] for part in (shots, task.test[::4]))
    )
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        encoder = Transformer(str(resolve_model("embedded:minilm-l6").location))
        body = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), "mean"), Normalize()])
        model = SetFitModel(model_body=body, model_head=LogisticRegression(C=10.0, max_iter=300))
        arguments = TrainingArguments(
            folder, loss=loss(text), batch_size=(32, 32), num_epochs=(3, 1), body_learning_rate=(2e-4, 1e-5),
            save_strategy="no", report_to="none", logging_steps=5, show_progress_bar=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=train, metric=accuracy)
        trainer.train_classifier(train["text"], train["label"])
        print(f"{len(train)} texts, head alone: {trainer.evaluate(test)}")
        trainer.train()
        print(f"body trained with '{text}', then head: {trainer.evaluate(test)}")
        model.save_pretrained(folder)
        again = SetFitModel.from_pretrained(folder)
        print(f"saved and loaded: accuracy {accuracy(again.predict(list(test['text'])), test['label'])}")


if __name__ == "__main__":
    main()
