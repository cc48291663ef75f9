"""What the generated catalogue says that no docstring does: pages, the guide, what is drawn beside a curve."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of the catalogue."""

    title: str
    """Heading."""
    family: str
    """Family of its losses."""
    intro: str
    """What its losses have in common and how to read its pictures."""
    guide: tuple[tuple[str, str], ...]
    """Situation -> which losses to begin with; all of it is in their docstrings."""


DISCOVERY = "https://arxiv.org/abs/2406.08414"
"""Source of the losses that have the page `discovered` to themselves."""

PAGES = {
    "token": Page(
        title="Token losses",
        family="token",
        intro="One loss per token, or per row of a classifier; rows whose label is -100 do not count. The pictures "
        "follow one row as the probability $p$ of its label rises. The gradient is the one that training sees: what a "
        "loss holds constant (a weight, a gate) stays constant in it, so that it need not be the slope of the drawn "
        "loss. The *implied target* is $p$ minus the gradient: the probability that cross-entropy would need as its "
        "target to pull as hard. Where it meets the dotted line nothing moves.",
        guide=(
            (
                "Anything, first",
                "`cross_entropy`: the baseline; what does not beat it over paired seeds is not worth its setting",
            ),
            (
                "Some labels or tokens are wrong",
                "`generalized_cross_entropy` (q of 0.5 to 0.8); `tailr` to leave out only tokens that the model finds "
                "absurd (p near 0); not `focal`, which learns wrong labels hardest",
            ),
            (
                "A strong model should keep what it knows",
                "`dft`, `generalized_cross_entropy` (q of 1 and more), "
                "`deft` (nothing to tune); none of them for what is new to the model",
            ),
            ("Fine-tuning makes it forget", "`entropy_adaptive`, which spares tokens where the model is sure"),
            (
                "Easy tokens drown the hard or rare ones",
                "`focal` with clean labels, `mile` in long training, `poly1` as one number to tune",
            ),
            (
                "It becomes certain too early, or must stay diverse",
                "`confidence_penalty`, or `cross_entropy` with `label_smoothing`",
            ),
            ("Logits drift (half precision, long training)", "`z_loss` as a term: `cross_entropy + z_loss`"),
            (
                "Tokens that must not be said",
                "`unlikelihood` in a call of its own, with those tokens as labels: all terms of a sum share theirs. "
                "Where a position is either right or wrong also `cross_entropy[right] + unlikelihood[wrong]`, with a "
                "scope for each",
            ),
            ("To repeat studies with segmentation losses", "`self_adjusting_dice`, after a look at its picture"),
        ),
    ),
    "region": Page(
        title="Region losses",
        family="region",
        intro="One loss per region: the batch, or each sequence with `region='sequence'`. Ignored rows are removed and "
        "only classes among the labels count. A region of many tokens has no single curve; the pictures show the "
        "simplest one, a region of one token, in which the overlap losses differ only by how they bend.",
        guide=(
            (
                "The score is an F1 over classes, some of them rare",
                "`dice`; `generalized_dice` where the classes are very uneven and a loss that jumps is acceptable",
            ),
            (
                "The score is an intersection over union",
                "`lovasz_softmax` added to `cross_entropy` "
                "(`0.6*cross_entropy + 0.4*lovasz_softmax`), `jaccard` where speed matters more",
            ),
            (
                "A miss costs more than a false alarm, or less",
                "`tversky`; `focal_tversky` late in training, when most classes are nearly right",
            ),
            ("Free text, where most classes have one token", "none of them alone: stay with a token loss"),
        ),
    ),
    "metric": Page(
        title="Metric losses",
        family="metric",
        intro="Losses of embeddings, for few-shot classifiers, retrieval and clustering. Some compare the rows of a "
        "batch with each other and need several rows per class (`lossmith.nn.PKBatchSampler`), others compare "
        "each row with learnable proxies, which the loss owns and an optimiser must be given. In the pictures an "
        "anchor turns from the other class (-1) to its own (1), on a half circle between two opposite classes.",
        guide=(
            (
                "Proxies, first",
                "`normalized_softmax`: no margin, one temperature, any batch; `proxy_nca` where lengths mean something",
            ),
            ("A class has several modes", "`soft_triple`; without proxies `nca`, to which one near positive is enough"),
            ("Many classes, few examples of each per batch", "`proxy_anchor`"),
            ("Many classes, clean labels, enough steps", "`arcface`, `cosface`"),
            (
                "A few classes with many rows of each per batch",
                "`supcon`; `multi_similarity` if hard pairs should count most, `circle` if the worse of both sides "
                "should",
            ),
            ("Pairs: two views, a question and its answer", "`nt_xent`, `n_pairs`"),
            ("A threshold on the distance decides later", "`contrastive`"),
            ("All pairs of a small batch should count at once", "`lifted_structure`"),
            ("Only the order of neighbours matters", "`triplet_margin`"),
        ),
    ),
    "preference": Page(
        title="Preference losses",
        family="preference",
        intro="One loss per pair of a chosen and a rejected completion (`kto_pair`: per completion). The pictures "
        "follow one pair along its log-ratio margin $\\rho$: how much more the chosen than the rejected completion "
        "gained over the reference, half of it by the rise of the one, half by the fall of the other. At 0 policy and "
        "reference agree. Losses without a reference (`cpo`, `orpo`, `simpo`) follow the difference of the two "
        "log-probabilities. The range is set by beta, so that shapes can be compared.",
        guide=(
            ("Clean pairs and a reference model", "`dpo`: the baseline"),
            (
                "Some preferences are flipped",
                "`cdpo`, which stops at a finite margin; `robust_dpo` where the share is known",
            ),
            ("Pairs that are right should stop moving the policy", "`hinge`"),
            (
                "Nearly certain preferences, margins that grow without end",
                "`ipo`, which pulls back what is beyond its margin",
            ),
            ("The likelihood of chosen answers falls", "`dpop`, `nca_pair`"),
            ("Answers grow longer and longer", "`dpo_length_normalized`; `simpo` without a reference"),
            ("No memory or time for a reference", "`simpo`, `cpo`; `orpo` from a base model, in one stage"),
            ("Chosen answers are better than what the policy writes", "`apo_zero`; where both are worse `apo_down`"),
            ("Each side should be good or bad in itself", "`bco_pair`; with single ratings too `bco`"),
            ("Pairs sampled anew each round (self-play)", "`sppo_hard`"),
            ("Large batches, the distribution matters", "`aot`; where prompts differ between the sides `aot_unpaired`"),
            ("A small policy should settle on some good answers", "`exo_pair`"),
            ("To repeat the KTO column of the DiscoPOP study", "`kto_pair` with `detach_kl=False`"),
        ),
    ),
    "discovered": Page(
        title="Discovered preference losses",
        family="preference",
        intro="The seven preference losses that a language model wrote (Lu et al. 2024); in code they are of family "
        '`"preference"` like the others. All take `form`: '
        '`"discovered"` is the function as it was written, with a beta of 0.05 in it; `"released"`, the default, is '
        "the authors' corrected code, in which every use of the margin scales with beta. Several are not monotone: "
        "they push some pairs *down*. Look at the gradient before you train. The pictures are those of the other "
        "preference losses; the ones coupled over the batch see three more pairs, at margins -4.3, 1.1 and 6.7, and "
        "`lrml` is drawn over a tenth of the range, where it differs.",
        guide=(
            ("Noisy labels, where the noise sits in close pairs", "`lrml` (DiscoPOP), many or long steps"),
            ("Labels may be flipped", "`padll`: half the force on pairs far on the wrong side"),
            ("Clean labels, wrong pairs first", "`cell`, with clipped gradients"),
            ("The policy's own ranking is what counts", "`pfl`, with even lengths"),
            ("To reproduce the paper", "`dbaql`, `aql`, `aqfl`"),
        ),
    ),
    "unpaired": Page(
        title="Unpaired losses",
        family="unpaired",
        intro="One loss per completion that somebody found good or bad. The pictures follow one desirable completion "
        "along its log-ratio of policy to reference; 0 is where they agree. An undesirable one has the mirror image.",
        guide=(
            ("Thumbs up and down, one kind rarer than the other", "`kto`, bounded and with a weight per kind"),
            ("Completions judged wrongly must keep a full slope", "`bco`; not with many wrong labels"),
        ),
    ),
}
"""Name of the file without its ending -> page, in reading order."""

