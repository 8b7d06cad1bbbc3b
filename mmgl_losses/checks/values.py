"""The shape of every message, and checks of plain values."""

import math
from collections.abc import Collection
from difflib import get_close_matches
from typing import NoReturn

from torch import Tensor


def message(expected: str, got: object, cure: str = "") -> str:
    """``Expected <expected>, got <got>. <cure>``: the one shape of every message."""
    return f"Expected {expected}, got {got}.{' ' + cure if cure else ''}"


def one_of(name: str, value: object, options: Collection[str]) -> None:
    """`value` is one of `options`."""
    wanted = f"`{name}` to be one of {', '.join(map(repr, options))}"
    if not isinstance(value, str):
        raise TypeError(message(wanted, typed(value)))
    if value not in options:
        close = get_close_matches(value, list(options), n=1)
        raise ValueError(message(wanted, repr(value), f"Did you mean {close[0]!r}?" if close else ""))


def choice(name: str, value: object, options: Collection[int]) -> None:
    """`value` is one of the integers `options`."""
    wanted = f"`{name}` to be one of {', '.join(map(repr, options))}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(wanted, typed(value)))
    if value not in options:
        raise ValueError(message(wanted, repr(value)))


def typed(value: object) -> str:
    """A value of a wrong type in a message, on one line: ``'0.1' of type str``; of a tensor its shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    shown = repr(value)
    return f"{shown} of type {type(value).__name__}" if len(shown) < 80 and "\n" not in shown else type(value).__name__


def number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> float:
    """`value` is a finite real number in the range, as a float."""
    wanted = "a finite number"
    if above > -math.inf:
        wanted += f" above {above:g}"
    if least > -math.inf:
        wanted += f" of at least {least:g}"
    if most < math.inf:
        wanted += f" and at most {most:g}" if least > -math.inf or above > -math.inf else f" of at most {most:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message(f"`{name}` to be {wanted}", typed(value)))
    if not (math.isfinite(value) and least <= value <= most and value > above):
        raise ValueError(message(f"`{name}` to be {wanted}", repr(value)))
    return float(value)


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """`value` is an integer (not a bool) of at least `least`."""
    wanted = "an integer" + (f" of at least {least}" if least is not None else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(f"`{name}` to be {wanted}", typed(value)))
    if least is not None and value < least:
        raise ValueError(message(f"`{name}` to be {wanted}", value))
    return value


def flag(name: str, value: object) -> bool:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(message(f"`{name}` to be True or False", typed(value)))
    return value


def name(what: str, value: object) -> str:
    """A string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(message(f"{what} to be a string", typed(value)))
    if not value:
        raise ValueError(message(f"{what} not to be empty", repr(value)))
    return value


def unused(name: str, where: str, cure: str) -> NoReturn:
    """Refuse an argument that would have no effect."""
    raise ValueError(message(f"no `{name}` with {where}", f"`{name}`", cure))


def known_names(kind: str, names: Collection[str], existing: Collection[str]) -> None:
    """Every name exists; the message names the closest ones."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(message(f"the name of {kind}", typed(name)))
        if name not in existing:
            close = get_close_matches(name, list(existing), n=3, cutoff=0.5)
            cure = f"Close matches: {', '.join(map(repr, close))}." if close else ""
            raise ValueError(message(f"the name of {kind}", repr(name), cure))
