"""The library: pure functions, family by family, and the registry that lists them."""

from lossmith.objectives._registry import ObjectiveRecord, get_record, list_losses, objective
from lossmith.objectives._vocabulary import VOCABULARY
from lossmith.objectives.metric.contrastive import n_pairs_loss, nca_loss, nt_xent_loss, supcon_loss
from lossmith.objectives.metric.pairwise import (
    circle_loss,
    contrastive_loss,
    lifted_structure_loss,
    multi_similarity_loss,
    triplet_margin_loss,
)
from lossmith.objectives.metric.proxy import (
    arcface_loss,
    cosface_loss,
    normalized_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    soft_triple_loss,
)
from lossmith.objectives.preference.discovered import cell_loss, lrml_loss, padll_loss, pfl_loss
from lossmith.objectives.preference.discovered_batch import aqfl_loss, aql_loss, dbaql_loss
from lossmith.objectives.preference.margin import dpo_loss
from lossmith.objectives.region import (
    dice_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    jaccard_loss,
    lovasz_softmax_loss,
    tversky_loss,
)
from lossmith.objectives.token.gated import deft_loss, dft_loss, entropy_adaptive_loss, mile_loss, tailr_loss
from lossmith.objectives.token.likelihood import (
    cross_entropy_loss,
    focal_loss,
    generalized_cross_entropy_loss,
    poly1_loss,
    self_adjusting_dice_loss,
    unlikelihood_loss,
)
from lossmith.objectives.token.regularizers import confidence_penalty_loss, z_loss_loss

__all__ = [
    "VOCABULARY",
    "ObjectiveRecord",
    "aqfl_loss",
    "aql_loss",
    "arcface_loss",
    "cell_loss",
    "circle_loss",
    "confidence_penalty_loss",
    "contrastive_loss",
    "cosface_loss",
    "cross_entropy_loss",
    "dbaql_loss",
    "deft_loss",
    "dft_loss",
    "dice_loss",
    "dpo_loss",
    "entropy_adaptive_loss",
    "focal_loss",
    "focal_tversky_loss",
    "generalized_cross_entropy_loss",
    "generalized_dice_loss",
    "get_record",
    "jaccard_loss",
    "lifted_structure_loss",
    "list_losses",
    "lovasz_softmax_loss",
    "lrml_loss",
    "mile_loss",
    "multi_similarity_loss",
    "n_pairs_loss",
    "nca_loss",
    "normalized_softmax_loss",
    "nt_xent_loss",
    "objective",
    "padll_loss",
    "pfl_loss",
    "poly1_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "self_adjusting_dice_loss",
    "soft_triple_loss",
    "supcon_loss",
    "tailr_loss",
    "triplet_margin_loss",
    "tversky_loss",
    "unlikelihood_loss",
    "z_loss_loss",
]
