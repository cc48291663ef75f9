"""How embeddings lie: do classes keep together, do they fill the sphere, do all vectors point one way."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.evaluation.inference import unit
from lossmith.explain._runs import Runs, beside, by_seed, check_count, frame_of, measures_figure, numpy

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

ROWS_AT_ONCE = 1024
"""Rows of the similarity table that are held at a time."""
MEASURES = {
    "purity": "neighbourhood purity\n(higher: own class near)",
    "silhouette": "silhouette\n(higher: classes apart)",
    "alignment": "alignment\n(lower: class together)",
    "uniformity": "uniformity\n(lower: sphere filled)",
    "anisotropy": "anisotropy\n(lower: all directions)",
}
"""Measure -> title of its panel."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingGeometry:
    """The measures of one run; NaN where the examples do not define one."""

    model: str
    """The loss."""
    seed: int
    """The block."""
    purity: float
    """Mean share of an example's nearest neighbours (by cosine, itself left out) that have its label, in [0, 1]."""
    silhouette: float
    """Mean silhouette of the classes by cosine distance, in [-1, 1]."""
    alignment: float
    """Mean squared distance of two examples of one class on the unit sphere, in [0, 4]."""
    uniformity: float
    """Log of the mean of exp(-2 * squared distance) over pairs of examples on the unit sphere, in [-8, 0]."""
    anisotropy: float
    """Mean cosine of two examples, in [-1, 1]."""
    examples: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The geometry of several models on the same examples."""

    runs: tuple[EmbeddingGeometry, ...]
    """Model by model, seed by seed."""
    neighbours: int
    """Neighbours that `purity` counts."""

    def frame(self) -> "pd.DataFrame":
        """One row per model and seed."""
        return frame_of([asdict(run) for run in self.runs], ["model", "seed", *MEASURES, "examples"])

    def plot(self, *, baseline: str | None = None) -> "Figure":
        """One panel per measure, a point per seed; `baseline` is drawn in grey."""
        return measures_figure([asdict(run) for run in self.runs], MEASURES, baseline=baseline)


def embedding_geometry(embeddings: Runs, labels: Any, *, neighbours: int = 10) -> Geometry:
    r"""Measure how the embeddings of models lie, all on the unit sphere.

    With unit vectors $u_i$ and pairs $i \ne j$, all of them:

    $$\text{alignment} = \mathbb{E}_{y_i = y_j} \lVert u_i - u_j \rVert^2, \quad
    \text{uniformity} = \log \mathbb{E}\, e^{-2 \lVert u_i - u_j \rVert^2}, \quad
    \text{anisotropy} = \mathbb{E}\, u_i^\top u_j.$$

    Args:
        embeddings: Model -> [examples, dim], or model -> seed -> [examples, dim].
        labels: Class ids [examples], or seed -> class ids.
        neighbours: Nearest ones that purity counts, >= 1 and fewer than the examples.

    Returns:
        Ranges are said at `EmbeddingGeometry`. Where no class has two examples, `alignment` is NaN; `silhouette` also
        where there is one class, or a class for every example.

    Raises:
        DataError: For shapes that do not match, numbers that are not finite, or fewer examples than `neighbours` + 1.

    Source:
        Alignment and uniformity: Wang & Isola 2020, https://arxiv.org/abs/2005.10242, with alpha = 2 and t = 2.
        Deviation: their positive pairs are two views of one example, here two examples of one class. Anisotropy:
        Ethayarajh 2019, https://arxiv.org/abs/1909.00512. Deviation: of pooled texts, not of words. Silhouette:
        Rousseeuw 1987, by scikit-learn.

    Example:
        >>> import numpy as np
        >>> corners = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
        >>> embedding_geometry({"focal": corners}, np.array([0, 0, 1, 1]), neighbours=1).runs[0].purity
        1.0
    """
    check_count("neighbours", neighbours)
    runs = by_seed(embeddings, name="embeddings", ndim=2)
    classes = beside(runs, labels, name="labels")
    found = tuple(
        _measures(model, seed, vectors, classes[model][seed], neighbours)
        for model, seeds in runs.items()
        for seed, vectors in seeds.items()
    )
    return Geometry(runs=found, neighbours=neighbours)


def _measures(model: str, seed: int, vectors: "np.ndarray", labels: "np.ndarray", neighbours: int) -> EmbeddingGeometry:
    if len(vectors) <= neighbours:
        raise DataError(
            f"`neighbours` must be below the number of examples, {len(vectors)} of '{model}', seed {seed}, got "
            f"{neighbours}."
        )
    rows = unit(vectors)
    purity, alignment, uniformity, anisotropy = _pairs(rows, labels, neighbours)
    return EmbeddingGeometry(
        model=model,
        seed=seed,
        purity=purity,
        silhouette=_silhouette(rows, labels),
        alignment=alignment,
        uniformity=uniformity,
        anisotropy=anisotropy,
        examples=len(rows),
    )


def _pairs(rows: "np.ndarray", labels: "np.ndarray", neighbours: int) -> tuple[float, float, float, float]:
    """Purity, alignment, uniformity and anisotropy, the table of cosines a few rows at a time."""
    np = numpy()
    near, distance, positives, kernel, cosine = 0.0, 0.0, 0, 0.0, 0.0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        cosines = rows[part] @ rows.T
        own = np.arange(len(cosines)), np.arange(start, start + len(cosines))
        squared = np.maximum(2 - 2 * cosines, 0.0)
        same = labels[part, None] == labels[None]
        same[own] = False
        distance, positives = distance + float(squared[same].sum()), positives + int(same.sum())
        gauss = np.exp(-2 * squared)
        gauss[own] = 0.0
        kernel += float(gauss.sum())
        cosines[own] = 0.0
        cosine += float(cosines.sum())
        cosines[own] = -np.inf
        # Stable: of equally near ones the first count, so that the same data give the same purity anywhere.
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
        near += float(np.take_along_axis(same, nearest, axis=1).mean(axis=1).sum())
    pairs = len(rows) * (len(rows) - 1)
    alignment = distance / positives if positives else float("nan")
    return near / len(rows), alignment, float(np.log(kernel / pairs)), cosine / pairs


def _silhouette(rows: "np.ndarray", labels: "np.ndarray") -> float:
    np = numpy()
    if not 2 <= len(np.unique(labels)) < len(rows):
        return float("nan")
    metrics = require("sklearn.metrics", extra="explain", purpose="measure silhouettes")
    return float(metrics.silhouette_score(rows, labels, metric="cosine"))
