"""Memory divided by weight, with a tax on what is idle.

After Waldspurger, "Memory Resource Management in VMware ESX Server", OSDI 2002, section 5: a machine pays for
its memory with its weight. An active byte costs 1, an idle one `k = 1 / (1 - tax)`. All pay the same price
for a unit of weight, and that price is as low as the memory allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TAX = 0.75  # the paper's default: an idle byte costs as much as four active ones
PAGE = 4096
_ROUNDS = 64  # of bisection: prices are found to the last byte of any host


@dataclass(frozen=True, slots=True)
class Claim:
    """What one machine brings: its weight, and bytes: those that it uses, and its bounds."""

    weight: int
    active: int
    least: int
    most: int


def divide(budget: int, claims: Sequence[Claim], tax: float = TAX) -> list[int]:
    """Bytes for each claim, between its bounds, `budget` at most in all.

    If all `least` together are more than the budget, each gets its `least`: promises are not broken here.
    """
    if sum(claim.most for claim in claims) <= budget:
        return [claim.most for claim in claims]
    if sum(claim.least for claim in claims) >= budget:
        return [claim.least for claim in claims]
    factor = 1 / (1 - tax)
    low, high = 0.0, factor * max(claim.most / claim.weight for claim in claims)
    for _ in range(_ROUNDS):
        price = (low + high) / 2
        if sum(_bytes(claim, price, factor) for claim in claims) <= budget:
            low = price
        else:
            high = price
    return [_bytes(claim, low, factor) for claim in claims]


def _bytes(claim: Claim, price: float, factor: float) -> int:
    """What a machine can pay for, in whole pages: `paid = active + factor * idle`, solved for their sum."""
    paid = price * claim.weight
    size = paid if paid <= claim.active else (paid + (factor - 1) * claim.active) / factor
    return min(max(int(size) // PAGE * PAGE, claim.least), claim.most)
