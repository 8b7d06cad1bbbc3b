"""The numbers of a table as rows: for CSV files, for Markdown, and for the tables of its page."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from examples.mmwhs.study.compare import METRICS, Difference, Grid, Summary, best_probe, distinct, labelled_text, stuck
from examples.mmwhs.train.evaluate import DISTANCES

T = TypeVar("T", Summary, Difference)
OTHERS = ("random", "global", "global_local", "semicontrast", "pcl", "moco", "random_ds", "supervised_planes")
BARS = ("random", "random_ds", "global_multiscale", "global_multiview")  # and MMGL with their portfolio


def _paper(paper: Mapping[str, Any], name: str, count: str) -> Sequence[float | None]:
    """The paper's Dice, mIoU and PixAcc, or nothing three times."""
    there = paper["table"].get(name, {}) if "." in count else {}
    return there.get(float(count), (None, None, None))


def one_of_method(grid: Grid, name: str) -> Mapping[str, Any]:
    """Any result of a method."""
    return next(iter(next(each for (method, _), each in grid.cells.items() if method == name).values()))


def bars_of(grid: Grid) -> list[str]:
    """The methods of Fig. 3 that are there, the last of them MMGL with the portfolio of the others."""
    bars = [name for name in BARS if name in grid.methods]
    full = [name for name in ("mmgl_334", "mmgl") if name in grid.methods] if "random_ds" in bars else []
    return bars + [name for name in full if _portfolio(grid, name) == _portfolio(grid, "random_ds")][:1]


def _portfolio(grid: Grid, name: str) -> Any:
    """The weights of a method's fine-tuning."""
    return one_of_method(grid, name)["settings"]["method"]["stages"][-1]["loss"]["options"]["weights"]


def ablation_count(grid: Grid, bars: Sequence[str], counts: Sequence[str]) -> str | None:
    """The number of labelled patients of the bar chart: the paper's 0.2, or the first that has all bars."""
    fitting = [count for count in counts if len(bars) > 2 and all(grid.results(name, count) for name in bars)]
    return "0.2" if "0.2" in fitting else next(iter(fitting), None)


def run_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for every run; a structure called as another column is has its label value behind its name."""
    rows = []
    for result in sorted(results, key=lambda r: (str(r["asked"]), r["name"], r["seed"])):
        head = {"method": result["name"], "labelled": result["asked"], "seed": result["seed"]}
        head |= {metric: _rounded(value(result)) for metric, value in METRICS.items()}
        tail: dict[str, Any] = {"Dice by volume": _rounded(result["per_volume"]["dice"]["mean"]["mean"])}
        for name in DISTANCES:  # results of earlier versions have none
            if name in result["per_volume"]:
                tail[f"{name} by volume (mm)"] = _rounded(result["per_volume"][name]["mean"]["mean"])
        level, dice = best_probe(result)
        tail |= {"probe": _rounded(dice), "probe: level": level}
        tail["seconds"] = round(sum(stage["seconds"] for stage in result["stages"].values()))
        tail["stuck"] = "; ".join(stuck(result))
        names, taken = distinct(result["structures"]), {*head, *tail}
        scores = {
            f"{names[value]} [{value}]" if names[value] in taken else names[value]: _rounded(dice)
            for value, dice in result["pooled"]["dice"]["each"].items()
        }
        rows.append(head | scores | tail)
    return rows


def table_rows(grid: Grid, paper: Mapping[str, Any], baseline: str) -> list[dict[str, Any]]:
    """A row for every method, number of labelled patients and metric, with everything there is to say about it."""
    rows = []
    for (name, count), results in grid.cells.items():
        best = grid.best((other for other in OTHERS if other != name), count)
        for place, metric in enumerate(METRICS):
            summary = grid.summary(name, count, metric)
            row = {"method": name, "labelled": count, "metric": metric, "runs": len(summary.values)}
            row |= {"mean": _rounded(summary.mean), "sd": _rounded(summary.sd)}
            row["stuck"] = sum(bool(stuck(result)) for result in results.values())
            row["paper"] = _paper(paper, name, count)[place]
            for other, label in ((baseline, "baseline"), (best, "best other")):
                there = other is not None and other in grid.methods and other != name
                found = grid.compare(name, other, count, metric) if there and other else Difference(())
                row |= {f"{label}": other if there else None, f"{label}: pairs": len(found.values)}
                row |= {
                    f"{label}: {key}": _rounded(getattr(found, key)) for key in ("mean", "low", "high", "t", "wilcoxon")
                }
            rows.append(row)
    return rows


def body(grid: Grid, counts: Sequence[str], paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the main table: our cells and the paper's, the best mean of each column marked."""
    rows = []
    for name, title in grid.methods.items():
        cells = []
        for count in counts:
            theirs = _paper(paper, name, count)
            for place, metric in enumerate(METRICS):
                summary = grid.summary(name, count, metric)
                top = grid.best(grid.methods, count, metric)
                best = top is not None and summary.mean == grid.summary(top, count, metric).mean  # all that are equal
                cells.append({"mean": summary.mean, "sd": summary.sd, "n": len(summary.values), "best": best,
                              "paper": theirs[place], "metric": metric})  # fmt: skip
        alone = [count for count in grid.counts if count not in counts and grid.results(name, count)]
        own = [(count, *(grid.summary(name, count, metric) for metric in METRICS)) for count in alone]
        rows.append({"name": name, "title": title, "cells": cells, "own": own})
    return rows


