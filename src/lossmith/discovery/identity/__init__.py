"""Identity of losses by what they do: fingerprints, and the atlas of the published ones."""

from lossmith.discovery.identity.atlas import FIRST, Atlas, Nearest, atlas
from lossmith.discovery.identity.fingerprint import DUPLICATE, NEIGHBOUR, Fingerprint, fingerprint, of_gradients
from lossmith.discovery.identity.probes import TRAINED, VERSION, Probes, probes

__all__ = [
    "DUPLICATE",
    "FIRST",
    "NEIGHBOUR",
    "TRAINED",
    "VERSION",
    "Atlas",
    "Fingerprint",
    "Nearest",
    "Probes",
    "atlas",
    "fingerprint",
    "of_gradients",
    "probes",
]
