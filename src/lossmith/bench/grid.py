"""The settings of `lossmith bench` as cases and contestants."""

import itertools
import shlex
from dataclasses import dataclass, fields

from lossmith.bench.cases import Case, resolve_device
from lossmith.bench.contestants import COMPETITORS, ENGINES, Contestant, check_loss, check_names
from lossmith.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All combinations of shapes, and who is measured on each; the default takes a minute or two on two cores.

    Raises:
        LossmithError: For a setting that is out of range, unknown or given twice.
    """

    tokens: tuple[int, ...] = (1024,)
    hidden: tuple[int, ...] = (576,)
    vocab: tuple[int, ...] = (8192,)
    ignored: tuple[float, ...] = (0.0, 0.6)
    """Shares of the tokens whose label is -100."""
    dtype: tuple[str, ...] = ("float32",)
    device: str = "auto"
    labels: str = "uniform"
    """How labels are drawn, "uniform" or "zipf"."""
    loss: tuple[str, ...] = ("cross_entropy",)
    """Names or compositions, on each of our engines."""
    engine: tuple[str, ...] = ENGINES
    """Ours."""
    against: tuple[str, ...] = tuple(COMPETITORS)
    """Others, all of which compute cross_entropy; the first that could be measured is the baseline of the ratios."""
    repeats: int = 7
    """Turns that count."""

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple) and len(set(value)) < len(value):
                raise ConfigurationError(f"`{item.name}` names something twice: {', '.join(map(str, value))}.")
            if value == () and item.name != "against":
                raise ConfigurationError(f"`{item.name}` names nothing.")
        if self.repeats < 1:
            raise ConfigurationError(f"`repeats` must be an integer >= 1, got {self.repeats}.")
        check_names(self.engine, ENGINES, "engine")
        check_names(self.against, tuple(COMPETITORS), "against")
        for text in self.loss:
            check_loss(text)
        self.groups()

    def groups(self) -> list[tuple[Case, list[Contestant]]]:
        """Cases, each with those measured on it."""
        device = resolve_device(self.device)
        shapes = itertools.product(self.dtype, self.hidden, self.vocab, self.tokens, self.ignored)
        cases = [
            Case(tokens=t, hidden=h, vocab=v, ignored=i, dtype=d, device=device, labels=self.labels)
            for d, h, v, t, i in shapes
        ]
        ours = [Contestant(loss=text, engine=engine) for text in self.loss for engine in self.engine]
        return [(case, ours + [Contestant(competitor=name) for name in self.against]) for case in cases]

    def command(self) -> str:
        """The command line that measures this."""
        words = ["lossmith", "bench"]
        default = Grid()
        for item in fields(self):
            value = getattr(self, item.name)
            if value != getattr(default, item.name):
                words += [f"--{item.name}", *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)
