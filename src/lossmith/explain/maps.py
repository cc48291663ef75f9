"""Embeddings as points in the plane, with what stands for each class drawn in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.evaluation.inference import unit
from lossmith.explain._runs import by_seed, frame_of, numpy

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

PROJECTIONS = ("tsne", "pca")
CLASS_MEANS = "class means"
"""What stands for the classes of a model without proxies."""
MOST_NAMED_CLASSES = 12
"""With more classes there is no legend."""


@dataclass(frozen=True, kw_only=True)
class Proxies:
    """What stands for the classes of one model."""

    vectors: "np.ndarray"
    """[proxies, dim]; several per class are welcome."""
    labels: "np.ndarray"
    """Class id of each, [proxies]."""
    kind: str = "proxies"
    """What they are, as the picture says it."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """One model's embeddings in the plane."""

    model: str
    """The loss."""
    points: "np.ndarray"
    """[examples, 2]."""
    labels: "np.ndarray"
    """Class ids, [examples]."""
    proxies: "np.ndarray"
    """[proxies, 2], in the same plane."""
    proxy_labels: "np.ndarray"
    """Class ids, [proxies]."""
    proxy_kind: str
    """`proxies` or `class means`."""
    explained: float
    """Share of the variance that the plane holds, in [0, 1] (PCA); NaN for t-SNE, which keeps none."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingMaps:
    """The maps of several models on the same examples."""

    method: str
    """`tsne` or `pca`."""
    maps: tuple[EmbeddingMap, ...]
    """One per model."""
    label_names: tuple[str, ...]
    """Name of each class id."""

    def frame(self) -> "pd.DataFrame":
        """One row per point: model, kind (`example`, `proxies`, `class means`), index, label, x, y."""
        rows = [
            {"model": part.model, "kind": kind, "index": place, "label": self.label_names[int(label)], "x": x, "y": y}
            for part in self.maps
            for kind, points, labels in (
                ("example", part.points, part.labels),
                (part.proxy_kind, part.proxies, part.proxy_labels),
            )
            for place, ((x, y), label) in enumerate(zip(points.tolist(), labels.tolist(), strict=True))
        ]
        return frame_of(rows, ["model", "kind", "index", "label", "x", "y"])

    def plot(self) -> "Figure":
        """One panel per model; small points are examples, large ones stand for the classes."""
        require("matplotlib", extra="explain", purpose="draw embeddings")
        return _maps_figure(self)


def embedding_maps(
    embeddings: Mapping[str, "np.ndarray"],
    labels: "np.ndarray",
    *,
    method: str = "tsne",
    proxies: Mapping[str, Proxies] | None = None,
    label_names: Sequence[str] = (),
    perplexity: float = 30.0,
    seed: int = 0,
) -> EmbeddingMaps:
    """Lay the embeddings of models out in the plane, each model on its own, with its proxies among them.

    All vectors are brought to length 1 first, since metric losses compare directions. t-SNE keeps neighbourhoods: sizes
    of clusters, distances between them and the axes mean nothing, and another seed gives another picture. PCA keeps
    distances as far as two directions can.

    Args:
        embeddings: Model -> [examples, dim].
        labels: Class ids, [examples].
        method: "tsne" or "pca".
        proxies: Model -> what stands for its classes; models left out get the mean direction of the shown examples of
            each class, called class means.
        label_names: Name of each class id; their numbers where it is empty.
        perplexity: About how many neighbours t-SNE keeps, > 0; fewer where there are few examples.
        seed: Of t-SNE.

    Raises:
        DataError: For another `method`, shapes that do not match, or fewer than 4 examples.

    Source:
        t-SNE: van der Maaten & Hinton 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html, by scikit-learn with
        PCA as its start.
    """
    np = numpy()
    if method not in PROJECTIONS:
        raise DataError(f"`method` must be one of {', '.join(PROJECTIONS)}, got '{method}'.")
    classes = np.asarray(labels)
    found = []
    for model, seeds in by_seed(embeddings, name="embeddings", ndim=2).items():
        if len(seeds) > 1:
            raise DataError(f"`embeddings` of '{model}' must be one array, got {len(seeds)} seeds: a map shows one.")
        (vectors,) = seeds.values()
        if classes.shape != (len(vectors),):
            raise DataError(f"`labels` must have one entry per example, ({len(vectors)},), got {classes.shape}.")
        if len(vectors) < 4:
            raise DataError(f"`embeddings` must hold at least 4 examples for a map, got {len(vectors)}.")
        given = (proxies or {}).get(model) or class_means(vectors, classes)
        _check_proxies(model, given, vectors.shape[1])
        rows = np.concatenate([unit(vectors), unit(given.vectors)])
        points, explained = _project(rows, method, perplexity, seed)
        found.append(
            EmbeddingMap(
                model=model,
                points=points[: len(vectors)],
                labels=classes,
                proxies=points[len(vectors) :],
                proxy_labels=np.asarray(given.labels),
                proxy_kind=given.kind,
                explained=explained,
            )
        )
    count = 1 + int(max(max(part.labels.max(), part.proxy_labels.max()) for part in found))
    names = tuple(str(name) for name in label_names) or tuple(str(label) for label in range(count))
    if len(names) < count:
        raise DataError(f"`label_names` must name all {count} classes, got {len(names)} names.")
    return EmbeddingMaps(method=method, maps=tuple(found), label_names=names)


def class_means(embeddings: "np.ndarray", labels: "np.ndarray") -> Proxies:
    """The mean direction of each class: unit vectors averaged, [classes that occur, dim]."""
    np = numpy()
    rows, present = unit(embeddings), np.unique(labels)
    vectors = np.stack([rows[labels == label].mean(axis=0) for label in present])
    return Proxies(vectors=vectors, labels=present, kind=CLASS_MEANS)


def _check_proxies(model: str, given: Proxies, dim: int) -> None:
    np = numpy()
    shape = np.shape(given.vectors)
    if len(shape) != 2 or shape[1] != dim or np.shape(given.labels) != shape[:1]:
        raise DataError(
            f"`proxies` of '{model}' must be [proxies, {dim}] with a label each, got {shape} with "
            f"{np.shape(given.labels)} labels."
        )


def _project(rows: "np.ndarray", method: str, perplexity: float, seed: int) -> tuple["np.ndarray", float]:
    if method == "pca":
        decomposition = require("sklearn.decomposition", extra="explain", purpose="draw embeddings")
        pca = decomposition.PCA(n_components=2, svd_solver="full")
        points = pca.fit_transform(rows)
        return points, float(pca.explained_variance_ratio_.sum())
    manifold = require("sklearn.manifold", extra="explain", purpose="draw embeddings")
    # scikit-learn wants fewer neighbours than rows; a third of them is the most that its search looks at.
    kept = max(min(perplexity, (len(rows) - 1) / 3), 1.0)
    tsne = manifold.TSNE(n_components=2, perplexity=kept, init="pca", random_state=seed)
    return tsne.fit_transform(rows.astype("float32")).astype("float64"), float("nan")


def _maps_figure(maps: EmbeddingMaps) -> "Figure":
    from matplotlib.figure import Figure

    from lossmith.explain.canvas import INK, MUTED, PAPER, WIDTH_IN, figure_label, house_style

    np = numpy()
    columns = min(3, max(len(maps.maps), 2))
    lines = -(-len(maps.maps) // columns)
    present = sorted({int(label) for part in maps.maps for label in np.unique(part.labels)})
    looks = _class_looks(present)
    named = len(present) <= MOST_NAMED_CLASSES
    with house_style():
        height = lines * (WIDTH_IN / columns + 0.35) + (0.24 * -(-len(present) // 4) if named else 0)
        figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
        for place, part in enumerate(maps.maps):
            axes = figure.add_subplot(lines, columns, place + 1)
            for label in present:
                colour, marker = looks[label]
                here, there = part.labels == label, part.proxy_labels == label
                axes.scatter(*part.points[here].T, s=9, color=colour, marker=marker, alpha=0.55, linewidths=0)
                axes.scatter(
                    *part.proxies[there].T, s=95, color=colour, marker=marker, edgecolors=INK, linewidths=1.4, zorder=3
                )
            share = "" if np.isnan(part.explained) else f", {part.explained:.0%} of the variance"
            axes.set_title(figure_label(part.model, width=34), loc="left", fontsize=9.5)
            axes.set_xlabel(f"large: {part.proxy_kind}{share}", fontsize=8.5, color=MUTED)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_facecolor(PAPER)
        if named:
            _class_legend(figure, [maps.label_names[label] for label in present], [looks[label] for label in present])
    return figure


def _class_looks(labels: Sequence[int]) -> dict[int, tuple[Any, str]]:
    """Colour and marker of each class; hues repeat with another shape, many classes take their turn on a wheel."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    from lossmith.explain.canvas import HUES, MARKERS

    if len(labels) <= len(HUES) * len(MARKERS):
        return {
            label: (HUES[place % len(HUES)], MARKERS[place // len(HUES)]) for place, label in enumerate(sorted(labels))
        }
    wheel = colormaps["hsv"]
    return {
        label: (to_hex(wheel(place / len(labels))), MARKERS[place % len(MARKERS)])
        for place, label in enumerate(sorted(labels))
    }


def _class_legend(figure: "Figure", names: Sequence[str], looks: Sequence[tuple[Any, str]]) -> None:
    from matplotlib.lines import Line2D

    from lossmith.explain.canvas import figure_label

    lines = [Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6) for colour, marker in looks]
    legend = figure.legend(lines, [str(place) for place in range(len(names))], loc="outside lower left", ncols=4)
    # Set afterwards: matplotlib leaves out legend entries whose text begins with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(figure_label(name, width=26, lines=1))
        text.set_fontsize(8.5)
