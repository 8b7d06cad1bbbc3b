"""The one table that the laws of the losses run over: every formula, and problems of every kind for each.

A problem is drawn element by element, so that it shrinks: dimensions, types, implementations, scopes of the pairs and
policies for the background are drawn with it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mmgl_losses.contrast import native
from mmgl_losses.functional import global_contrast, local_supcon, soft_dice
from tests.strategies import label_vectors, matrices

NATIVE = not isinstance(native.library(), str)  # whether it was built here
IMPLEMENTATIONS = ["reference", "tiled", *(["native"] if NATIVE else [])]
GLOBAL = [("global", name) for name in ("nt_xent", "decoupled", "mmgl")]
LOCAL = [("local", name) for name in ("supcon", "supcon_in", "mmgl")]
CONTRAST = GLOBAL + LOCAL
ROWS = [*CONTRAST, ("dice", "")]
SPATIAL = [(1,), (5,), (2, 3), (3, 2), (2, 1, 3), (2, 2, 2)]
IGNORED = 3  # the label that `ignore_index` stands for where a problem has one


@dataclass(frozen=True)
class Problem:
    """Inputs and options of one loss: x (N, D) and ids (N,), or x (B, D, *spatial) and ids (B, *spatial)."""

    kind: str
    x: Tensor
    ids: Tensor  # None for the default instances of a global loss
    options: dict[str, Any]

    def loss(self) -> Tensor:
        return {"global": global_contrast, "local": local_supcon, "dice": soft_dice}[self.kind](
            self.x, self.ids, **self.options
        )

    def but(self, x: Tensor | None = None, ids: Tensor | None = None, **options: Any) -> "Problem":
        """The same with other inputs or options."""
        return replace(
            self,
            x=self.x if x is None else x,
            ids=self.ids if ids is None else ids,
            options={**self.options, **options},
        )

    def result(self) -> tuple[Tensor, Tensor]:
        """Value and gradient."""
        x = self.x.detach().clone().requires_grad_()
        value = self.but(x).loss()
        return value.detach(), torch.autograd.grad(value, x)[0]

    @property
    def points(self) -> Tensor:
        """(groups, n, D): the vectors as rows."""
        return rows(self.x)

    def with_points(self, points: Tensor) -> "Problem":
        """The same with other vectors; their length may change."""
        return self.but(unrows(points, self.x))

    @property
    def tolerance(self) -> dict[str, float]:
        """Of values and gradients of this type, at temperatures of at least 0.25."""
        return {"rtol": 1e-9, "atol": 1e-9} if self.x.dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-4}

    def anchors(self) -> list[tuple[int, int]]:
        """(|P|, |N|) of each anchor that counts, counted in plain Python; of all groups in turn."""
        return [pair for group in self.groups() for pair in group]

    def groups(self) -> list[list[tuple[int, int]]]:
        """(|P|, |N|) of the anchors of each group, without those that have no positive."""
        labels = (
            self.ids.reshape(len(self.ids), -1).tolist() if self.kind == "local" else [[i] for i in self.ids.tolist()]
        )
        scope, size = self.options.get("pairs", "batch"), len(labels)
        together = {
            "image": [[i] for i in range(size)],
            "augmentations": [[i, i + size // 2] for i in range(size // 2)],
            "batch": [list(range(size))],
        }[scope]
        background, ignored = self.options.get("background", "anchor"), self.options.get("ignore_index")
        found = []
        for images in together:
            part = [y for i in images for y in labels[i] if y != ignored]
            keys = [y for y in part if background != "ignore" or y != 0]
            anchors = [y for y in part if background == "anchor" or y != 0]
            counts = [(keys.count(y) - 1, len(keys) - keys.count(y)) for y in anchors]
            found.append([(p, n) for p, n in counts if p > 0])
        return found


def rows(x: Tensor) -> Tensor:
    """(N, D) -> (1, N, D), (B, D, *spatial) -> (B, n, D)."""
    return x[None] if x.ndim == 2 else x.flatten(2).mT


def unrows(points: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows`, for vectors of any length."""
    return points[0] if like.ndim == 2 else points.mT.reshape(like.shape[0], -1, *like.shape[2:])


@st.composite
def problems(draw, row: tuple[str, str], *, exact: bool = False, options: dict[str, Any] | None = None) -> Problem:
    """A problem of a row of the table; `exact`: in float64."""
    kind, formula = row
    dtype = torch.float64 if exact else draw(st.sampled_from([torch.float64, torch.float32]))
    chosen: dict[str, Any] = {}
    if kind != "dice":
        chosen["temperature"] = draw(st.sampled_from([0.25, 1.0]))
        chosen["formula"] = formula
        chosen["impl"] = draw(st.sampled_from(IMPLEMENTATIONS))
    if kind == "global":
        n = draw(st.integers(1, 8))
        x, ids = draw(matrices(n, 3)), draw(label_vectors(n, 4))
    else:
        spatial = draw(st.sampled_from(SPATIAL))
        batch, n = draw(st.integers(1, 2)), math.prod(spatial)
        if kind == "local":
            scopes = ["image", "batch"] + (["augmentations"] if batch == 2 else [])
            chosen["pairs"] = draw(st.sampled_from(scopes))
            chosen["background"] = draw(st.sampled_from(["anchor", "key", "ignore"]))
        else:
            chosen |= {name: draw(st.booleans()) for name in ("include_background", "batch", "squared")}
            chosen["cross_entropy"] = draw(st.sampled_from([0.0, 0.5]))
        fixed = {} if options is None else options
        chosen["ignore_index"] = (
            fixed["ignore_index"] if "ignore_index" in fixed else draw(st.sampled_from([None, IGNORED]))
        )
        kinds = 3 if chosen["ignore_index"] is None else 4
        x = draw(matrices(batch * n, 3)).view(batch, n, 3).mT.reshape(batch, 3, *spatial)
        ids = draw(label_vectors(batch * n, kinds)).view(batch, *spatial)
    return Problem(kind, x.to(dtype), ids, {**chosen, **(options or {})})
