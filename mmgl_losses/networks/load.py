"""Weights of one network in another that differs from it in places: another number of classes, another head."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mmgl_losses import checks
from mmgl_losses.networks.trace import network

Size = tuple[int, ...]
_SHOWN = 8  # names in a line of the report; more are counted


@dataclass(frozen=True)
class Loaded:
    """What `load_matching` did; ``print`` shows it.

    Attributes:
        loaded: names whose values are now those of the weights.
        other_shape: names that are in both, with the shape in the weights and the shape in the network.
        not_given: names of the network that the weights lack; they stay as they were.
        not_used: names of the weights that the network lacks.
    """

    loaded: tuple[str, ...]
    other_shape: Mapping[str, tuple[Size, Size]]
    not_given: tuple[str, ...]
    not_used: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.other_shape) + len(self.not_given)
        lines = [f"Loaded {len(self.loaded)} of the {total} tensors of the network."]
        shapes = [f"{name} {given} -> {wanted}" for name, (given, wanted) in self.other_shape.items()]
        for what, names in (
            ("Left as they were, of another shape in the weights", shapes),
            ("Left as they were, not in the weights", self.not_given),
            ("Not used, not in the network", self.not_used),
        ):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{what}: {', '.join(names[:_SHOWN])}{more}.")
        return "\n".join(lines)


def load_matching(net: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
    """Load the weights that fit by name and shape, and report what was loaded, what was not, and why.

    Use it for weights of a network with another number of classes, or without its last layer. What does not fit keeps
    its values. If every tensor has to fit, use ``net.load_state_dict(weights)``.

    Args:
        net: the network to load into; its values are overwritten in place.
        weights: a state_dict, as ``net.state_dict()`` or ``safetensors.torch.load_file`` give it.

    Returns:
        What was loaded. Print it, or check it with ``assert not loaded.not_given``.

    Raises:
        TypeError: `weights` is no mapping from names to tensors.
        ValueError: not one parameter fits; nothing is changed then.

    Example:
        >>> old, new = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> print(load_matching(new, old.state_dict()))
        Loaded 2 of the 2 tensors of the network.
    """
    own = network("net", net).state_dict()
    given = _checked(weights)
    shapes = {name: (_shape(given[name]), _shape(value)) for name, value in own.items() if name in given}
    fits = {name: given[name] for name, (there, here) in shapes.items() if there == here}
    other_shape = {name: both for name, both in shapes.items() if name not in fits}
    if not fits.keys() & {name for name, _ in net.named_parameters()}:
        raise ValueError(_nothing_fits(own, given, other_shape))
    net.load_state_dict(fits, strict=False)
    absent = tuple(name for name in own if name not in given)
    return Loaded(tuple(fits), other_shape, absent, tuple(name for name in given if name not in own))


def _checked(weights: object) -> Mapping[str, Tensor]:
    expected = "`weights` to be a mapping from names to tensors, a state_dict"
    if not isinstance(weights, Mapping):
        cure = "Load the file first, with `torch.load(path, weights_only=True)` or `safetensors.torch.load_file(path)`."
        raise TypeError(checks.message(expected, checks.typed(weights), cure))
    wrong = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        held = [name for name in wrong if isinstance(weights[name], Mapping)]
        cure = f"Give what is in it, such as `weights[{held[0]!r}]`." if held else ""
        got = f"{type(weights[wrong[0]]).__name__} under {wrong[0]!r}"
        raise TypeError(checks.message(expected, got, cure))
    return weights


def _shape(value: object) -> Size:
    """The shape of a tensor; of one that a lazy module has not made yet, none."""
    return tuple(value.shape) if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) else ()


def _nothing_fits(own: Mapping[str, Tensor], given: Mapping[str, Tensor], other: Mapping[str, object]) -> str:
    """The message, with the prefix that one side has and the other lacks, where that is it."""
    expected = "weights of which at least one parameter fits the network by name and shape"
    if other:
        name, both = next(iter(other.items()))
        return checks.message(expected, f"none: {name!r} has another shape there, {both}")
    if not given:
        return checks.message(expected, "an empty mapping")
    if prefix := _prefix(given, own):
        cure = f"Take it off: `{{k.removeprefix({prefix!r}): v for k, v in weights.items()}}`."
        name = next(name for name in given if name.startswith(prefix))
        return checks.message(expected, f"none: they begin with {prefix!r}, as {name!r} does", cure)
    if prefix := _prefix(own, given):
        cure = f"They are those of `net.{prefix[:-1]}`: load them into that."
        return checks.message(expected, f"none: no name begins with {prefix!r}", cure)
    if not own:
        return checks.message(expected, "a network without parameters")
    return checks.message(expected, f"none: names such as {next(iter(given))!r} beside {next(iter(own))!r}")


def _prefix(longer: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> str:
    """What stands before `names` in `longer`, with the dot: ``module.``; nothing unless most tensors fit then."""
    starts = {name[: i + 1] for name in longer for i, letter in enumerate(name) if letter == "."}
    best, most = "", 0.5
    for start in sorted(starts):
        behind = {name.removeprefix(start): value for name, value in longer.items() if name.startswith(start)}
        fit = sum(_shape(names[name]) == _shape(value) for name, value in behind.items() if name in names)
        if (share := fit / min(len(behind), len(names))) > most:
            best, most = start, share
    return best
