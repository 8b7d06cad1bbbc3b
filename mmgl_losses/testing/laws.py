"""What a law is, and how a set of laws is read out over one case."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mmgl_losses import checks

Case = TypeVar("Case")


@dataclass(frozen=True)
class Failure:
    """One law that does not hold."""

    law: str
    sentence: str  #: the law, what was expected and what was got

    def __str__(self) -> str:
        return self.sentence


class ConformanceError(AssertionError):
    """All laws that a loss, head or formula breaks, one sentence each.

    Attributes:
        failures: what failed, in the order of the laws.
    """

    def __init__(self, subject: str, failures: Iterable[Failure]) -> None:
        self.failures = tuple(failures)
        lines = [f"{subject} breaks {len({f.law for f in self.failures})} of the laws it is held to:"]
        super().__init__("\n".join([*lines, *(f"- {failure}" for failure in self.failures)]))


@dataclass(frozen=True)
class Law(Generic[Case]):
    """A name, what is expected, and a function from a case to what was got instead (None where the law holds).

    Attributes:
        applies: whether the law says anything about a case.
        first: the others make no sense where this one fails.
    """

    name: str
    expected: str
    got: Callable[[Case], str | None]
    applies: Callable[[Case], bool]
    first: bool


class Laws(dict[str, Law[Case]]):
    """Laws by name, in the order in which they are written down."""

    def add(
        self, name: str, expected: str, *, applies: Callable[[Case], bool] = lambda case: True, first: bool = False
    ) -> Callable[[Callable[[Case], str | None]], Callable[[Case], str | None]]:
        """Decorates the function of a law."""

        def decorate(got: Callable[[Case], str | None]) -> Callable[[Case], str | None]:
            self[name] = Law(name, expected, got, applies, first)
            return got

        return decorate

    def check(self, subject: object, cases: Iterable[tuple[str, Case]], skip: Collection[str]) -> tuple[str, ...]:
        """The names of the laws that were checked, over named cases; raises where any does not hold.

        Whatever a law raises is a failure of it. The global random state is left as it is.
        """
        for name in skip:
            checks.one_of("skip", name, self)
        checked: dict[str, None] = {}
        failures: list[Failure] = []
        for where, case in cases:
            for law in self.values():
                if law.name in skip or not law.applies(case):
                    continue
                checked[law.name] = None
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    try:
                        got = law.got(case)
                    except Exception as error:  # whatever a stranger's code raises
                        words = str(error).strip().splitlines() or ["no message"]
                        got = f"{type(error).__name__}: {words[0].rstrip('.')}"
                if got is not None:
                    name = f"{law.name} ({where})" if where else law.name
                    failures.append(Failure(law.name, f"{name}: {checks.message(law.expected, got)}"))
                    if law.first:
                        break
        if failures:
            raise ConformanceError(_title(subject), failures)
        return tuple(checked)


def _title(subject: object) -> str:
    """What to call a factory or formula in a message."""
    while isinstance(subject, partial):
        subject = subject.func
    return getattr(subject, "__name__", type(subject).__name__)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that are always the same, without the global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scattered(x: Tensor) -> Tensor:
    """The same values in another order of memory."""
    other = x.new_empty((*reversed(x.shape), 2))[..., 0].permute(*reversed(range(x.ndim)))
    return other.copy_(x)


def differs(one: Tensor, other: Tensor, *, relative: float) -> str | None:
    """How far two results are apart, where that is more than `relative` of their size (at least of 1e-2)."""
    if one.shape != other.shape:
        return f"the shape {tuple(one.shape)} instead of {tuple(other.shape)}"
    if not one.numel():
        return None
    one, other = one.detach().double(), other.detach().double()
    limit = relative * max(other.abs().max().item(), 1e-2)
    gap = (one - other).abs().max().item()
    if gap <= limit:  # False for NaN
        return None
    if one.ndim == 0:
        return f"{one.item():.6g} instead of {other.item():.6g}"
    return f"a difference of {gap:.3g} in numbers up to {other.abs().max().item():.3g}"


def not_finite(what: str, x: Tensor) -> str | None:
    """Says how many numbers of `x` are NaN or infinite."""
    if x.isfinite().all():
        return None
    return (
        f"{what} {x.item()}" if x.ndim == 0 else f"{what} with {int((~x.isfinite()).sum())} numbers that are not finite"
    )
