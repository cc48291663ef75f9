"""Numbers as data sets write them, read exactly and written plainly."""

import re
from fractions import Fraction

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)", re.ASCII)


def read_number(text: str) -> Fraction | None:
    """The number that a text is, with thousands commas and a dollar sign allowed, or None.

    Example:
        >>> read_number("$1,234.50"), read_number("-7"), read_number("2,4"), read_number("1e3")
        (Fraction(2469, 2), Fraction(-7, 1), None, None)
    """
    bare = text.strip().removeprefix("$").strip()
    return Fraction(bare.replace(",", "").rstrip(".")) if _NUMBER.fullmatch(bare) else None


def write_number(value: Fraction) -> str:
    """Digits of a number: whole, as a decimal where it ends, else as a fraction.

    Example:
        >>> write_number(Fraction(38)), write_number(Fraction(-1, 8)), write_number(Fraction(2, 3))
        ('38', '-0.125', '2/3')
    """
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
