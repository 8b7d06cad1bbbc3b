"""What every engine is given and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmgl_losses.contrast.unit import normalise, widened


@dataclass(frozen=True)
class Problem:
    """Contrast of N anchors with M keys, in G independent groups.

    The logit of anchor i and key j is ``scale * anchors[g, i] @ keys[g, j]``, or that of their unit vectors. The keys
    of the anchor's id are its positives, the keys of other ids its negatives; its own key is neither. A row that takes
    no part is zeros: whoever makes a problem has selected the rows, so that NaN in the others cannot spread.
    """

    anchors: Tensor  #: (G, N, D), float32 or float64; see `widened`
    keys: Tensor | None  #: (G, M, D), of the same type; None: the anchors are the keys, and row i is its own key i
    ids: Tensor  #: (G, N), int64 or floating point
    key_ids: Tensor | None  #: (G, M), of the same type; None: `ids`
    self_index: Tensor | None  #: (G, N) int64, with `keys` only: the anchor's own key, -1 for none
    anchor_mask: Tensor | None  #: (G, N) bool: which anchors count
    key_mask: Tensor | None  #: (G, M) bool: which keys count
    key_log_weights: Tensor | None  #: (G, M), of the anchors' type: a key counts as exp of it many
    limit: Tensor | None  #: 0-d: no logit is larger in magnitude, weights aside; None: nothing is known
    scale: float
    tolerance: float | None  #: positives are the keys with ids at most this far away; None: equal ids
    unit: bool  #: anchors and keys stand for their unit vectors; see `normalised`
    precision: torch.dtype  #: in which an engine may round features to multiply them

    def values(self) -> tuple[Any, ...]:
        """All fields in order, as the operation takes them."""
        return tuple(getattr(self, name) for name in NAMES)

    def widened(self) -> "Problem":
        """The same in float32 or better, as the operation takes it."""
        if self.anchors.dtype in (torch.float32, torch.float64):
            return self
        keys = None if self.keys is None else widened(self.keys)
        return replace(self, anchors=widened(self.anchors), keys=keys)

    def normalised(self) -> "Problem":
        """The same of the unit vectors themselves."""
        if not self.unit:
            return self
        keys = None if self.keys is None else normalise(self.keys.contiguous())
        return replace(self, anchors=normalise(self.anchors.contiguous()), keys=keys, unit=False)

    @property
    def own(self) -> bool:
        """The anchors are the keys."""
        return self.keys is None

    @property
    def others(self) -> Tensor:
        """The keys (G, M, D), which may be the anchors."""
        return self.anchors if self.keys is None else self.keys

    @property
    def other_ids(self) -> Tensor:
        """The ids (G, M) of the keys, which may be the anchors."""
        return self.ids if self.key_ids is None else self.key_ids

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.ids.numel() * self.others.shape[1]


NAMES = tuple(field.name for field in fields(Problem))
TENSORS = NAMES.index("limit") + 1  # that many fields hold tensors; the rest are plain values


class Results(NamedTuple):
    """What there is to know of each anchor, each (G, N)."""

    positives: Tensor  #: log-sum-exp over the positives, -inf where there are none
    negatives: Tensor  #: log-sum-exp over the negatives, -inf where there are none
    positive_sum: Tensor  #: sum of the logits of the positives, weights aside; 0 where there are none
    n_positives: Tensor  #: int64
    n_negatives: Tensor  #: int64

    @classmethod
    def nothing(cls, problem: Problem) -> "Results":
        """The results of a problem without any pair."""
        sums = [problem.anchors.new_full(problem.ids.shape, value) for value in (-torch.inf, -torch.inf, 0.0)]
        counts = [torch.zeros_like(problem.ids, dtype=torch.int64) for _ in range(2)]
        return cls(*sums, *counts)

    def masked(self, anchor_mask: Tensor | None) -> "Results":
        """The same with empty results for anchors that do not count or have no such pairs; overwrites its tensors."""
        if anchor_mask is not None:
            for x in self:
                x.masked_fill_(~anchor_mask, 0)
        # The counts say what is empty: a log-sum-exp of -inf may also come from exponentials that are all 0.
        empty = self.n_positives == 0
        self.positives.masked_fill_(empty, -torch.inf)
        self.negatives.masked_fill_(self.n_negatives == 0, -torch.inf)
        self.positive_sum.masked_fill_(empty, 0.0)
        return self


class Upstream(NamedTuple):
    """Gradients of the results, beside the log-sum-exps that an engine needs again, each (G, N).

    Where an anchor has no positives (or negatives), their log-sum-exp is +inf here and its gradient 0. An engine may
    then compute exp(s - lse) anywhere: it is 0 where there is nothing.
    """

    logsumexps: Sequence[Tensor]  #: over positives, over negatives
    gradients: Sequence[Tensor]  #: of these two
    positive_sum: Tensor | None  #: gradient of the sum of positive logits; None: there is none

    def at(self, order: Tensor) -> "Upstream":
        """The same for the anchors that `order` (G, R) names, in its order."""
        lse, gradients = ([x.gather(1, order) for x in values] for values in (self.logsumexps, self.gradients))
        return Upstream(lse, gradients, None if self.positive_sum is None else self.positive_sum.gather(1, order))


Gradients = tuple[Tensor | None, Tensor | None]  # of the anchors and of the keys; None where not asked for


class Engine(Protocol):
    """One way to solve a `Problem`: a module or an object with these four functions and a constant.

    Each sees plain tensors, outside of autograd, autocast and the compiler, and a problem of at least one pair. A row
    of `engines.ENGINES` makes it known.
    """

    NORMALISES: bool  #: it takes problems with `unit`; others are given the unit vectors

    def refuses(self, problem: Problem) -> str | None:
        """The whole message of why this problem cannot be solved here; None if it can."""
        ...

    def suits(self, problem: Problem) -> bool:
        """Whether ``impl="auto"`` may pick this engine, of the first that says so."""
        ...

    def forward(self, problem: Problem) -> Results:
        """The results, in the order of the anchors as given."""
        ...

    def backward(self, problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
        """Gradients of anchors and keys, each where it is `needed`; of the anchors alone where they are the keys."""
        ...
