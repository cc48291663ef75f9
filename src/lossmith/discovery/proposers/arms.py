"""`--proposer` in words: which arms there are, what stands behind a colon, and what is refused before a run begins."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lossmith._checks import did_you_mean
from lossmith._extras import require
from lossmith.discovery.proposers.base import Proposer
from lossmith.discovery.proposers.constants import ConstantsProposer
from lossmith.discovery.proposers.enumeration import EnumerationProposer
from lossmith.discovery.proposers.genetic import GeneticProposer
from lossmith.discovery.proposers.human import HumanProposer
from lossmith.discovery.proposers.replay import ReplayProposer, read_candidates
from lossmith.discovery.proposers.sieve import behaviour
from lossmith.discovery.proposers.transplant import TransplantProposer, transplanted
from lossmith.discovery.store.database import Database
from lossmith.errors import ConfigurationError, EvidenceError

ALWAYS = ("random", "best-of")
"""Arms that every run has, named or not."""
ASKING = ("llm", "best-of:llm", "discopop")
"""Arms that ask a language model."""
OF_A_RUN = ("replay", "transplant")
"""Arms that take from another run, whose folder stands behind a colon."""
ARMS = ("gp", *ALWAYS, "enumeration", "constants", *ASKING, *(f"{each}:RUN" for each in OF_A_RUN))
"""Words of `--proposer`; a folder of candidates is one too."""


def make_arms(
    words: Sequence[str], family: str, *, folder: Path | None, ask: Callable[[str], Proposer]
) -> list[Proposer]:
    """The arms that some words name, but for those of `ALWAYS`; two of a kind have different names.

    Args:
        words: Of `--proposer`.
        family: Of the run.
        folder: Of the run, which it cannot replay itself.
        ask: Makes an arm of `ASKING`.

    Raises:
        ConfigurationError: For a word that is none of them, and a run that does not fit.
        EvidenceError: For a folder that holds no run.
        MissingExtraError: If a package that an arm needs is not installed.
    """
    arms: list[Proposer] = []
    count: dict[str, int] = {}
    for word in {place_of(word) or word: word for word in words}.values():
        if word in ALWAYS:
            continue
        kind = kind_of(word)
        count[kind] = count.get(kind, 0) + 1
        name = kind if count[kind] == 1 else f"{kind}-{count[kind]}"
        arms.append(ask(word) if word in ASKING else _made(word, kind, name, family, folder))
    return arms


def kind_of(word: str) -> str:
    """What an arm is called: the word itself, the part before a run, or `human` for a folder.

    Raises:
        ConfigurationError: If there is no such arm.
    """
    head, colon, run = word.partition(":")
    if head in OF_A_RUN and not Path(word).is_dir():
        if not run:
            raise ConfigurationError(
                f"`--proposer {word}` takes from another run: write {head}:RUN with its folder, as in "
                f"{head}:runs/discover-preference."
            )
        return head
    if word in ARMS and not colon:
        return word
    if word in ASKING:
        return word.replace(":", "-")
    if Path(word).is_file():
        raise ConfigurationError(f"`--proposer` takes a folder of candidates, got the file '{word}': give its folder.")
    if not Path(word).is_dir():
        if "/" in word or word.startswith((".", "~")):
            raise ConfigurationError(f"`--proposer` names a folder of candidates that is not there: '{word}'.")
        raise ConfigurationError(
            f"`--proposer` must name some of {', '.join(ARMS)}, or a folder of candidates in .py files, got "
            f"'{word}'.{did_you_mean(word, [each for each in ARMS if ':' not in each])}"
        )
    return "human"


def place_of(word: str) -> str | None:
    """The folder that an arm takes from, with its kind and as the whole path; None for an arm that takes from none.

    Example:
        >>> place_of("gp") is None, place_of("replay:/runs/../runs/one")
        (True, 'replay:/runs/one')
    """
    head, _, run = word.partition(":")
    if head in OF_A_RUN and not Path(word).is_dir():
        return f"{head}:{Path(run).resolve()}" if run else None
    return None if word in ARMS else str(Path(word).resolve())


def _made(word: str, kind: str, name: str, family: str, folder: Path | None) -> Proposer:
    if kind == "gp":
        return GeneticProposer(sieve=behaviour)
    if kind == "enumeration":
        return EnumerationProposer()
    if kind == "constants":
        require("optuna", extra="tune", purpose="tune the constants of programs")
        return ConstantsProposer(sieve=behaviour)
    if kind == "human":
        if folder is not None and folder.resolve() == Path(word).resolve():
            raise ConfigurationError(
                f"`--out` must be another folder than that of the candidates, got '{folder}' for both: what is "
                "exported there would be read as a candidate."
            )
        return HumanProposer(word, name=name)
    run = Path(word.partition(":")[2])
    other = _family_of(word, run, folder)
    if kind == "replay":
        if other != family:
            raise ConfigurationError(
                f"`--proposer {word}` must be a run of family '{family}', as this one is, got one of '{other}': "
                f"transplant:{run} carries its gates over."
            )
        return ReplayProposer(run, name=name)
    if other == family:
        raise ConfigurationError(
            f"`--proposer {word}` must be a run of another family than '{family}': replay:{run} proposes what it "
            "admitted again."
        )
    donors = [program for _, program in read_candidates(run, elites_only=True)]
    if not donors:
        raise ConfigurationError(f"`--proposer {word}` takes what that run found best, and it has no elite yet.")
    if all(transplanted(donor, family) is None for donor in donors):
        raise ConfigurationError(
            f"`--proposer {word}` has nothing to carry over: each of its {len(donors)} elites reads something that has "
            f"no counterpart in family '{family}'."
        )
    return TransplantProposer(donors, name=name, sieve=behaviour)


def _family_of(word: str, run: Path, folder: Path | None) -> str:
    if folder is not None and run.resolve() == folder.resolve():
        raise ConfigurationError(f"`--proposer {word}` must be another run than the one in --out.")
    with Database(run, read_only=True) as database:
        settings = database.settings()
    if not settings:
        raise EvidenceError(f"The run in `{run}` has not begun: there is nothing in its database.")
    return str(settings["family"])
