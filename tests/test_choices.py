"""The names that a type checker knows are those that are accepted: what an option refuses, it lists the rest of."""

import inspect
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import mmgl_losses
from mmgl_losses import functional, plugins, testing

X, LABELS = torch.rand(4, 3, 4, 4), torch.randint(3, (4, 4, 4))
# What has an option that takes one of a few names, and how to call it.
CALLS: dict[Callable[..., Any], Callable[..., Any]] = {
    mmgl_losses.MultiScaleGlobalContrast: mmgl_losses.MultiScaleGlobalContrast,
    mmgl_losses.MultiScaleLocalSupCon: mmgl_losses.MultiScaleLocalSupCon,
    mmgl_losses.UNet: mmgl_losses.UNet,
    functional.pair_logsumexp: lambda **o: functional.pair_logsumexp(X[:, 0, 0], LABELS[0, 0], temperature=1.0, **o),
    functional.pair_terms: lambda **o: functional.pair_terms(X[:, 0, 0], LABELS[0, 0], temperature=1.0, **o),
    functional.global_contrast: lambda **o: functional.global_contrast(X[:, 0, 0], **o),
    functional.local_supcon: lambda **o: functional.local_supcon(X, LABELS, **o),
    functional.soft_dice: lambda **o: functional.soft_dice(X, LABELS, **o),
    plugins.available: plugins.available,
    plugins.create: lambda kind: plugins.create(kind, "none"),
    testing.check_loss: lambda **o: testing.check_loss(mmgl_losses.MultiScaleLocalSupCon, **o),
}


def names_of(hint: object) -> set[str] | None:
    """The names in a type, beside which others may stand: ``Literal["a", "b"] | None``."""
    found = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return {name for part in found for name in get_args(part)} or None


def typed(face: Callable[..., Any]) -> dict[str, set[str]]:
    hints = get_type_hints(face.__init__ if inspect.isclass(face) else face)
    return {option: names for option, hint in hints.items() if (names := names_of(hint))}


def test_all_of_them_are_looked_at():
    modules = (mmgl_losses, functional, plugins, testing)
    faces = {
        face
        for module in modules
        for face in vars(module).values()
        if inspect.isfunction(face) or inspect.isclass(face)
    }
    own = {face for face in faces if face.__module__.startswith("mmgl_losses.") and face.__name__[0] != "_"}
    assert {face for face in own if typed(face)} == set(CALLS)


@pytest.mark.parametrize(
    ("face", "option"), [(f, o) for f in CALLS for o in typed(f)], ids=lambda x: getattr(x, "__name__", x)
)
def test_type_and_check_have_the_same_names(face, option):
    with pytest.raises(ValueError, match=f"Expected `{option}` to be one of .*, got 'no such name'") as refused:
        CALLS[face](**{option: "no such name"})
    listed = str(refused.value).partition(" to be one of ")[2].partition(", got ")[0]
    assert set(re.findall(r"'(\w+)'", listed)) == typed(face)[option]
