"""Kubernetes quantities ("250m", "64Mi", "1e3", 2) as numbers.

`value` gives whole units, `milli` thousandths, both rounded up as Kubernetes does. Bad text raises ValueError.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import lru_cache

_SCALE = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(1000)}
_SCALE |= {letter: Decimal(1000) ** power for power, letter in enumerate("MGTPE", 2)}
_SCALE |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)")


@lru_cache(maxsize=4096)
def parse(text: str) -> Decimal:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity (such as 250m, 64Mi or 2)")
    number, exponent, suffix = match.groups()
    return Decimal(number) * (Decimal(10) ** int(exponent) if exponent else _SCALE[suffix or ""])


def value(quantity: str | int | float) -> int:
    return math.ceil(parse(str(quantity)))


def milli(quantity: str | int | float) -> int:
    return math.ceil(parse(str(quantity)) * 1000)
