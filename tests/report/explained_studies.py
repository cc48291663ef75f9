"""Small explained studies without any model: numbers drawn from a generator, the results put together as usual."""

import numpy as np

from lossmith.evaluation.calibration import softmax
from lossmith.explain import (
    AttributedText,
    ExampleWeights,
    Faithfulness,
    Highlights,
    Proxies,
    TokenAttributions,
    TokenizedText,
    accuracy_by_decile,
    attribution_stability,
    calibration,
    embedding_geometry,
    embedding_maps,
    find_disagreements,
    weight_curves,
)
from lossmith.explain.faithfulness import Faithful
from lossmith.studies import make_config
from lossmith.studies.explained_results import ExplainedStudy
from lossmith.studies.explained_run import Sample
from lossmith.tasks import Example

LOSSES = ("cross_entropy", "focal", "0.4*cross_entropy + 0.6*soft_triple")
METHODS = ("integrated_gradients", "occlusion")
FAITHFUL = ("integrated_gradients", "gradient_x_input", "occlusion", "random")
COUNT, FEW = 60, 12


def fake_explained(*, losses=LOSSES, seeds=(0, 1, 2), names=("negative", "positive"), word="film", lift=0.8, **changes):
    """Later losses separate the classes better by `lift` each; `word` is in every text."""
    labels = np.arange(COUNT) % len(names)
    examples = tuple(Example(f"the {word} number {place}", int(label)) for place, label in enumerate(labels))
    sample = Sample(rows=np.arange(COUNT) * 2, attributed=np.arange(FEW) * 5, examples=examples, seed=0)

    def each(make):
        return {
            loss: {seed: make(place, np.random.default_rng([place, seed])) for seed in seeds}
            for place, loss in enumerate(losses)
        }

    shared = {seed: np.random.default_rng(seed).normal(size=(COUNT, len(names))) for seed in seeds}
    logits = {
        loss: {seed: shared[seed] + (0.5 + lift * place) * np.eye(len(names))[labels] for seed in seeds}
        for place, loss in enumerate(losses)
    }
    embeddings = each(lambda place, draw: draw.normal(size=(COUNT, 8)) + (1 + place) * np.eye(8)[labels])
    right = {loss: {s: own.argmax(1) == labels for s, own in by.items()} for loss, by in logits.items()}
    attributions = {
        loss: {seed: _attributions(examples, sample, logits[loss][seed], [place, seed]) for seed in seeds}
        for place, loss in enumerate(losses)
    }
    weights = each(
        lambda place, draw: ExampleWeights(norms={"logits": draw.random(COUNT)}, difficulty=draw.random(COUNT))
    )
    probabilities = {loss: {seed: softmax(own) for seed, own in by.items()} for loss, by in logits.items()}
    predicted = {loss: {seed: own.argmax(1) for seed, own in by.items()} for loss, by in logits.items()}
    first = {loss: by[seeds[0]] for loss, by in embeddings.items()}
    proxies = {losses[-1]: Proxies(vectors=np.eye(8)[: len(names)], labels=np.arange(len(names)))}
    values = {
        "config": make_config({"task": "mr", "losses": list(LOSSES), "seeds": list(seeds)}),
        "losses": losses,
        "seeds": seeds,
        "label_names": names,
        "samples": dict.fromkeys(seeds, sample),
        "maps": embedding_maps(first, labels, method="pca", proxies=proxies, label_names=names),
        "planes": embedding_maps(first, labels, method="pca", proxies=proxies, label_names=names),
        "by_common_distance": accuracy_by_decile(right, np.arange(COUNT), quantity="common distance"),
        "by_own_distance": accuracy_by_decile(right, np.arange(COUNT)[::-1], quantity="own distance"),
        "by_length": accuracy_by_decile(right, np.arange(COUNT) // 7, quantity="length in tokens"),
        "geometry": embedding_geometry(embeddings, labels),
        "calibration": calibration(probabilities, labels),
        "faithfulness": Faithfulness(
            rows=tuple(_faithful(loss, seed, method) for loss in losses for seed in seeds for method in FAITHFUL)
        ),
        "stability": attribution_stability(attributions),
        "disagreements": find_disagreements(predicted, labels, baseline=losses[0]),
        "weights": weight_curves(weights),
        "attributions": attributions,
        "highlights": Highlights(
            texts={
                loss: dict(zip(sample.attributed.tolist(), by[seeds[0]].texts, strict=True))
                for loss, by in attributions.items()
            },
            method=METHODS[0],
            seed=seeds[0],
        ),
        "notices": (),
        "attribution": "Movie reviews: Pang and Lee 2005.",
    }
    return ExplainedStudy(**values | changes)


def _attributions(examples, sample, logits, seed):
    draw = np.random.default_rng(seed)
    texts = []
    for place in sample.attributed:
        words = examples[place].text.split(" ")
        pieces = tuple(word if not number else f" {word}" for number, word in enumerate(words))
        text = TokenizedText(
            fields={"input_ids": (0,) * len(words)},
            content=tuple(range(len(words))),
            pieces=pieces,
            segments=(0,) * len(words),
        )
        scores = logits[place] - np.log(np.exp(logits[place]).sum())
        texts.append(
            AttributedText(
                text=text,
                target=int(scores.argmax()),
                value=float(scores.max()),
                empty_value=-0.7,
                weights={method: draw.normal(size=len(words)) for method in METHODS},
            )
        )
    return TokenAttributions(texts=tuple(texts), methods=METHODS, score="log_probability", baseline="mask")


def _faithful(loss, seed, method):
    draw = np.random.default_rng([seed, len(loss), FAITHFUL.index(method)])
    weighs = method != "random"
    return Faithful(
        model=loss,
        seed=seed,
        method=method,
        comprehensiveness=float(draw.random()),
        sufficiency=float(draw.random()),
        infidelity=float(draw.random()) if weighs else float("nan"),
        unexplained=float(draw.random()) if weighs else float("nan"),
        completeness_error=0.01,
        relative_completeness_error=0.02,
        texts=FEW,
    )
