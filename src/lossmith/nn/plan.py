"""How a loss is going to be computed, and why."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `loss.plan(...)` answers for one call; nothing is computed for it."""

    engine: str
    """"dense", "chunked" or "triton"; "rows" for the tables of metric losses."""
    name: str
    """"gradient in forward", "recompute", "forward only" or "dense"."""
    products: int
    """Products of the size of the whole linear map that forward and backward take together."""
    items: int
    """Rows that count; no other is multiplied."""
    chunks: int
    """Chunks of rows that they come in."""
    scratch_bytes: int
    """Bytes of scores that are held at a time."""
    reason: str
    """Why this plan and no other."""

    def __str__(self) -> str:
        if self.products == 0:
            return f"{self.engine} engine, {self.items:,} rows, no matrix product. {self.reason}"
        products = "1 matrix product" if self.products == 1 else f"{self.products} matrix products"
        chunks = "1 chunk" if self.chunks == 1 else f"{self.chunks} chunks"
        mib = self.scratch_bytes / 2**20
        size = f"{mib:,.1f} MiB" if mib >= 0.1 else f"{self.scratch_bytes:,} bytes"
        return (
            f"{self.engine} engine, {self.name}: {products} over {self.items:,} rows in {chunks}, "
            f"{size} of scores at a time. {self.reason}"
        )
