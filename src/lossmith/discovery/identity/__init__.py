"""Identity of losses by what they do: fingerprints, and the atlas of the published ones."""

from lossmith.discovery.identity.atlas import Atlas, Nearest, atlas, refitted
from lossmith.discovery.identity.beyond import beyond, same_beyond
from lossmith.discovery.identity.fingerprint import (
    DUPLICATE,
    NEIGHBOUR,
    Fingerprint,
    fingerprint,
    fingerprint_at,
    of_gradients,
)
from lossmith.discovery.identity.known import FIRST, Known
from lossmith.discovery.identity.probes import TRAINED, VERSION, Probes, probes

__all__ = [
    "DUPLICATE",
    "FIRST",
    "NEIGHBOUR",
    "TRAINED",
    "VERSION",
    "Atlas",
    "Fingerprint",
    "Known",
    "Nearest",
    "Probes",
    "atlas",
    "beyond",
    "fingerprint",
    "fingerprint_at",
    "of_gradients",
    "probes",
    "refitted",
    "same_beyond",
]