def comparisons(grid: Grid, counts: Sequence[str], baseline: str) -> list[dict[str, Any]]:
    """Paired differences in Dice to the baseline and to the best other method."""
    rows = []
    for count in counts:
        for name, title in grid.methods.items():
            best = grid.best((other for other in OTHERS if other != name), count)
            for other in dict.fromkeys((baseline, best)):
                if other in grid.methods and other != name and other is not None:
                    found = grid.compare(name, other, count)
                    if found.values:
                        kind = "best other" if other != baseline else ""
                        rows.append({"count": count, "title": title, "other": grid.methods[other], "kind": kind,
                                     "found": found})  # fmt: skip
    return rows


def markdown(grid: Grid, counts: Sequence[str], paper: Mapping[str, Any], baseline: str) -> str:
    """Tables as Markdown: mean ± standard deviation (runs), the paper's beside ours; differences; linear probes."""
    head = ["method", *(f"{metric}, {labelled_text(count)}" for count in counts for metric in METRICS)]
    rows = body(grid, counts, paper)
    lines = _table(head, [[row["title"], *map(_cell, row["cells"])] for row in rows])
    for row in rows:
        for count, dice, iou, accuracy in row["own"]:
            means = ", ".join(f"{n} {_number(s.mean)}" for n, s in zip(METRICS, (dice, iou, accuracy), strict=True))
            lines.append(f"\n{row['title']} ({labelled_text(count)}): {means} ({len(dice.values)}).")
    lines.append(
        f"\nMean ± standard deviation (runs); in square brackets, where there is one, {paper['citation']}, on MM-WHS.\n"
    )
    titles = [labelled_text(count) for count in counts]
    others = {
        name: [grid.compare(name, baseline, count) for count in counts] for name in grid.methods if name != baseline
    }
    if cells := _cells(grid, others, _difference):
        lines += _table([f"difference to {grid.methods[baseline]}", *titles], cells)
        lines.append("\nMean paired difference in Dice (95 % interval; pairs).")
    probes = {name: [grid.probe(name, count) for count in counts] for name in grid.methods}
    if cells := _cells(grid, probes, _probe):
        lines += ["", *_table(["linear probe before fine-tuning", *titles], cells)]
        lines.append("\nDice on validation slices, of each run's best level: mean (runs).")
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; a bar or a new line in a name ends no cell."""
    plain = [[" ".join(cell.split()).replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (plain[0], ["---"] * len(head), *plain[1:])]


def _cells(grid: Grid, found: Mapping[str, Sequence[T]], text: Callable[[T], str]) -> list[list[str]]:
    """A row of texts for every method that has anything."""
    return [[grid.methods[name], *map(text, each)] for name, each in found.items() if any(one.values for one in each)]


def _cell(cell: Mapping[str, Any]) -> str:
    text = _number(cell["mean"])
    text += "" if cell["sd"] is None else f" ± {cell['sd']:.3f}"
    text = f"**{text}**" if cell["best"] and cell["mean"] is not None else text
    text += f" ({cell['n']})" if cell["metric"] == "Dice" and cell["n"] else ""
    return text + ("" if cell["paper"] is None else f" [{cell['paper']:.3f}]")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _probe(found: Summary) -> str:
    return "–" if found.mean is None else f"{found.mean:.3f} ({len(found.values)})"


def _difference(found: Difference) -> str:
    if found.mean is None:
        return "–"
    between = "" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}; "
    return f"{found.mean:+.3f} ({between}{len(found.values)})"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with all columns that any of them has."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
