"""Every random choice has a seed of its own, derived from what it is for and never from what ran before."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: object) -> int:
    """A seed of 63 bits for one purpose: different parts give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
