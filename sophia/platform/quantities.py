"""Kubernetes quantities as numbers, to add them up."""

from __future__ import annotations

import re
from decimal import Decimal

FORM = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
}


def amount(quantity: str) -> Decimal:
    """`500m` is 0.5, `2Gi` is 2147483648; raises ValueError for any other form."""
    match = FORM.match(quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity such as 500m or 2Gi")
    return Decimal(match.group(1)) * FACTORS[match.group(2) or ""]