BESIDE = {
    "cross_entropy": ("cross_entropy(label_smoothing=0.1)",),
    "self_adjusting_dice": ("self_adjusting_dice(alpha=0.3)",),
    "tailr": ("tailr(gamma=0.1)",),
    **dict.fromkeys(
        ("focal", "poly1", "generalized_cross_entropy", "dft", "deft", "entropy_adaptive", "confidence_penalty"),
        ("cross_entropy",),
    ),
    "jaccard": ("dice",),
    "tversky": ("dice",),
    "focal_tversky": ("tversky",),
    "arcface": ("cosface",),
    **dict.fromkeys(("cdpo", "robust_dpo", "hinge", "dpop", "apo_zero", "nca_pair", "bco_pair"), ("dpo",)),
    "exo_pair": ("cdpo(label_smoothing=0.001)",),
    "generalized_dice": ("generalized_dice(form='released')",),
    "aql": ("aql(form='discovered')", "dpo(beta=0.05)"),
    "pfl": ("pfl(form='discovered')", "dpo(beta=0.05)"),
    **dict.fromkeys(("lrml", "padll", "cell", "dbaql", "aqfl"), ("dpo(beta=0.05)",)),
    "orpo": ("cpo",),
    "kto": ("bco",),
    "bco": ("kto",),
}
"""Loss -> what its picture shows beside it: its other form, a setting or a relative that explains its shape."""

