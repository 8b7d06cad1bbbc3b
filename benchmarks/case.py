"""What all measurements share: cases (what kind, how large, where), contestants, and the rows they end in."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, Tensor | None]]  #: one call gives a loss and, unless there is no one gradient, that


class Case(NamedTuple):
    """One problem. `batch`, `n` and `d` are what the kind makes of them."""

    kind: str
    batch: int
    n: int
    d: int
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the features."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Contestant:
    """A way of computing it, and what must be known before it is tried."""

    make: Callable[[Any], Step]  #: from the kind's problem
    formula: str = ""
    pair_bytes: float = 0.0  #: a pair, at the peak; 0: memory is not the question
    all_images: bool = True  #: the pairs of all images are held at once
    cuda: bool = False  #: needs a GPU or, where it is `ours`, Triton's interpreter
    ours: bool = False  #: is this library

    def peak_bytes(self, case: Case) -> float:
        """The estimate by which what does not fit is left out."""
        return self.pair_bytes * case.n**2 * (case.batch if self.all_images else 1)


@dataclass(frozen=True)
class Kind:
    """A family of cases: how to make a problem, who takes part, and the truth in float64 by formula."""

    problem: Callable[[Case], Any]
    contestants: dict[str, Contestant]
    exact: Callable[[Any, str], tuple[Tensor, Tensor] | None] | None = None
    exact_pairs: Callable[[Case], float] = field(default=lambda case: 0.0)  #: what the truth costs


@dataclass(frozen=True)
class Row:
    """One contestant at one case: a line of the CSV file. `note` says why something is missing."""

    kind: str
    contestant: str
    formula: str
    batch: int
    n: int
    d: int
    dtype: str
    seconds: float | None = None  #: the median
    first_quartile: float | None = None
    third_quartile: float | None = None
    samples: int = 0  #: that counted
    rejected: int = 0  #: for foreign load
    peak_mib: float | None = None  #: above the inputs
    value_error: float | None = None  #: relative, beside float64
    gradient_error: float | None = None  #: relative, in the Frobenius norm, beside float64
    note: str = ""

    def but(self, **changes: Any) -> "Row":
        """A copy with some fields set."""
        return replace(self, **changes)


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:160]
