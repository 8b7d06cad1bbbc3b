"""Losses and heads by name: those of the package, registered ones, and those of installed distributions.

A distribution offers its own through the entry-point groups ``mmgl_losses.losses`` and ``mmgl_losses.heads``. They
are looked up on first use and loaded when created, so a broken one cannot break an import.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from mmgl_losses import checks, losses, networks

Kind = Literal["loss", "head"]  # for editors and type checkers
GROUPS = {"loss": "mmgl_losses.losses", "head": "mmgl_losses.heads"}
_BUILT_IN: dict[str, dict[str, Callable[..., Any]]] = {
    "loss": losses.LOSSES,
    "head": networks.HEADS,
}
_registered: dict[str, dict[str, Callable[..., Any]]] = {"loss": {}, "head": {}}


def register_loss(name: str, factory: Callable[..., Any]) -> None:
    """Make a loss known by name in this process; a name that is taken is a ValueError."""
    _register("loss", name, factory)


def register_head(name: str, factory: Callable[..., Any]) -> None:
    """Make a head known by name in this process; a name that is taken is a ValueError."""
    _register("head", name, factory)


def available(kind: Kind) -> tuple[str, ...]:
    """The names of all losses (``"loss"``) or heads (``"head"``), sorted.

    Example:
        >>> "GlobalHead" in available("head")
        True
    """
    checks.one_of("kind", kind, GROUPS)
    return tuple(sorted({*_BUILT_IN[kind], *_registered[kind], *_installed(kind)}))


def create(kind: Kind, name: str, *arguments: Any, **options: Any) -> Any:
    """Build the loss or head `name`.

    Args:
        kind: ``"loss"`` or ``"head"``.
        name: one of `available`.
        *arguments: positional arguments of its factory.
        **options: keyword arguments of its factory.

    Raises:
        ValueError: the name is unknown, or two distributions offer it.
        RuntimeError: the plug-in that offers it cannot be loaded.

    Example:
        >>> create("head", "SegmentationHead", 16, 4).out_channels
        4
    """
    checks.one_of("kind", kind, GROUPS)
    checks.name(f"the name of a {kind}", name)
    for known in (_BUILT_IN[kind], _registered[kind]):
        if name in known:
            return known[name](*arguments, **options)
    checks.one_of(kind, name, available(kind))
    point = _installed(kind)[name]
    try:
        factory = point.load()
    except Exception as error:
        expected = f"the {kind} {name!r} of {_owner(point)} to load from {point.value}"
        raise RuntimeError(checks.message(expected, repr(error))) from error
    return factory(*arguments, **options)


def _register(kind: Kind, name: str, factory: Callable[..., Any]) -> None:
    checks.name(f"the name of a {kind}", name)
    if name in available(kind):
        raise ValueError(checks.message(f"a new name for a {kind}", repr(name), "It is taken."))
    if not callable(factory):
        raise TypeError(checks.message(f"a callable that makes the {kind}", type(factory).__name__))
    _registered[kind][name] = factory


def _installed(kind: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    owners = dict.fromkeys(_BUILT_IN[kind], "mmgl-losses")
    for point in entry_points(group=GROUPS[kind]):
        owner = _owner(point)
        if point.name in owners:
            expected = f"one distribution to offer the {kind} {point.name!r}"
            raise ValueError(checks.message(expected, f"it from {owners[point.name]} and {owner}", "Uninstall one."))
        owners[point.name], found[point.name] = owner, point
    return found


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"
