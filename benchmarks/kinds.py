"""All kinds of cases by name, and which of them a run measures."""

from collections.abc import Sequence

from benchmarks.case import Case, Kind
from benchmarks.levels import DICE, GLOBAL
from benchmarks.local import LOCAL
from benchmarks.training import DECODER_STEP, ENCODER_STEP, FINE_TUNING_STEP

KINDS: dict[str, Kind] = {
    "local": LOCAL,
    "global": GLOBAL,
    "dice": DICE,
    "encoder": ENCODER_STEP,
    "decoder": DECODER_STEP,
    "fine-tuning": FINE_TUNING_STEP,
}
POINTS = (400, 1600, 6400, 25600, 110592)
DIMS = (64, 128)


def images(n: int, device: str) -> int:
    """How many images a local case has."""
    return 8 if device == "cuda" else 4 if n <= 6400 else 1


def cases(kind: str, device: str, *, points: Sequence[int], dims: Sequence[int], dtypes: Sequence[str]) -> list[Case]:
    """The cases of a kind, small ones first."""
    match kind:
        case "local":
            return [Case(kind, images(n, device), n, d, device, t) for n in points for d in dims for t in dtypes]
        case "global":
            return [Case(kind, 1, n, 128, device) for n in (16, 128)]
        case "dice":
            return [Case(kind, 8, 160, 8, device)]
        case _:
            return [Case(kind, 8, 160, 16, device)]
