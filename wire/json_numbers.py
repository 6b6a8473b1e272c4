"""Numbers as RapidJSON reads and writes them, where this differs from what Python does.

Values are the correctly rounded doubles. Which numbers are refused as too big depends on how
RapidJSON gets at the value, digit by digit, and is worked out the same way here.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache

# A double that is one digit short of the range: with a further digit an integer is too big.
_FULL = 1.7976931348623157e307
# What a significand may be before RapidJSON goes on in floating point, and how many digits it looks at.
_SIGNIFICAND, _DIGITS = 2**53 - 1, 17
_MAX_EXPONENT = 308
# Longer integer parts are too big, whatever their digits.
_MAX_INTEGER_DIGITS = 330
_MASK = 2**64 - 1
_ZERO = ord("0")


def unsubnormal(value: float) -> float:
    """A double with what is smaller than normal flushed to zero, sign kept, as the original's CPU does.

    >>> unsubnormal(-1e-310), unsubnormal(1e-300)
    (-0.0, 1e-300)
    """
    return math.copysign(0.0, value) if abs(value) < sys.float_info.min else value


def overflow(sign: bytes, integer: bytes, fraction: bytes, exponent: bytes) -> float | None:
    """The value of a number at the edge of the doubles, or None where RapidJSON says that it is too big.

    The parts are ASCII digits, ``exponent`` with its sign; a part that is not there is empty.

    >>> overflow(b"", b"1", b"", b"309"), overflow(b"", b"10", b"", b"308")
    (None, inf)
    """
    if len(integer) > _MAX_INTEGER_DIGITS:
        return None
    limit = 2**63 if sign else 2**64 - 1
    significand, at = 0, 0
    while at < len(integer) and significand * 10 + integer[at] - _ZERO <= limit:
        significand = significand * 10 + integer[at] - _ZERO
        at += 1
    value = float(significand)
    for digit in integer[at:]:
        if value >= _FULL:
            return None
        value = value * 10 + (digit - _ZERO)
    # The very first digit is not counted.
    places, digits = 0, at - 1
    if at == len(integer):
        if significand == 0:  # so that a million zeros cost no more than a look
            places = len(fraction) - len(fraction.lstrip(b"0"))
        while places < len(fraction) and significand <= _SIGNIFICAND:
            significand = significand * 10 + fraction[places] - _ZERO
            places += 1
            digits += significand != 0
        value = float(significand)
    while places < len(fraction) and digits < _DIGITS:
        value = value * 10 + (fraction[places] - _ZERO)
        places += 1
        digits += 1
    power = _exponent(exponent)
    if power > _MAX_EXPONENT + places:
        return None
    # Below zero it is a division, and the value is nowhere near the edge.
    value *= float(f"1e{max(power - places, 0)}")
    return -value if sign else value


def _exponent(text: bytes) -> int:
    size = int(text.lstrip(b"+-").lstrip(b"0")[:12] or b"0")
    return -size if text.startswith(b"-") else size


def number_text(value: float) -> str:
    """A finite double as RapidJSON's writer prints it.

    >>> [number_text(value) for value in (3.0, 1e-5, 1e-7, 1e20, 1e21, 1.5e-7)]
    ['3.0', '0.00001', '1e-7', '100000000000000000000.0', '1e21', '1.5e-7']
    """
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    if value == 0:
        return f"{sign}0.0"
    digits, exponent = _grisu2(abs(value))
    point = len(digits) + exponent
    if exponent >= 0 and point <= 21:
        return f"{sign}{digits}{'0' * exponent}.0"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1}"


def _grisu2(value: float) -> tuple[str, int]:
    """The digits and the power of ten of Grisu2 (Florian Loitsch, 2010), which RapidJSON prints with.

    They stand for the same double, and are nearly always the shortest that do; `repr` is not the same
    in the one of a thousand cases where they are not.
    """
    fraction, exponent = math.frexp(value)
    significand, exponent = int(fraction * 2**53), exponent - 53
    # The halfway points to both neighbours, as 64-bit significands of one common exponent.
    shift = 64 - (2 * significand + 1).bit_length()
    upper, common = (2 * significand + 1) << shift, exponent - 1 - shift
    # Below a power of two the neighbours are half as far away.
    step = 2 if significand == 2**52 else 1
    lower = (2 * step * significand - 1) << (exponent - step - common)
    power, power_exponent, ten = _cached_power(common)
    middle = _product(significand << 11, power)
    upper, lower = _product(upper, power) - 1, _product(lower, power) + 1
    return _digits(middle, upper, lower, -(common + power_exponent + 64), ten)


def _digits(middle: int, upper: int, lower: int, shift: int, ten: int) -> tuple[str, int]:
    one = 1 << shift
    delta, distance = upper - lower, upper - middle
    whole, rest = upper >> shift, upper & (one - 1)
    digits: list[int] = []
    for kappa in reversed(range(len(str(whole)))):
        digit, whole = divmod(whole, 10**kappa)
        if digit or digits:
            digits.append(digit)
        left = (whole << shift) + rest
        if left <= delta:
            _round(digits, delta, left, 10**kappa << shift, distance)
            return "".join(map(str, digits)), ten + kappa
    kappa = 0
    while True:
        rest, delta, kappa = rest * 10, delta * 10, kappa - 1
        digit, rest = rest >> shift, rest & (one - 1)
        if digit or digits:
            digits.append(digit)
        if rest < delta:
            _round(digits, delta, rest, one, distance * 10**-kappa & _MASK if kappa > -9 else 0)
            return "".join(map(str, digits)), ten + kappa


def _round(digits: list[int], delta: int, rest: int, unit: int, distance: int) -> None:
    """Step the last digit down towards the value itself, as far as the digits stand for it."""
    while (
        rest < distance
        and delta - rest >= unit
        and (rest + unit < distance or distance - rest > rest + unit - distance)
    ):
        digits[-1] -= 1
        rest += unit


def _product(left: int, right: int) -> int:
    return (left * right + 2**63) >> 64


@lru_cache(maxsize=128)
def _cached_power(exponent: int) -> tuple[int, int, int]:
    """A power of ten that brings a significand of this exponent near 1: its 64 bits, exponent, and ten."""
    steps = math.ceil((-61 - exponent) * 0.30102999566398114 + 347)
    ten = -348 + 8 * ((steps >> 3) + 1)
    if ten >= 0:
        whole, scale = 10**ten, 0
    else:
        scale = (10**-ten).bit_length() + 65
        whole = (1 << scale) // 10**-ten
    drop = whole.bit_length() - 64
    significand = (whole + (1 << (drop - 1)) >> drop) if drop > 0 else whole << -drop
    return significand, drop - scale, -ten
