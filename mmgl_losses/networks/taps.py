"""Features from inside any network, and heads on them, without touching the network."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import Self

from mmgl_losses import checks
from mmgl_losses.networks.hooks import (
    Arranged,
    Hooks,
    Selector,
    Size,
    Tap,
    check_calls,
    check_selectors,
    hook,
    resolve,
    tap_names,
)
from mmgl_losses.networks.recorder import images_among, tensors
from mmgl_losses.networks.trace import network


class FeatureTaps:
    """The features of named modules in one forward pass of any network, as a context manager.

    Call the network inside the ``with`` block, then call `read`. Each pass can be read once. The hooks are removed
    after the block. For training under DDP, ``torch.compile`` or ``torch.export`` use `TappedModel`, which returns
    the features from its forward pass.

    Args:
        net: any network that is not compiled yet.
        names: names of modules as in ``net.named_modules()``, or a mapping from names to selectors for modules that
            return more than a tensor: an index, a key, an attribute's name or a function of the output; None takes
            the output itself.
        calls: for modules that run more than once in a pass, which call to take, from 0.

    Raises:
        ValueError: an unknown name, a module in compiled code; from `read`: a module that did not run, ran
            more than once, lost its gradient, or was overwritten in place.
        TypeError: a module returned no tensor.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> with FeatureTaps(net, ["1"]) as taps:
        ...     output = net(torch.zeros(2, 1, 8, 8))
        ...     features = taps.read()
        >>> features["1"].shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(
        self,
        net: nn.Module,
        names: Iterable[str] | Mapping[str, Selector | None],
        *,
        calls: Mapping[str, int] | None = None,
    ) -> None:
        self._net = network("net", net)
        selectors = tap_names(names)
        calls = check_calls(calls, selectors)
        self._paths = {name: resolve(net, name) for name in selectors}
        self._taps = {name: Tap(name, selector, calls.get(name)) for name, selector in selectors.items()}
        self._hooks = Hooks([])

    def __enter__(self) -> Self:
        self._hooks.handles += hook(self._net, self._paths, self._taps)
        for tap in self._taps.values():
            tap.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.remove()
        for tap in self._taps.values():
            tap.open = False
            if error is not None:
                tap.clear()

    def read(self) -> dict[str, Tensor]:
        """The features of the last pass, by name. Each pass can be read once."""
        try:
            return {name: tap.take(self._net, self._paths[name], hung=False) for name, tap in self._taps.items()}
        finally:
            for tap in self._taps.values():
                tap.clear()


class Tapped(NamedTuple):
    """What a tapped model returns: ``output, embeddings = tapped(images)``.

    Code that expects the network's output alone, and asks this for a shape, is told what to do.
    """

    output: Any
    embeddings: dict[str, Any]
    ndim = 0  # like one number: MONAI's sliding window then takes it for one thing, and asks for its shape

    def __getattr__(self, name: str) -> NoReturn:
        """There is no such attribute; if tensors have it, this was taken for one."""
        if not hasattr(Tensor, name) or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        cure = "Unpack it, `output, embeddings = tapped(images)`, or call the network itself, which is `tapped.net`: "
        cure += "a sliding window, an evaluator or a loss on the output alone is given that."
        raise AttributeError(checks.message("a tensor", "what a tapped model returns", cure))


