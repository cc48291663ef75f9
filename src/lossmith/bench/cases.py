"""What is measured on: the shape of a linear map and its labels."""

import os
from dataclasses import dataclass

import torch

from lossmith._typing import Tensor
from lossmith.errors import ConfigurationError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""float16 is missing: without a loss scale its gradients underflow, and then nothing can be compared."""

DRAWS = ("uniform", "zipf")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the grid."""

    tokens: int
    hidden: int
    vocab: int
    ignored: float = 0.0
    """Share of the tokens whose label is -100."""
    dtype: str = "float32"
    device: str = "cpu"
    labels: str = "uniform"
    """"uniform": nearly every token is a class of its own, the hardest for region losses; "zipf": as words are."""

    def __post_init__(self):
        for name in ("tokens", "hidden", "vocab"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigurationError(f"`{name}` must be an integer >= 1, got {value}.")
        if not 0 <= self.ignored < 1 or self.valid == 0:
            raise ConfigurationError(
                f"`ignored` is a share of the tokens in [0, 1) that leaves at least one, got {self.ignored:g} of "
                f"{self.tokens:,} tokens."
            )
        for name, known in (("dtype", tuple(DTYPES)), ("labels", DRAWS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigurationError(f"`{name}` must be one of {', '.join(known)}, got '{value}'.")

    @property
    def valid(self) -> int:
        """Tokens that count."""
        return self.tokens - round(self.ignored * self.tokens)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of hidden states and weight, which nobody can save."""
        return (self.tokens + self.vocab) * self.hidden * DTYPES[self.dtype].itemsize

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits, in at least float32."""
        return self.tokens * self.vocab * max(4, DTYPES[self.dtype].itemsize)

    def __str__(self) -> str:
        ignored = f", {self.ignored:.0%} ignored" if self.ignored else ""
        return (
            f"{self.tokens:,} tokens{ignored}, hidden {self.hidden:,}, vocabulary {self.vocab:,}, {self.dtype}, "
            f"{self.device}, {self.labels} labels"
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of a case, the same for everyone who is measured on it."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    upstream: Tensor
    """A gradient per token, for what does not reduce."""


def make_inputs(case: Case) -> Inputs:
    """Seeded tensors, with logits of standard deviation 2."""
    device = torch.device(case.device)
    dtype = DTYPES[case.dtype]
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    # In place: temporaries would leave room in the heap, and the peak of what is measured would hide in it.
    hidden, weight = draw(case.tokens, case.hidden), draw(case.vocab, case.hidden).mul_(2 * case.hidden**-0.5)
    on_cpu = torch.Generator().manual_seed(1)
    if case.labels == "zipf":
        ranks = torch.arange(1, case.vocab + 1, dtype=torch.float64)
        labels = torch.multinomial(1 / ranks, case.tokens, replacement=True, generator=on_cpu)
    else:
        labels = torch.randint(case.vocab, (case.tokens,), generator=on_cpu)
    labels[torch.randperm(case.tokens, generator=on_cpu)[case.valid :]] = -100
    upstream = torch.rand(case.tokens, generator=on_cpu) / case.tokens
    return Inputs(
        hidden=hidden.requires_grad_(),
        weight=weight.requires_grad_(),
        labels=labels.to(device),
        upstream=upstream.to(device, torch.promote_types(dtype, torch.float32)),
    )


def resolve_device(name: str) -> str:
    """The device of this name, or the best there is for "auto".

    Raises:
        ConfigurationError: If it is unknown or not here.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, present in here.items() if present)
    if name not in here:
        raise ConfigurationError(f"`device` must be auto, cpu, cuda or mps, got '{name}'.")
    if not here[name]:
        raise ConfigurationError(f"`device` is '{name}', which this machine or this torch does not have.")
    return name


def check_fits(case: Case) -> None:
    """Raise `ConfigurationError` where the inputs and their gradients alone are more than the machine has."""
    total = _total_bytes(case.device)
    needed = 2 * case.gradient_bytes
    if total is not None and needed > total:
        raise ConfigurationError(
            f"The inputs and gradients of {case} take {needed / 2**30:,.1f} GiB, and {total / 2**30:,.1f} GiB are "
            f"here: give a smaller shape."
        )


def _total_bytes(device: str) -> int | None:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
