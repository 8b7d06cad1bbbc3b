"""Numbers of a table: means over runs, paired differences with intervals and tests, and runs that got stuck."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from examples.mmwhs.messages import message
from examples.mmwhs.train.evaluate import mean, spread

Result = Mapping[str, Any]
METRICS: dict[str, Callable[[Result], float | None]] = {
    "Dice": lambda result: result["pooled"]["dice"]["mean"],
    "mIoU": lambda result: result["pooled"]["iou"]["mean"],
    "PixAcc": lambda result: result["pooled"]["accuracy"],
}
DEAD = 0.01  # Dice of a structure on the validation slices below which the network does not know it
PARKED = 0.5  # of its first training loss, above which a fine-tuning has not got anywhere


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1) of some runs; None where there are too few."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        """Their standard deviation."""
        return spread(self.values)


@dataclass(frozen=True)
class Difference:
    """Paired differences of two methods: runs with the same seed and as many labelled patients.

    Attributes:
        values: One for each pair.
        mean: Of the values.
        low: Lower end of the 95 % confidence interval of the mean, by Student's t.
        high: Its upper end.
        t: p of the paired t-test, two-sided.
        wilcoxon: p of Wilcoxon's signed-rank test, two-sided.
    """

    values: tuple[float, ...]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    t: float | None = None
    wilcoxon: float | None = None


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compares runs pair by pair; intervals and tests need two pairs that are not all alike."""
    values = np.subtract(ours, theirs)
    if len(values) == 0:
        return Difference(())
    given, mean = tuple(map(float, values)), float(values.mean())
    if len(values) < 2:
        return Difference(given, mean)
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    if error == 0:
        return Difference(given, mean, mean, mean)
    t: Any = stats.ttest_rel(ours, theirs)
    wilcoxon: Any = stats.wilcoxon(values)
    return Difference(given, mean, mean - half, mean + half, float(t.pvalue), float(wilcoxon.pvalue))


def best_probe(result: Result) -> tuple[str | None, float | None]:
    """The level where a linear probe before fine-tuning read most, and its Dice; None twice where none was made."""
    there = {level: dice for level, dice in result.get("probe", {}).items() if dice is not None}
    level = max(there, key=lambda level: there[level], default=None)
    return level, None if level is None else there[level]


def scored(result: Result) -> str:
    """Whose patients a result is of: ``"test"`` or ``"validation"``."""
    return result["scored"]


def labelled_text(count: str) -> str:
    """``"0.1"`` as 10 % labelled, ``"3"`` as 3 labelled."""
    return f"{100 * float(count):g} % labelled" if "." in count else f"{count} labelled"


def distinct(titles: Mapping[str, str]) -> dict[str, str]:
    """Titles by id, those that several ids share with the id behind them."""
    several = {title for title in titles.values() if list(titles.values()).count(title) > 1}
    return {name: f"{title} [{name}]" if title in several else title for name, title in titles.items()}


@dataclass(frozen=True)
class Grid:
    """Results by method and by number of labelled patients, in the order of reports.

    Attributes:
        methods: Name -> title.
        counts: What was asked for, as text: 1 is a patient, and 1.0 all of them.
        cells: (name, count) -> seed -> result.
    """

    methods: Mapping[str, str]
    counts: tuple[str, ...]
    cells: Mapping[tuple[str, str], Mapping[int, Result]]

    @classmethod
    def of(cls, results: Iterable[Result], order: Sequence[str] = ()) -> "Grid":
        """Sorts results into a grid; methods in `order` come first, in that order."""
        results = list(results)
        names = sorted({r["name"] for r in results}, key=lambda n: (order.index(n) if n in order else len(order), n))
        titles = {r["name"]: r["method"] for r in results}
        titles = distinct(titles)
        counts = sorted({str(r["asked"]) for r in results}, key=lambda c: ("." in c, float(c)))
        cells: dict[tuple[str, str], dict[int, Result]] = {}
        for result in results:
            cell = cells.setdefault((result["name"], str(result["asked"])), {})
            if result["seed"] in cell:
                got = f"two of {result['name']}, {result['asked']} labelled, seed {result['seed']}"
                raise ValueError(message("one result of every run", got))
            cell[result["seed"]] = result
        return cls({name: titles[name] for name in names}, tuple(counts), cells)

    @property
    def part(self) -> str:
        """Whose patients the results are of, in words."""
        return " and ".join(sorted({scored(result) for each in self.cells.values() for result in each.values()}))

    def results(self, name: str, count: str) -> dict[int, Result]:
        """Seed -> result, by seed."""
        return dict(sorted(self.cells.get((name, count), {}).items()))

    def summary(self, name: str, count: str, metric: str) -> Summary:
        """A cell of the table."""
        values = [METRICS[metric](result) for result in self.results(name, count).values()]
        return Summary(tuple(value for value in values if value is not None))

    def probe(self, name: str, count: str) -> Summary:
        """The linear probes before fine-tuning, each of its run's best level."""
        values = [best_probe(result)[1] for result in self.results(name, count).values()]
        return Summary(tuple(value for value in values if value is not None))

    def probes(self, count: str) -> dict[str, dict[str, float | None]]:
        """Title -> level -> the linear probe before fine-tuning, as the mean over the seeds."""
        rows = {}
        for name, title in self.methods.items():
            probes = [result["probe"] for result in self.results(name, count).values() if "probe" in result]
            if probes:
                found = {level: tuple(p[level] for p in probes if p[level] is not None) for level in probes[0]}
                rows[title] = {level: Summary(values).mean for level, values in found.items()}
        return rows

    def compare(self, name: str, other: str, count: str, metric: str = "Dice") -> Difference:
        """The paired difference of two methods."""
        ours, theirs = self.results(name, count), self.results(other, count)
        pairs = [(METRICS[metric](ours[seed]), METRICS[metric](theirs[seed])) for seed in ours if seed in theirs]
        there = [(one, two) for one, two in pairs if one is not None and two is not None]
        return difference([one for one, _ in there], [two for _, two in there])

    def best(self, names: Iterable[str], count: str, metric: str = "Dice") -> str | None:
        """Which of some methods has the highest mean."""
        means = {name: self.summary(name, count, metric).mean for name in names if name in self.methods}
        there = {name: mean for name, mean in means.items() if mean is not None}
        return max(there, key=lambda name: there[name]) if there else None


def stuck(result: Result) -> list[str]:
    """Why a run looks stuck, in words; nothing where it does not.

    A structure has a Dice of about 0 on the validation slices at the best weights; or the last tenth of the training
    loss of fine-tuning is above half of its first tenth.
    """
    reasons = []
    stage = list(result["stages"].values())[-1]
    logged = stage.get("curves", {})
    for index, name in enumerate(result["structures"].values(), start=1):
        at_best = dict(map(tuple, logged.get(f"validation_dice_{index}", []))).get(stage.get("best_step"))
        if at_best is not None and 0 <= at_best < DEAD:
            reasons.append(f"{name} not found on validation")
    losses = [value for _, value in logged.get("loss", [])]
    tenth = max(1, len(losses) // 10)
    if losses and np.mean(losses[-tenth:]) > PARKED * np.mean(losses[:tenth]):
        reasons.append("training loss parked")
    return reasons


def fell(result: Result) -> list[str]:
    """Structures that a stage lost on validation slices for a while or for good (`Watch`), a few words about each."""
    return [
        f"{result['structures'][value]} fell from {low['from']:.3f} to {low['to']:.3f} by step {low['step']} of {stage}"
        for stage, facts in result["stages"].items()
        for value, low in facts.get("fell", {}).items()
    ]
