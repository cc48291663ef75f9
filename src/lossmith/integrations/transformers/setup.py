"""What a trainer needs to know of a model, and what cannot work, said before training."""

import warnings
from inspect import signature
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lossmith.errors import ConfigurationError, LossmithWarning, ModelError
from lossmith.integrations.transformers.items import item_kinds
from lossmith.nn import LossModule, WeightedSum
from lossmith.nn.memory import EmbeddingMemory


def predicts_next_token(network: nn.Module) -> bool:
    """Whether a model is a causal language model.

    Raises:
        ModelError: For an encoder-decoder.
    """
    if getattr(getattr(network, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(network).__name__} is an encoder-decoder, which no lossmith trainer can train yet: use a causal "
            f"language model or a classifier, or a plain Trainer with compute_loss(loss, shift=False)."
        )
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    # A subclass under a name of its own predicts what its parent predicts; vision-language models have no other loss.
    if any(parent.__name__ in known for parent in type(network).__mro__):
        return True
    return getattr(network, "loss_type", None) in ("ForCausalLM", "ForConditionalGeneration")


def check_setup(trainer: Any, loss: LossModule, network: nn.Module, *, causal: bool, average: str) -> None:
    """What cannot work is refused before training.

    Raises:
        ConfigurationError: With one sentence that says what to change.
    """
    args, accelerator, kind = trainer.args, trainer.accelerator, type(network).__name__
    parallel = getattr(accelerator, "parallelism_config", None)
    taken = [f"{scope}_mask" for scope in loss_scopes(loss) if f"{scope}_mask" in signature(network.forward).parameters]
    refusals = {
        f"The label scopes of '{loss}' would be read from {', '.join(f'`{name}`' for name in taken)}, which {kind} "
        f"reads itself: name them otherwise.": bool(taken),
        f"`{kind}` is a causal language model, which has no embeddings of texts for '{loss}': use "
        f"lossmith.integrations.sentence_transformers, or a sequence classifier.": causal
        and "embeddings" in loss.inputs,
        f"`label_smoothing_factor` must be 0, got {args.label_smoothing_factor}: write it into the loss, as "
        f"'cross_entropy(label_smoothing=0.1)'.": args.label_smoothing_factor != 0,
        "torch's DataParallel splits batches that losses couple: start one process per GPU with torchrun, or show one "
        "GPU only (CUDA_VISIBLE_DEVICES=0).": args.n_gpu > 1,
        "`torch_compile` cannot follow the loss at the output embedding: leave it out, or use a plain Trainer with "
        "compute_loss.": causal and args.torch_compile,
        "Tensor parallelism splits the output embedding over ranks, which no lossmith trainer can follow: use data "
        "parallel or FSDP2, or lossmith.LinearLogits with `group` in a loop of your own.": parallel is not None
        and parallel.tp_enabled,
        "Context and sequence parallelism split a sequence over ranks, which no lossmith trainer can follow: use data "
        "parallel, FSDP2 or DeepSpeed.": parallel is not None and (parallel.cp_enabled or parallel.sp_enabled),
        f"`average='sequence'` must be 'token' for '{loss}': only token losses without label scopes can be averaged "
        f"by sequence.": average == "sequence" and (set(loss.items) != {"token"} or bool(loss_scopes(loss))),
        f"`gradient_accumulation_steps` must be 1 with '{loss}', got {args.gradient_accumulation_steps}: how many "
        f"pairs or triplets all micro-batches hold is not known before the last one.": args.gradient_accumulation_steps
        > 1
        and bool({"pair", "triplet"} & set(loss.items)),
        f"'{loss}' owns parameters, which FSDP and DeepSpeed would neither train nor save: use DDP.": (
            trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        )
        and any(True for _ in loss.parameters()),
        f"'{loss}' keeps a memory per rank, of which a checkpoint holds one only: give `gather=True`, so that all "
        f"ranks share theirs.": accelerator.num_processes > 1
        and any(
            isinstance(getattr(part, "memory", None), EmbeddingMemory) and not getattr(part, "gather", False)
            for part in loss.modules()
        ),
        f"`optimizers` must also hold the parameters of '{loss}', or they would stay as they began: leave it out, or "
        f"make the loss with lossmith.loss, give it as `loss` and its param_groups(lr) to the optimizer.": (
            not _holds(trainer.optimizer, loss)
        ),
        f"No parameter of {kind} asks for a gradient: unfreeze some, or add an adapter (LoRA).": not any(
            parameter.requires_grad for module in (network, loss) for parameter in module.parameters()
        ),
        f"The classification head of {kind} is frozen and '{loss}' owns no proxies, so nothing learns the classes: "
        f"unfreeze the head, or use a loss with proxies, such as soft_triple.": "embeddings" in loss.inputs
        and _head_is_frozen(network)
        and not any(True for _ in loss.parameters()),
    }
    for sentence, wrong in refusals.items():
        if wrong:
            raise ConfigurationError(sentence)
    if args.gradient_accumulation_steps > 1 and not all(kind.known for kind in item_kinds(loss)):
        warnings.warn(
            f"'{loss}' couples the items of a batch, and {args.gradient_accumulation_steps} micro-batches are not one "
            f"batch: its means over them are averaged.",
            LossmithWarning,
            stacklevel=4,
        )


def _holds(optimizer: Any, loss: LossModule) -> bool:
    """Whether an optimiser that the user gave trains the loss's own parameters; the Trainer's own will."""
    if optimizer is None:
        return True
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return all(id(parameter) in known for parameter in loss.parameters())


def _head_is_frozen(network: nn.Module) -> bool:
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    head = [parameter for name, parameter in network.named_parameters() if not name.startswith(prefix)]
    return bool(head) and not any(parameter.requires_grad for parameter in head)


def sizes_of(network: nn.Module) -> dict[str, int]:
    """What proxies need to know of a model."""
    config: Any = getattr(network, "config", None)
    sizes = {"num_classes": getattr(config, "num_labels", None), "embedding_dim": getattr(config, "hidden_size", None)}
    return {name: size for name, size in sizes.items() if size is not None}


def loss_scopes(loss: LossModule) -> tuple[str, ...]:
    """Label scopes that a loss names."""
    if not isinstance(loss, WeightedSum):
        return ()
    return tuple(dict.fromkeys(term.scope for term in loss.composition.terms if term.scope is not None))


def balance_weight(network: nn.Module) -> float:
    """What a mixture of experts weighs the loss by that balances its load.

    Raises:
        ModelError: If its configuration does not say.
    """
    config: Any = network.config
    for name in ("router_aux_loss_coef", "aux_loss_coef"):
        if hasattr(config.get_text_config(), name):
            return getattr(config.get_text_config(), name)
    raise ModelError(
        f"{type(network).__name__} returns an `aux_loss` whose weight is not known, since its configuration has no "
        f"`router_aux_loss_coef`: set one, or turn the `aux_loss` off (`output_router_logits=False`)."
    )
