"""What to write instead: names that candidates often want and the grammar does not have."""

from collections.abc import Iterable, Mapping

from lossmith._checks import did_you_mean
from lossmith.discovery.compiler.errors import shown

INSTEAD = {
    "sum": "the trainer reduces the losses; `.mean()` is the mean over the batch",
    "item": "losses stay tensors",
    "to": "cast a boolean by `.float()`; types and devices are not chosen here",
    "type": "cast a boolean by `.float()`; types and devices are not chosen here",
    "type_as": "cast a boolean by `.float()`; types and devices are not chosen here",
    "bool": "compare with 0 instead",
    "log_softmax": "use F.logsigmoid for two completions",
    "softmax": "use torch.sigmoid for two completions",
    "log_sigmoid": "use F.logsigmoid",
    "exponential": "use torch.exp",
    "median": "use `.mean()`",
    "norm": "use `.std()` or the root of the mean of squares",
    "tensor": "write the number itself",
    "unsqueeze": "a loss is one number per item; `.unsqueeze(-1)` stands directly beside a table of candidates alone",
    "squeeze": "a loss is one number per item",
    "view": "a loss is one number per item",
    "reshape": "a loss is one number per item",
    "rand_like": "a loss must be deterministic",
    "randn_like": "a loss must be deterministic",
    "no_grad": "use `.detach()`",
    "numel": "a loss does not depend on the size of the batch; use `.mean()`",
    "size": "a loss does not depend on the size of the batch; use `.mean()`",
    "gelu": "write 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))",
    "silu": "write x * torch.sigmoid(x)",
    "mish": "write x * torch.tanh(F.softplus(x))",
    "elu": "write torch.relu(x) + torch.expm1(torch.clamp(x, max=0))",
    "leaky_relu": "write torch.where(x > 0, x, 0.01 * x) with your slope",
    "relu6": "write torch.clamp(x, 0, 6)",
    "hardtanh": "write torch.clamp(x, -1, 1)",
    "softsign": "write x / (1 + torch.abs(x))",
    "binary_cross_entropy_with_logits": "write F.softplus(-x) where the target is 1, F.softplus(x) where it is 0",
    "binary_cross_entropy": "write -torch.log(p) where the target is 1, -torch.log1p(-p) where it is 0",
    "mse_loss": "write torch.square(a - b)",
    "l1_loss": "write torch.abs(a - b)",
    "smooth_l1_loss": "write torch.where(torch.abs(x) < 1, 0.5 * torch.square(x), torch.abs(x) - 0.5)",
    "huber_loss": "write torch.where(torch.abs(x) < 1, 0.5 * torch.square(x), torch.abs(x) - 0.5)",
    "sin": "no periodic functions; torch.tanh and torch.atan are odd and bounded",
    "cos": "no periodic functions; torch.exp(-torch.square(x)) is even and bounded",
    "tan": "no periodic functions; torch.atan and torch.tanh are there",
    "sinh": "write 0.5 * (torch.exp(x) - torch.exp(-x))",
    "cosh": "write 0.5 * (torch.exp(x) + torch.exp(-x))",
    "rsqrt": "write 1 / torch.sqrt(x)",
    "rsub": "write other - input",
    "exp2": "write torch.exp(x * math.log(2))",
    "log2": "write torch.log(x) / math.log(2)",
    "log10": "write torch.log(x) / math.log(10)",
    "logit": "write torch.log(x) - torch.log1p(-x)",
}
"""Name -> what to do instead, wherever the name is looked for."""
CALLED = {
    "print": "leave the line out",
    "max": "use torch.maximum, or torch.clamp with `min`",
    "min": "use torch.minimum, or torch.clamp with `max`",
    "float": "write the number itself, or cast a boolean by `.float()`",
    "int": "write the number itself",
    "len": "a loss does not depend on the size of the batch; use `.mean()`",
    "sum": INSTEAD["sum"],
    "pow": "write x ** 2",
    "round": "rounding has no gradient",
}
"""Name of a plain function -> what to do instead."""


def hint(module: str, name: str, known: Mapping[str, Iterable[str]], methods: Iterable[str]) -> str:
    """A sentence on what to write instead of `module.name` (a method where there is no module), or nothing."""
    if name in INSTEAD:
        return f" Instead: {INSTEAD[name]}."
    for other in ("F", "torch"):
        if other != module and name in known[other]:
            return f" Instead: use {other}.{name}."
    return did_you_mean(shown(name), known[module] if module else methods)
