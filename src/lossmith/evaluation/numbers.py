"""Final answers as exact numbers: read from text, compared as fractions, with bounds that hostile text cannot pass."""

import re
from fractions import Fraction

MAX_DIGITS = 400
"""A number with more digits, or a power of ten beyond this exponent, has no value."""

_SIGN = r"[-+\u2212\u2013\uff0d]"
_CURRENCY = r"(?:\\?[$€£¥₹]|(?:rs|usd|eur)\b\s?\.?)"
_PLAIN = r"(?:[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+(?![A-Za-z]))?"
_OVER = r"\s{0,3}/\s{0,3}[0-9]+(?![.,]?[0-9])"
_AT_START = re.compile(
    rf"(?P<sign>{_SIGN}?)\s?{_CURRENCY}?\s?(?P<inner>{_SIGN}?)\s?(?P<number>{_PLAIN})"
    rf"(?P<rest>\s{{1,3}}[0-9]+{_OVER}|{_OVER})?",
    re.IGNORECASE,
)
# In running text a hyphen after a digit, a letter or a bracket is no sign: `10-5`, `step-2`, `(3)-4`.
_ANYWHERE = re.compile(rf"(?<![\w.])(?:(?<!\))(?P<sign>{_SIGN})\\?[$€£¥₹]?)?(?P<number>{_PLAIN})")
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}")
_FRACTION = re.compile(r"([0-9]?)\\[dt]?frac\s?\{\s?(-?[0-9]{1,400})\s?\}\s?\{\s?([0-9]{1,400})\s?\}")
_MARKUP = " \t*_`(["
_GOES_ON = re.compile(
    r"[%$€£]?[)\]\s]{0,3}(?:[-+*/x×·÷^=\u2212\u2013]|\\times|\\cdot|\\div){1,2}\s{0,3}[-+(\[]{0,2}\\?[$€£]?\s?\.?[0-9]",
    re.IGNORECASE,
)
_SLASH = re.compile(r"\s{0,3}/\s{0,3}")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]{0,200})\}")
_CLAIM = re.compile(r"answer\s{0,3}(?:is|=|:)\s?:?(?=([^\n]{1,200}))", re.IGNORECASE)


def parse_number(text: str) -> Fraction | None:
    r"""Value of the number that `text` begins with, exactly; None where it begins with none.

    A sign and a currency may stand before the number in either order, and whatever follows it is a unit and is left out
    (a percent sign too: `50%` is 50). Thousands commas are read in threes or as in `1,00,000`; any other comma ends the
    number. `3/4` and `3 / 4` are fractions, `1 1/2` is a mixed number, `2e3` is 2,000. A full stop that no digit
    follows ends a sentence, not a number.

    Args:
        text: Any text. More than 400 digits, or an exponent beyond 400, give None.

    Returns:
        The value, or None where there is no number, or a fraction over zero.

    Example:
        >>> [str(parse_number(text)) for text in ("$1,234.50.", "-£5 each", "−7%", ".5", "3/4", "1 1/2 cups", "none")]
        ['2469/2', '-5', '-7', '1/2', '3/4', '3/2', 'None']
    """
    found = _AT_START.match(_window(text))
    return None if found is None else _value(found)


def strict_answer(text: str) -> Fraction | None:
    r"""The number after the first `####` that a number follows on its line; None where there is none.

    Stars and brackets around the number do not count, and where nothing else is on that line, the next one is read. A
    number that goes on as a sum (`#### 2*9=18`, `#### 3-5`) is none. What a model writes after its answer (another
    question, another answer) does not count. `\frac{1}{2}` is 1/2.

    Example:
        >>> strict_answer("<<2*9=18>> #### $18\nQuestion: more #### 7"), strict_answer("It is 18.")
        (Fraction(18, 1), None)
        >>> [str(strict_answer(text)) for text in ("#### **18**", "####\n(-5)", "#### 24-6=18")]
        ['18', '-5', 'None']
    """
    for line in _hash_lines(_FRACTION.sub(_slashed, text)):
        value = _alone(line)
        if value is not None:
            return value
    return None


