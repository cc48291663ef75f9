"""The same texts under several models: what each token says for the class that each of them predicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.explain._runs import frame_of
from lossmith.explain.attributions import AttributedText, token_bars

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Highlights:
    """Token weights of examples under several models of one seed."""

    texts: Mapping[str, Mapping[int, AttributedText]]
    """Model -> place of an example -> its attributions."""
    method: str
    """Of `attributions.ATTRIBUTION_METHODS`: the one whose weights are meant."""
    seed: int
    """The block of the models."""

    def frame(self) -> "pd.DataFrame":
        """One row per model, example and content token."""
        rows = [
            {
                "model": model,
                "seed": self.seed,
                "example": example,
                "position": position,
                "segment": one.text.segments[position],
                "piece": piece,
                "target": one.target,
                "weight": float(one.weights[self.method][position]),
            }
            for model, examples in self.texts.items()
            for example, one in examples.items()
            for position, piece in enumerate(one.text.pieces)
        ]
        return frame_of(rows, ["model", "seed", "example", "position", "segment", "piece", "target", "weight"])

    def plot(self, example: int | None = None) -> "Figure":
        """The weights of one example: a bar per token, a panel per model that it was looked at under.

        Args:
            example: Its place; None for the first one.
        """
        require("matplotlib", extra="explain", purpose="draw attributions")
        known = sorted({place for examples in self.texts.values() for place in examples})
        if example is None and known:
            example = known[0]
        if example not in known:
            raise DataError(f"`example` must be one of {', '.join(map(str, known)) or 'none'}, got {example}.")
        here = {model: examples[example] for model, examples in self.texts.items() if example in examples}
        pieces = next(iter(here.values())).text.pieces
        return token_bars(pieces, {model: one.weights[self.method] for model, one in here.items()}, "weight (nats)")
