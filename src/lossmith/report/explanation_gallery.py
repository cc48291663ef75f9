"""The figures of an explanation, in the order of the page, with the words that stand beside them."""

from matplotlib.figure import Figure

from lossmith.report.gallery import ReportFigure
from lossmith.studies.explained_results import ExplainedStudy


def explanation_figures(study: ExplainedStudy) -> tuple[ReportFigure, ...]:
    """All figures."""
    losses = "; ".join(study.losses)
    return (
        *_maps(study, losses),
        *_deciles(study, losses),
        *_measures(study, losses),
        *_weights(study, losses),
        *_attributions(study, losses),
    )


def _maps(study: ExplainedStudy, losses: str) -> list[ReportFigure]:
    return [
        _figure(
            "embedding_tsne",
            f"Embeddings, t-SNE (seed {study.seeds[0]})",
            "Small points are held-out examples, coloured by their true class; large ones are the loss's own proxies, "
            "or class means of its training texts. Only who is near whom means something: sizes, gaps and axes do not, "
            "and another seed of t-SNE gives another picture.",
            f"One panel per loss: {losses}",
            study.maps.plot(),
        ),
        _figure(
            "embedding_pca",
            f"Embeddings, PCA (seed {study.seeds[0]})",
            "The plane in which the embeddings of each model spread most; distances within it are true, what lies "
            "across it is not seen. The share of the variance that it holds stands below.",
            f"One panel per loss: {losses}",
            study.planes.plot(),
        ),
    ]


def _deciles(study: ExplainedStudy, losses: str) -> list[ReportFigure]:
    base, figures = study.baseline, []
    for name, title, part in (
        ("deciles_pretrained", "Accuracy by distance to the centroid, common", study.by_common_distance),
        ("deciles_own", "Accuracy by distance to the centroid, each model's own", study.by_own_distance),
        ("deciles_length", "Accuracy by length", study.by_length),
    ):
        figures.append(
            _figure(
                name,
                title,
                f"Held-out examples sorted by {part.quantity} and cut into {part.bins} parts. Thick: mean over seeds; "
                f"thin: each seed. With {len(next(iter(study.samples.values())).rows)} examples a part holds about a "
                f"tenth of them, so single points move by several points from seed to seed.",
                f"A line per loss: {losses}",
                part.plot(baseline=base),
            )
        )
    return figures


def _measures(study: ExplainedStudy, losses: str) -> list[ReportFigure]:
    base = study.baseline
    return [
        _figure(
            "geometry",
            "Geometry of the embeddings",
            "A point per seed, a bar at the mean. All on the unit sphere. A purer neighbourhood and a smaller "
            "alignment say that classes keep together; they do not say that a head uses it.",
            f"Five measures by loss: {losses}",
            study.geometry.plot(baseline=base),
        ),
        _figure(
            "calibration",
            "Calibration",
            "Points below the diagonal: surer than right. Bars: share of the examples of each confidence. The seeds' "
            "examples are taken together; ECE is the mean over seeds.",
            f"A reliability diagram per loss: {losses}",
            study.calibration.plot(baseline=base),
        ),
    ]


def _weights(study: ExplainedStudy, losses: str) -> list[ReportFigure]:
    base = study.baseline
    figures = [
        _figure(
            "weights_logits",
            "Where the loss pulls: gradient on the logits",
            "Share of the summed gradient norms by decile of difficulty, on the held-out examples with their labels. A "
            "line that rises to the right looks at hard examples; the dotted line pulls at all alike.",
            f"A line per loss: {losses}",
            study.weights.plot(place="logits", baseline=base),
        ),
    ]
    if any(row["place"] == "embeddings" for row in study.weights.rows):
        figures.append(
            _figure(
                "weights_embeddings",
                "Where the loss pulls: gradient on the embeddings",
                "The same for the embedding. Where the head is a linear map of it, what comes through the logits is "
                "included; else only what the metric terms read, and losses without such terms are missing.",
                f"A line per loss: {losses}",
                study.weights.plot(place="embeddings", baseline=base),
            )
        )
    return figures


def _attributions(study: ExplainedStudy, losses: str) -> list[ReportFigure]:
    base = study.baseline
    figures = [
        _figure(
            "disagreements",
            "Examples gained and lost",
            f"Right of the line: examples that the loss gets right and {base} wrong; left: the reverse. A bar per "
            "seed.",
            "; ".join(
                f"{one.model}: {sum(map(len, one.gained.values()))} gained, {sum(map(len, one.lost.values()))} lost"
                for one in study.disagreements.losses
            )
            or "There is no other loss.",
            study.disagreements.plot(),
        ),
        _figure(
            "faithfulness",
            "Faithfulness of integrated gradients",
            "Does the probability of the predicted class fall when the top tokens are taken out (comprehensiveness), "
            "and stay when they alone are kept (sufficiency)? Unexplained: how far the weights are from adding up to "
            "what replacing random tokens does. Surer models move more, so differences between losses are partly those "
            "of their confidence. The table has the other methods, and a random order of tokens, which they must beat.",
            f"Three measures by loss: {losses}",
            study.faithfulness.plot(baseline=base),
        ),
    ]
    if study.stability.pairs:
        figures.append(
            _figure(
                "stability",
                "Stability of attributions across seeds",
                "Rank correlation of the token weights that two trainings of one loss give the same text, where both "
                "predict the same class; a point per pair of seeds. Near 0, highlighted tokens tell of one training, "
                "not of the loss.",
                f"One panel per method, a row per loss: {losses}",
                study.stability.plot(baseline=base),
            )
        )
    return figures


def _figure(name: str, title: str, caption: str, description: str, figure: Figure) -> ReportFigure:
    return ReportFigure(name=name, title=title, caption=caption, description=description, figure=figure)