def flexible_answer(text: str) -> Fraction | None:
    r"""The final number of an answer in any usual form; None where the text holds no number.

    In this order: the number after `####`, or behind the last equals sign there; the last `\boxed{..}` with a number;
    the number after the last "answer is", "answer =" or "answer:"; the last number of the text. In boxes and after
    "answer" too, a sum is read behind its last equals sign. A fraction over zero is no number.

    Example:
        >>> [str(flexible_answer(text)) for text in (r"so \boxed{\$42}", "The answer is 16 - 3 = 13.", "3-5 of 1,200.")]
        ['42', '13', '1200']
    """
    value = strict_answer(text)
    if value is not None:
        return value
    text = _FRACTION.sub(_slashed, text)
    sums = [line for line in _hash_lines(text) if "=" in line]
    for candidate in (*sums, *reversed(_BOXED.findall(text)), *reversed(_CLAIM.findall(text))):
        value = _alone(_after_equals(candidate))
        if value is not None:
            return value
    return _last_number(text)


def decimal(digits: str) -> Fraction | None:
    """Value of unsigned digits with an optional point and exponent, within the bounds of this module.

    Example:
        >>> decimal("2.50"), decimal("1e999999999")
        (Fraction(5, 2), None)
    """
    mantissa, _, exponent = digits.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 5 or (exponent and abs(int(exponent)) > MAX_DIGITS):
        return None
    whole, _, places = mantissa.partition(".")
    power = int(exponent or 0) - len(places)
    value = int(whole + places or "0")
    return Fraction(value * 10**power) if power >= 0 else Fraction(value, 10**-power)


def _hash_lines(text: str) -> list[str]:
    """What follows each `####` on its line, or on the next one where nothing does."""
    lines = []
    for piece in text.split("####")[1:]:
        first, *others = piece.lstrip("#").split("\n", 2)
        lines.append(first if first.strip(_MARKUP + "\r") or not others else others[0])
    return lines


def _alone(line: str) -> Fraction | None:
    """The number that a line begins with, markup aside, unless it is the start of a sum."""
    text = _window(line)
    if text.startswith("**"):
        text = text.replace("**", " ")
    text = text.lstrip(_MARKUP)
    found = _AT_START.match(text)
    return None if found is None or _GOES_ON.match(text, found.end()) else _value(found)


def _window(text: str) -> str:
    return text.lstrip()[: 3 * MAX_DIGITS]


def _slashed(found: re.Match[str]) -> str:
    whole, above, below = found.groups()
    return f"{whole} {above}/{below}" if whole else f"{above}/{below}"


def _value(found: re.Match[str]) -> Fraction | None:
    """Of a match of `_AT_START`."""
    number = found["number"]
    value = _plain(_first_part(number))
    if value is None:
        return None
    if found["rest"] and _first_part(number) == number:
        value = _with_fraction(value, found["rest"])
    negative = [sign for sign in (found["sign"], found["inner"]) if sign and sign != "+"]
    return -value if value is not None and len(negative) % 2 else value


def _plain(number: str) -> Fraction | None:
    return decimal(number.replace(",", ""))


def _first_part(number: str) -> str:
    """The number up to the first comma that does not separate thousands."""
    whole = re.split(r"[.eE]", number, maxsplit=1)[0]
    return number if "," not in whole or _GROUPED.fullmatch(whole) else whole.split(",", 1)[0]


def _with_fraction(value: Fraction, rest: str) -> Fraction | None:
    above, below = (part.strip() for part in rest.split("/"))
    if len(above) > MAX_DIGITS or len(below) > MAX_DIGITS or int(below) == 0:
        return None
    if not above:
        return value / int(below)
    is_mixed = value.denominator == 1 and int(above) < int(below)
    return value + Fraction(int(above), int(below)) if is_mixed else value


def _after_equals(line: str) -> str:
    sentence = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0]
    return sentence.rsplit("=", 1)[-1]


def _last_number(text: str) -> Fraction | None:
    found = [*_ANYWHERE.finditer(text)]
    if not found:
        return None
    last = found[-1]
    if len(found) > 1 and _SLASH.fullmatch(text, found[-2].end(), last.start()):
        return _last_fraction(text, found)
    number = last["number"]
    if _first_part(number) != number:
        return _plain(number.rsplit(",", 1)[1])
    value = _plain(number)
    return -value if value is not None and last["sign"] and last["sign"] != "+" else value


def _last_fraction(text: str, found: list[re.Match[str]]) -> Fraction | None:
    """Two numbers around a slash at the end, with a whole number before them if there is one."""
    first = found[-2]
    if len(found) > 2 and re.fullmatch(r"[ ]{1,3}", text[found[-3].end() : first.start()]):
        first = found[-3]
    return parse_number(text[first.start() :])
