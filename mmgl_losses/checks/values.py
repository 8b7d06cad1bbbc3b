"""The shape of every message, and checks of plain values."""

import math
from collections.abc import Collection, Sequence
from difflib import get_close_matches


def message(expected: str, got: object, cure: str = "") -> str:
    """``Expected <expected>, got <got>. <cure>``: the one shape of every message."""
    return f"Expected {expected}, got {got}.{' ' + cure if cure else ''}"


def one_of(name: str, value: object, options: Collection[str]) -> None:
    """`value` is one of `options`."""
    if value not in options:
        close = get_close_matches(str(value), list(options), n=1)
        cure = f"Did you mean {close[0]!r}?" if close else ""
        raise ValueError(message(f"`{name}` to be one of {', '.join(map(repr, options))}", repr(value), cure))


def choice(name: str, value: object, options: Collection[object]) -> None:
    """`value` is one of `options`, which need not be strings."""
    if value not in options:
        raise ValueError(message(f"`{name}` to be one of {', '.join(map(repr, options))}", repr(value)))


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
        raise TypeError(message(f"`{name}` to be {wanted}", f"{value!r} of type {type(value).__name__}"))
    if not (math.isfinite(value) and least <= value <= most and value > above):
        raise ValueError(message(f"`{name}` to be {wanted}", repr(value)))
    return float(value)


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """`value` is an integer (not a bool) of at least `least`."""
    wanted = "an integer" + (f" of at least {least}" if least is not None else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(f"`{name}` to be {wanted}", f"{value!r} of type {type(value).__name__}"))
    if least is not None and value < least:
        raise ValueError(message(f"`{name}` to be {wanted}", value))
    return value


def flag(name: str, value: object) -> bool:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(message(f"`{name}` to be True or False", f"{value!r} of type {type(value).__name__}"))
    return value


def known_names(kind: str, names: Collection[str], existing: Collection[str]) -> None:
    """Every name exists; the message names the closest ones."""
    for name in names:
        if name not in existing:
            close = get_close_matches(str(name), list(existing), n=3, cutoff=0.5)
            cure = f"Close matches: {', '.join(map(repr, close))}." if close else ""
            raise ValueError(message(f"the name of {kind}", repr(name), cure))


def channel_plan(name: str, value: object) -> tuple[int, ...]:
    """The channels of the levels of a U-Net: at least one level and the bottleneck."""
    expected = f"`{name}` to be a sequence of at least 2 integers, one per level and one for the bottleneck"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise ValueError(message(expected, repr(value)))
    return tuple(integer(f"{name}[{i}]", item, least=1) for i, item in enumerate(value))
