"""The modules of a sum, of which one may stand for equal terms of several phases."""

from collections.abc import Iterator
from typing import final

from torch import nn

from lossmith.nn.base import LossModule


@final
class Terms(nn.Module):
    """The modules by the place of their term; one of several places is registered, saved and trained at its first."""

    def __init__(self, terms: list[LossModule]):
        super().__init__()
        known = [id(term) for term in terms]
        self.firsts = tuple(known.index(one) for one in known)
        """For each term the place where its module is registered."""
        for place in dict.fromkeys(self.firsts):
            self.add_module(str(place), terms[place])

    def __getitem__(self, place: int) -> LossModule:
        term = self.get_submodule(str(self.firsts[place]))
        assert isinstance(term, LossModule)
        return term

    def __iter__(self) -> Iterator[LossModule]:
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        return len(self.firsts)
