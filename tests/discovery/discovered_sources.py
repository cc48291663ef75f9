"""The seven discovered objectives as their formulas say, and as functions of the paper's signature; by hand."""

HEAD = """def {name}_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta={beta}):
    rho = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    x = beta * rho
{body}
"""
DISCOVERED = {
    "lrml": """
    s = torch.sigmoid(rho)
    return (1 - s) * -F.logsigmoid(x) + s * torch.exp(-x)""",
    "dbaql": """
    v = torch.sigmoid(rho.var())
    return v * -F.logsigmoid(x / 0.9) + (1 - v) * torch.exp(-0.9 * x)""",
    "aql": """
    m = 0.5 + 0.01 * (torch.sigmoid(rho.mean()) - 0.5)
    q = torch.sigmoid(-beta * (rho - m))
    return q * -F.logsigmoid(x) + (1 - q) * F.relu(1 - x)""",
    "aqfl": """
    a0 = rho.std() * torch.sigmoid(-rho).mean()
    a = a0 + 0.05 * (torch.sigmoid(rho.mean()) - a0)
    b = torch.sigmoid(0.1 * torch.abs(rho - a))
    return b * -F.logsigmoid(x) + (1 - b) * torch.relu(1 - x)""",
    "padll": """
    return 0.9 * (1 - 0.5 * (rho < 0).float()) * -F.logsigmoid(x)""",
    "cell": """
    return (F.softplus(-x) + torch.exp(-x)) / 2""",
    "pfl": """
    right = chosen_logps > rejected_logps
    return torch.where(right, 0.5 * F.softplus(-rho), 2 * torch.clamp(1 - rho, min=0))""",
}
RELEASED = {
    "lrml": """
    s = torch.sigmoid(x / 0.05)
    return (1 - s) * -F.logsigmoid(x) + s * torch.exp(-x)""",
    "dbaql": """
    v = torch.sigmoid((x / 0.05).var())
    return v * F.softplus(-x / 0.9) + (1 - v) * (-0.9 * x).exp()""",
    "aql": """
    gauge = x / 0.05
    m = 0.5 + 0.01 * (torch.sigmoid(gauge.mean()) - 0.5)
    q = torch.sigmoid(-(gauge - m))
    return q * F.softplus(-x) + (1 - q) * F.relu(1 - x)""",
    "aqfl": """
    gauge = x / 0.05
    a0 = torch.std(gauge) * torch.mean(torch.sigmoid(-gauge))
    a = a0 + 0.05 * (torch.sigmoid(torch.mean(gauge)) - a0)
    b = torch.sigmoid(0.1 * (gauge - a).abs())
    return b * F.softplus(-x) + (1 - b) * F.relu(1 - x)""",
    "padll": """
    return torch.where(rho < 0, 0.45, 0.9) * F.softplus(-x)""",
    "cell": """
    return 0.5 * torch.log1p(torch.exp(-x)) + 0.5 / torch.exp(x)""",
    "pfl": """
    return torch.where(chosen_logps <= rejected_logps, 2 * F.relu(1 - x), F.softplus(-x) / 2)""",
}
NAMES = tuple(DISCOVERED)
FORMS = {"discovered": DISCOVERED, "released": RELEASED}


def native(name: str, form: str, beta: float = 0.05) -> str:
    return HEAD.format(name=name, beta=beta, body=FORMS[form][name])


def paper(name: str, form: str) -> str:
    """The same as a method with the paper's names, annotations and `self.beta`."""
    body = FORMS[form][name].replace("chosen_logps", "policy_chosen_logps")
    body = body.replace("rejected_logps", "policy_rejected_logps").replace("beta", "self.beta")
    parameters = ",\n".join(
        f"    {side}_{kind}_logps: torch.FloatTensor"
        for side in ("policy", "reference")
        for kind in ("chosen", "rejected")
    )
    return f'''def {name}_loss(
    self,
{parameters},
) -> torch.FloatTensor:
    """A docstring, as the model wrote one."""
    pi_logratios = policy_chosen_logps - policy_rejected_logps
    ref_logratios = reference_chosen_logps - reference_rejected_logps
    rho = pi_logratios - ref_logratios
    x = self.beta * rho
{body}
'''
