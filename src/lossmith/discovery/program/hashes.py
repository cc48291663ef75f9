"""Digests of normal forms: what orders their sums and products, and what their hashes are made of."""

from hashlib import blake2b

from lossmith.discovery.program.nodes import Node, order
from lossmith.discovery.program.operators import OPERATORS


def exact_hash(family: str, canonical: Node) -> str:
    """Hash of a normal form; constants count to 12 digits."""
    return blake2b(family.encode() + digest(canonical), digest_size=16).hexdigest()


def skeleton_hash(family: str, canonical: Node) -> str:
    """Hash of a normal form with every constant as the same slot; commuting arguments in the order of their slots."""
    seen: dict[Node, bytes] = {}
    for node in order(canonical):
        if node.op in ("add", "mul"):
            parts = sorted(seen[part] for part in flat(node, node.op))
        elif node.op == "const":
            parts = []
        else:
            parts = [seen[arg] for arg in node.args]
            parts = sorted(parts) if node.args and OPERATORS[node.op].commutes else parts
        name = str(node.value) if node.op == "input" else ""
        seen[node] = blake2b(f"{node.op}|{name}|".encode() + b"".join(parts), digest_size=12).digest()
    return blake2b(family.encode() + seen[canonical], digest_size=16).hexdigest()


def flat(node: Node, op: str) -> list[Node]:
    """The arguments of a chain of one operator."""
    if node.op != op:
        return [node]
    found: list[Node] = []
    stack = [node]
    while stack:
        part = stack.pop()
        if part.op == op:
            stack += part.args
        else:
            found.append(part)
    return found


def digest(root: Node) -> bytes:
    """Digest of an expression; it orders sums and products in every process."""
    found = root.digest
    return _digested(root) if found is None else found


def _digested(root: Node) -> bytes:
    stack = [root]
    found = b""
    while stack:
        node = stack[-1]
        parts: list[bytes] = []
        for arg in node.args:
            if arg.digest is None:
                stack.append(arg)
                break
            parts.append(arg.digest)
        else:
            found = node.digest = blake2b(_text(node) + b"".join(parts), digest_size=12).digest()
            stack.pop()
    return found


def _text(node: Node) -> bytes:
    if node.op == "const":
        return b"%.12g" % node.value
    return str(node.value).encode() if node.op == "input" else node.op.encode()