class TappedModel(nn.Module):
    """A network with heads on features inside it, as one module. It works with DDP, ``torch.compile`` and export.

    The forward pass returns the output of the network, and the outputs of the heads by name. ``tapped.net`` is your
    network, unchanged, with its own state_dict. Nothing is kept between passes. `attach_heads` makes the heads for you.

    Args:
        net: any network that is not compiled yet.
        heads: a head for each name of a module as in ``net.named_modules()``.
        output: False leaves the network's output out: None in its place.
        selectors: for modules that return more than a tensor, what to take: an index, a key, an attribute's name or
            a function of the output.
        calls: for modules that run more than once in a pass, which call to take, from 0.

    Shape:
        The arguments of `net` -> ``(output of net, {name: head(feature)})``. MONAI's sliding window and evaluators need
        a single output. Pass them the network: ``sliding_window_inference(x, size, 4, tapped.net)``.

    Raises:
        ValueError: an unknown name, a module in compiled code; in the forward pass: a module that did not run, ran
            more than once, lost its gradient, or was overwritten in place.
        TypeError: a module returned no tensor.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> tapped = TappedModel(net, {"1": nn.Conv2d(4, 8, 1)})
        >>> output, embeddings = tapped(torch.zeros(2, 1, 8, 8))
        >>> embeddings["1"].shape
        torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        net: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        output: bool = True,
        selectors: Mapping[str, Selector] | None = None,
        calls: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.net = network("net", net)
        self.output = checks.flag("output", output)
        check_heads(heads)
        selectors, calls = check_selectors(selectors, heads), check_calls(calls, heads)
        self._paths = {name: resolve(net, name) for name in heads}
        self._taps = {name: Tap(name, selectors.get(name), calls.get(name)) for name in heads}
        self._keys = {name: head_key(name) for name in heads}
        self.heads = nn.ModuleDict({self._keys[name]: network(name, head) for name, head in heads.items()})
        self._hooks = Hooks(hook(net, self._paths, self._taps))
        self._closed = False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The arguments of the network -> (its output or None, {name: head(feature)})."""
        _not_a_replica(self)
        if self._closed:
            _refuse_closed()
        image = self._image(args, kwargs)
        for tap in self._taps.values():
            tap.start(image)
        try:
            output = self.net(*args, **kwargs)
            features = {name: tap.take(self.net, self._paths[name], hung=True) for name, tap in self._taps.items()}
        finally:
            for tap in self._taps.values():
                tap.stop()
        embeddings = {name: self.heads[self._keys[name]](feature) for name, feature in features.items()}
        output = output if self.output else None
        # An exported program is saved without classes.
        return (output, embeddings) if torch.compiler.is_exporting() else Tapped(output, embeddings)

    def _image(self, args: Any, kwargs: Any) -> Size:
        """The shape of the image, where tokens are arranged by it."""
        if not any(isinstance(tap.selector, Arranged) for tap in self._taps.values()):
            return ()
        _, image = images_among(tensors((args, kwargs)))
        return () if image is None else tuple(image.shape)

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
            """As `forward`."""
            ...

    def freeze_unused(self, loss: Tensor) -> list[str]:
        """Freeze every parameter that `loss` does not depend on, so that DDP's and FSDP's defaults work.

        DDP expects a gradient for every parameter that requires one, but a loss on taps does not reach the layers
        behind them. Call this once, on a loss of this model, before you wrap it. It computes no gradient.

        Args:
            loss: any tensor computed from the output of this model, its graph attached.

        Returns:
            The names of the parameters that were frozen here. To undo it, call ``requires_grad_(True)`` on each
            ``tapped.get_parameter(name)``.

        Raises:
            ValueError: `loss` depends on no parameter of this model, or reentrant checkpointing hides them.
        """
        used, seen = set(), set()
        nodes = [checks.tensor("loss", loss).grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            _walkable(node.name())
            used.add(id(getattr(node, "variable", None)))
            nodes.extend(following for following, _ in node.next_functions)
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        _reaches(sum(id(parameter) in used for parameter in trained.values()))
        frozen = [name for name, parameter in trained.items() if id(parameter) not in used]
        for name in frozen:
            trained[name].requires_grad_(False)
        return frozen

    def close(self) -> None:
        """Take the hooks off the network. After that, this model no longer works."""
        self._closed = True
        self._hooks.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def extra_repr(self) -> str:
        """Whether the network's output is returned."""
        return f"output={self.output}"


def head_key(name: str) -> str:
    """The key of a head in ``TappedModel.heads``: names of modules hold dots, which keys of a ModuleDict cannot.

    A slash stands for a dot. Slashes and tildes that are in the name are escaped as in a JSON pointer (RFC 6901).

    Example:
        >>> head_key("decoder.blocks.1")
        'decoder/blocks/1'
    """
    key = name.replace("~", "~0").replace("/", "~1").replace(".", "/")
    return f"{key}/" if not key or hasattr(nn.ModuleDict(), key) else key


def check_heads(value: object) -> Mapping[str, object]:
    """A non-empty mapping from names of modules to modules or what makes them."""
    expected = "`heads` to be a non-empty mapping from names of modules to heads"
    cure = "Write `{name: GlobalHead for name in names}`."
    if not isinstance(value, Mapping):
        raise TypeError(checks.message(expected, type(value).__name__, cure))
    if not value:
        raise ValueError(checks.message(expected, "an empty one", cure))
    for name, item in value.items():
        if not isinstance(item, nn.Module) and not callable(item):
            expected = f"`heads[{name!r}]` to be a module, or to make one from a number of channels"
            raise TypeError(checks.message(expected, type(item).__name__))
    return value


def _not_a_replica(module: nn.Module) -> None:
    """Refuse ``nn.DataParallel``, whose threads would share the taps."""
    if getattr(module, "_is_replica", False):
        expected = "a tapped model in one thread"
        raise ValueError(checks.message(expected, "torch.nn.DataParallel", "Use DistributedDataParallel."))


def _refuse_closed() -> NoReturn:
    """Say that a model has no hooks any more."""
    cure = "Use its network, `tapped.net`, or attach heads again."
    raise ValueError(checks.message("an open tapped model", "one after `close()`", cure))


def _walkable(node: str) -> None:
    """Refuse a graph whose parameters are hidden."""
    if node == "CheckpointFunctionBackward":
        cure = "Set use_reentrant=False in torch.utils.checkpoint."
        raise ValueError(
            checks.message("a graph that shows the parameters", "reentrant activation checkpointing", cure)
        )


def _reaches(count: int) -> None:
    """A loss reaches at least one parameter of the model."""
    if not count:
        cure = "Compute it from the output of this model with gradients on, and before wrapping in DDP or FSDP."
        raise ValueError(checks.message("a loss that depends on parameters of this model", "one that does not", cure))
