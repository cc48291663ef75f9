"""How looks at trained models are kept: numbers as NPZ, the rest as JSON, nothing as a pickle."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lossmith.errors import EvidenceError
from lossmith.evidence import RunRecord, run_slug, write_atomically
from lossmith.evidence.folders import write_bytes_atomically
from lossmith.explain import AttributedText, ExampleWeights, Faithfulness, Proxies, TokenAttributions, TokenizedText
from lossmith.explain.faithfulness import Faithful
from lossmith.studies.explained_run import ExplainedRun

FORMAT = 2
"""Of the kept files; another one is made again."""


def kept_arrays(
    folder: Path, key: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` gives, made once for a key (plain values and arrays) and kept in `folder`."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for name, value in sorted(key.items()):
        digest.update(name.encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    path = folder / f"{digest.hexdigest()[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise EvidenceError(f"`{path}` cannot be read: delete it and explain again.") from error
    made = dict(make())
    write_bytes_atomically(path, _npz(made))
    return made


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


class RunFiles:
    """Where the looks at one loss are kept: `<folder>/runs/<loss>/seed-<seed>.json` and `.npz`; never a pickle."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.settings = folder, {**settings, "format": FORMAT}

    def read(self, record: RunRecord, disputed: Sequence[int]) -> ExplainedRun | None:
        """The kept look at this run, or None where there is none of these settings and this very run."""
        base = self._path(record)
        try:
            kept = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
            if kept["key"] != self._key(record) or not set(disputed) <= set(kept["disputed"]):
                return None
            with np.load(base.with_suffix(".npz"), allow_pickle=False) as arrays:
                return _run_from(kept, dict(arrays))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvidenceError(
                f"`{base}` cannot be read ({type(error).__name__}): delete `{self.folder}` and explain again."
            ) from error

    def write(self, record: RunRecord, run: ExplainedRun) -> None:
        """Keep a look; the JSON comes last, and without it the look does not count."""
        base = self._path(record)
        base.with_suffix(".json").unlink(missing_ok=True)
        write_bytes_atomically(base.with_suffix(".npz"), _npz(_arrays(run)))
        text = json.dumps({"key": self._key(record), **_plain(run)}, ensure_ascii=False, allow_nan=False)
        write_atomically(base.with_suffix(".json"), text + "\n")

    def _path(self, record: RunRecord) -> Path:
        # A suffix of its own: `with_suffix` would take what stands behind a dot of the loss's name for one.
        return self.folder / "runs" / run_slug(record.loss) / f"seed-{record.seed}.json"

    def _key(self, record: RunRecord) -> dict[str, Any]:
        return {**self.settings, "loss": record.loss, "seed": record.seed, "finished_at": record.finished_at}


def _arrays(run: ExplainedRun) -> dict[str, np.ndarray]:
    return {
        "logits": run.logits,
        "embeddings": run.embeddings,
        "proxies": run.proxies.vectors,
        "proxy_labels": np.asarray(run.proxies.labels),
        "difficulty": run.weights.difficulty,
        **{f"norm_{place}": norms for place, norms in run.weights.norms.items()},
        **{
            f"{kind}_{method}_{place}": one.weights[method]
            for kind, attributions in (("weights", run.attributions), ("highlights", run.highlights))
            for place, one in enumerate(attributions.texts)
            for method in attributions.methods
        },
    }


def _plain(run: ExplainedRun) -> dict[str, Any]:
    return {
        "loss": run.loss,
        "seed": run.seed,
        "changed": run.changed,
        "proxy_kind": run.proxies.kind,
        "attributions": _plain_attributions(run.attributions),
        "disputed": run.disputed,
        "highlights": _plain_attributions(run.highlights),
        "faithfulness": [_without_nan(asdict(row)) for row in run.faithfulness.rows],
    }


def _plain_attributions(attributions: TokenAttributions) -> dict[str, Any]:
    """All of them but the weights."""
    texts = [
        {
            "fields": dict(one.text.fields),
            "content": one.text.content,
            "pieces": one.text.pieces,
            "segments": one.text.segments,
            "target": one.target,
            "value": one.value,
            "empty_value": one.empty_value,
        }
        for one in attributions.texts
    ]
    return {
        "score": attributions.score,
        "baseline": attributions.baseline,
        "methods": attributions.methods,
        "texts": texts,
    }


def _attributions_from(kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray], kind: str) -> TokenAttributions:
    texts = tuple(
        AttributedText(
            text=TokenizedText(
                fields={name: tuple(values) for name, values in one["fields"].items()},
                content=tuple(one["content"]),
                pieces=tuple(one["pieces"]),
                segments=tuple(one["segments"]),
            ),
            target=one["target"],
            value=one["value"],
            empty_value=one["empty_value"],
            weights={method: arrays[f"{kind}_{method}_{place}"] for method in kept["methods"]},
        )
        for place, one in enumerate(kept["texts"])
    )
    return TokenAttributions(
        texts=texts, methods=tuple(kept["methods"]), score=kept["score"], baseline=kept["baseline"]
    )


def _run_from(kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ExplainedRun:
    norms = {name.removeprefix("norm_"): array for name, array in arrays.items() if name.startswith("norm_")}
    return ExplainedRun(
        loss=kept["loss"],
        seed=kept["seed"],
        changed=kept["changed"],
        logits=arrays["logits"],
        embeddings=arrays["embeddings"],
        proxies=Proxies(vectors=arrays["proxies"], labels=arrays["proxy_labels"], kind=kept["proxy_kind"]),
        weights=ExampleWeights(norms=norms, difficulty=arrays["difficulty"]),
        attributions=_attributions_from(kept["attributions"], arrays, "weights"),
        disputed=tuple(kept["disputed"]),
        highlights=_attributions_from(kept["highlights"], arrays, "highlights"),
        faithfulness=Faithfulness(rows=tuple(Faithful(**_with_nan(row)) for row in kept["faithfulness"])),
    )


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN; None stands for it."""
    return {name: None if value != value else value for name, value in row.items()}


def _with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in row.items()}