SPANS = {"lrml": 0.5}
"""Loss -> `span` of its picture, where the usual one hides what is particular to it."""

NOTES = {
    "mile": "A token alone has weight 1, so this line is that of `cross_entropy`. In a batch the weight is 1 plus the "
    "token's entropy over the mean of that: of one undecided token (entropy 0.69 nats, p = 0.5 of two classes) and one "
    "sure token (entropy 0), the first has weight 1.26 and the second 0.74.",
    "tailr": "At the default the weight falls only below p of about 0.0001, so its line looks like that of "
    "`cross_entropy`.",
    "unlikelihood": "The label is the token that should not be said.",
    "z_loss": "The logit of the label rises and the other stays at 0; the loss would be the same for any other label. "
    "It pulls by 0.001 at most, so that its implied target is p itself and hides the dotted line.",
    "contrastive": "The kink at -0.5 is where the negatives come within their margin.",
    "triplet_margin": "The mean runs over violating triplets only, so it steps where one joins or leaves.",
    "arcface": "The step at -0.88 is where the angle plus the margin passes 180 degrees.",
    "circle": "The two weights are constants in the gradient; that of the negatives ends at 0.4.",
    "aot_unpaired": "The slope steps where the moving pair changes its rank.",
    "lrml": "At the default beta both forms are this line. Where the gradient is positive, between -2.4 and 1.4 nats, "
    "a pair falls back; far out on the left the loss is that of `dpo`.",
    **dict.fromkeys(("dbaql", "aqfl"), "At the default beta both forms are this line."),
    "orpo": "At the left end the rejected completion has probability one, and its odds are infinite.",
    "cell": "Both forms are this line.",
    "padll": "Both forms are this line. The loss jumps up where the pair becomes right, though the gradient is "
    "negative on both sides.",
    "pfl": "The discovered form has no beta: it is 20 times as steep and leaves the panel.",
}
"""Loss -> what its picture needs said."""
