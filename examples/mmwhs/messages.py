"""The form of every message of the example, and the checks that several of its modules share."""

import math
from collections.abc import Collection
from difflib import get_close_matches


def message(expected: str, got: object, cure: str = "") -> str:
    """``Expected <expected>, got <got>. <cure>``: the one form of every message."""
    return f"Expected {expected}, got {got}.{' ' + cure if cure else ''}"


def one_of(name: str, value: object, options: Collection[str]) -> None:
    """`value` is one of `options`; a name that is not is told the closest one."""
    if value not in options:
        close = get_close_matches(str(value), list(options), n=1)
        cure = f"Did you mean {close[0]!r}?" if close else ""
        raise ValueError(message(f"`{name}` to be one of {', '.join(map(repr, options))}", repr(value), cure))


def number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> float:
    """`value` is a finite real number in the range, as a float."""
    limits = [("above", above), ("of at least", least), ("at most", most)]
    wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit))
    expected = f"`{name}` to be a finite number {wanted}".rstrip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message(expected, f"{value!r} of type {type(value).__name__}"))
    if not (math.isfinite(value) and least <= value <= most and value > above):
        raise ValueError(message(expected, value))
    return float(value)


def integer(name: str, value: object, *, least: int) -> int:
    """`value` is an integer, not a bool, of at least `least`."""
    expected = f"`{name}` to be an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(expected, f"{value!r} of type {type(value).__name__}"))
    if value < least:
        raise ValueError(message(expected, value))
    return value
