"""The library: pure functions, family by family, and the registry that lists them."""

from lossmith.objectives._registry import ObjectiveRecord, get_record, list_losses, objective, recorded
from lossmith.objectives._vocabulary import VOCABULARY
from lossmith.objectives.metric.angular import arcface_loss, cosface_loss
from lossmith.objectives.metric.contrastive import n_pairs_loss, nca_loss, nt_xent_loss, supcon_loss
from lossmith.objectives.metric.pairwise import (
    circle_loss,
    contrastive_loss,
    lifted_structure_loss,
    multi_similarity_loss,
    triplet_margin_loss,
)
from lossmith.objectives.metric.proxy import (
    normalized_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    soft_triple_loss,
)
from lossmith.objectives.preference._ratios import implicit_rewards, preference_accuracy
from lossmith.objectives.preference.discovered import cell_loss, lrml_loss, padll_loss, pfl_loss
from lossmith.objectives.preference.discovered_batch import aqfl_loss, aql_loss, dbaql_loss
from lossmith.objectives.preference.label_noise import cdpo_loss, exo_pair_loss, robust_dpo_loss
from lossmith.objectives.preference.margin import (
    dpo_length_normalized_loss,
    dpo_loss,
    dpop_loss,
    hinge_loss,
    ipo_loss,
)
from lossmith.objectives.preference.reference_free import cpo_loss, orpo_loss, simpo_loss
from lossmith.objectives.preference.sides import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    kto_pair_loss,
    nca_pair_loss,
    sppo_hard_loss,
)
from lossmith.objectives.preference.sorting import aot_loss, aot_unpaired_loss
from lossmith.objectives.region.lovasz import lovasz_softmax_loss
from lossmith.objectives.region.overlap import (
    dice_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    jaccard_loss,
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
from lossmith.objectives.unpaired import bco_loss, kto_loss

__all__ = [
    "VOCABULARY",
    "ObjectiveRecord",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "aqfl_loss",
    "aql_loss",
    "arcface_loss",
    "bco_loss",
    "bco_pair_loss",
    "cdpo_loss",
    "cell_loss",
    "circle_loss",
    "confidence_penalty_loss",
    "contrastive_loss",
    "cosface_loss",
    "cpo_loss",
    "cross_entropy_loss",
    "dbaql_loss",
    "deft_loss",
    "dft_loss",
    "dice_loss",
    "dpo_length_normalized_loss",
    "dpo_loss",
    "dpop_loss",
    "entropy_adaptive_loss",
    "exo_pair_loss",
    "focal_loss",
    "focal_tversky_loss",
    "generalized_cross_entropy_loss",
    "generalized_dice_loss",
    "get_record",
    "hinge_loss",
    "implicit_rewards",
    "ipo_loss",
    "jaccard_loss",
    "kto_loss",
    "kto_pair_loss",
    "lifted_structure_loss",
    "list_losses",
    "lovasz_softmax_loss",
    "lrml_loss",
    "mile_loss",
    "multi_similarity_loss",
    "n_pairs_loss",
    "nca_loss",
    "nca_pair_loss",
    "normalized_softmax_loss",
    "nt_xent_loss",
    "objective",
    "orpo_loss",
    "padll_loss",
    "pfl_loss",
    "poly1_loss",
    "preference_accuracy",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "recorded",
    "robust_dpo_loss",
    "self_adjusting_dice_loss",
    "simpo_loss",
    "soft_triple_loss",
    "sppo_hard_loss",
    "supcon_loss",
    "tailr_loss",
    "triplet_margin_loss",
    "tversky_loss",
    "unlikelihood_loss",
    "z_loss_loss",
]
