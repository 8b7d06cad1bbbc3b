"""The table of engines: a row makes one known, to ``impl=`` and, if it says so, to ``impl="auto"``."""

from typing import Literal

from mmgl_losses import checks
from mmgl_losses.contrast import fused, native, reference, tiled
from mmgl_losses.contrast.problem import Engine, Problem

Impl = Literal["auto", "native", "reference", "fused", "tiled"]  # for editors and type checkers
# "auto" takes the first that suits, so the last has to suit always.
ENGINES: dict[str, Engine] = {"native": native, "reference": reference, "fused": fused, "tiled": tiled}


def check_impl(impl: object) -> None:
    """`impl` names an engine, or is ``"auto"``."""
    checks.one_of("impl", impl, ("auto", *ENGINES))


def engine(impl: str, problem: Problem) -> Engine:
    """The engine of this name, which must be able to solve the problem; with ``"auto"`` the first that suits."""
    if impl == "auto":
        return next(found for found in ENGINES.values() if found.suits(problem))
    reason = ENGINES[impl].refuses(problem)
    if reason is not None:
        raise ValueError(reason)
    return ENGINES[impl]
