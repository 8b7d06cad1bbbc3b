"""All reports: of runs side by side, and of a table from its results alone. Pages need nothing beside them."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from rich.table import Table
from rich.text import Text

from examples.mmwhs import files
from examples.mmwhs.data.splits import Split
from examples.mmwhs.messages import message, one_of
from examples.mmwhs.study import figures
from examples.mmwhs.study import rows as tables
from examples.mmwhs.study.compare import METRICS, Grid, distinct, fell, labelled_text, scored, stuck
from examples.mmwhs.train.evaluate import mean
from examples.mmwhs.train.fit import curves
from examples.mmwhs.train.watch import in_words

HERE = Path(__file__).parent
PAPER = HERE.parent / "experiments" / "paper.yaml"
BASELINE = "random"
SHOWN = ("random", "global", "global_local", "semicontrast", "mmgl", "mmgl_334")  # in an overlay, as in Fig. 2
ROWS = {"Dice": "dice", "HD95 (mm)": "hd95", "ASSD (mm)": "assd"}


def write_runs(out: Path, runs: Mapping[str, Path]) -> Path:
    """Writes ``curves.png``, ``overlay.png`` and ``report.html`` about finished runs on one data set into a folder.

    Args:
        out: The folder.
        runs: Id -> folder of a run.

    Returns:
        The page.
    """
    metrics = {name: files.read_json(run / "metrics.json") for name, run in runs.items()}
    titles = distinct({name: each["method"] for name, each in metrics.items()})
    first = next(iter(metrics.values()))
    logged: dict[str, dict[tuple[str, str], Any]] = {title: {} for title in titles.values()}
    pictures, dice = {}, {}
    for name, run in runs.items():
        for number, stage in enumerate(metrics[name]["stages"], start=1):
            for what, points in curves(run / f"{number}-{stage}").items():
                if what in ("loss", "validation_dice"):
                    logged[titles[name]][stage, what] = points
        with np.load(run / "overlay.npz", allow_pickle=False) as stored:
            pictures[titles[name]] = dict(stored)
        dice[titles[name]] = {case: mean(each["dice"].values()) for case, each in metrics[name]["volumes"].items()}
    figures.draw_curves(out / "curves.png", logged)
    structures = first["structures"]
    figures.draw_overlay(out / "overlay.png", pictures, dice, list(structures.values()), first["main_plane"])
    folder = next(iter(runs.values()))
    page = _page("report.html.jinja").render(
        runs={titles[name]: each for name, each in metrics.items()},
        first=first,
        headline=headline(metrics),
        best=[best(values) for _, values, _ in headline(metrics)],
        missed={titles[name]: names for name, names in missed(metrics).items()},
        fell={titles[name]: lost for name, each in metrics.items() if (lost := fell(each))},
        colours=dict(zip(structures, figures.palette(len(structures)), strict=True)),
        split=Split.load(folder / "split.json"),
        figures={name: _embedded(out / f"{name}.png") for name in ("curves", "overlay")},
        settings={titles[name]: (run / "config.yaml").read_text(encoding="utf-8") for name, run in runs.items()},
        data=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"],
        rows=ROWS,
        mean=mean,
    )
    files.write_text(out / "report.html", page)
    return out / "report.html"


def best(values: Sequence[float | None]) -> float | None:
    """The highest of several values, to mark."""
    there = [value for value in values if value is not None]
    return max(there) if len(values) > 1 and there else None


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[float | None], str]]:
    """Rows of the main table: what, a number for every run, and the label value of one structure among others."""
    runs = list(metrics.values())
    pooled = [run["pooled"] for run in runs]
    return [
        ("Dice", [each["dice"]["mean"] for each in pooled], ""),
        *((name, [each["dice"]["each"][v] for each in pooled], v) for v, name in runs[0]["structures"].items()),
        ("mIoU", [each["iou"]["mean"] for each in pooled], ""),
        ("PixAcc", [each["accuracy"] for each in pooled], ""),
    ]


def missed(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Structures that a run never finds, by run: such a run may be stuck, and then says little about its method."""
    found = {
        run: [name for value, name in each["structures"].items() if each["pooled"]["dice"]["each"][value] == 0]
        for run, each in metrics.items()
    }
    return {run: names for run, names in found.items() if names}


def console_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """Results of runs beside one another for a terminal, pooled over the slices; names are no markup."""
    part = next(iter(metrics.values()))["scored"]
    shown = Table(title=f"{part.capitalize()} results", title_justify="left")
    shown.add_column(f"pooled over the {part} slices")
    titles = distinct({name: each["method"] for name, each in metrics.items()})
    for title in titles.values():
        shown.add_column(Text(title), justify="right")
    for name, values, structure in headline(metrics):
        mark = None if structure else best(values)
        cells = [Text(score(v), style="bold" if v is not None and v == mark else "") for v in values]
        shown.add_row(Text(f"  {name}" if structure else name, style="" if structure else "bold"), *cells)
    times = [sum(stage["seconds"] for stage in each["stages"].values()) for each in metrics.values()]
    shown.add_row(Text("training time", style="bold"), *map(in_words, times))
    return shown


def write_table(
    out: Path,
    results: Sequence[Mapping[str, Any]],
    pictures: Path,
    *,
    order: Sequence[str] = (),
    baseline: str | None = None,
) -> Path:
    """Writes ``runs.csv``, ``table.csv``, ``table.md``, the figures, and ``report.html``.

    Args:
        out: The folder.
        results: Finished runs on one data set, as a table leaves them.
        pictures: The folder of the overlays' arrays; those that are not there are left out.
        order: Names of methods in the order of the report.
        baseline: The method that all are compared with; random initialisation, or the first, by default.

    Returns:
        The page.

    Raises:
        ValueError: There is no result, the baseline has none, or they are of several data sets, or some of them of test
            patients and some not.
    """
    if len({(result["data"], scored(result)) for result in results}) != 1:
        got = sorted({f"{r['data']} ({scored(r)})" for r in results})
        raise ValueError(message("runs scored on one part of one data set to report on", got))
    grid = Grid.of(results, order)
    counts = [count for count in grid.counts if sum(bool(grid.results(name, count)) for name in grid.methods) > 1]
    counts = counts or list(grid.counts[:1])
    if baseline is None:
        baseline = BASELINE if BASELINE in grid.methods else next(iter(grid.methods))
    one_of("baseline", baseline, grid.methods)
    paper = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    files.write_text(out / "runs.csv", tables.as_csv(tables.run_rows(results)))
    files.write_text(out / "table.csv", tables.as_csv(tables.table_rows(grid, paper, baseline)))
    files.write_text(out / "table.md", tables.markdown(grid, counts, paper, baseline))
    for name in ("runs", "differences", "ablation", "learning", "probe", "overlay"):
        (out / f"{name}.png").unlink(missing_ok=True)
    figures.draw_runs(out / "runs.png", grid, counts)
    figures.draw_differences(out / "differences.png", grid, counts, baseline)
    bars = tables.bars_of(grid)
    at = tables.ablation_count(grid, bars, counts)
    if at is not None:
        theirs = {name: paper["ablation"].get(name, paper["ablation"]["mmgl_334"]) for name in bars}
        figures.draw_ablation(out / "ablation.png", grid, bars, at, theirs)
    figures.draw_curves(out / "learning.png", mean_curves(grid, counts[0]))
    title = f"{labelled_text(counts[0])}: validation Dice of a linear probe"
    figures.draw_probe(out / "probe.png", grid.probes(counts[0]), title)
    shown = overlay(out / "overlay.png", grid, counts, pictures)
    first = next(iter(results))
    page = _page("table.html.jinja").render(
        first=first,
        grid=grid,
        counts=counts,
        metrics=list(METRICS),
        table=tables.body(grid, counts, paper),
        baseline=grid.methods[baseline],
        comparisons=tables.comparisons(grid, counts, baseline),
        stuck={f"{r['name']}-{r['asked']}-{r['seed']}": stuck(r) for r in results if stuck(r)},
        fell={f"{r['name']}-{r['asked']}-{r['seed']}": lost for r in results if (lost := fell(r))},
        runs=tables.run_rows(results),
        paper=paper["citation"],
        ablation=at,
        shown=shown,
        text=labelled_text,
        figures={path.stem: _embedded(path) for path in out.glob("*.png")},
        machines=sorted({r["made"]["machine"] for r in results}),
        versions=sorted({", ".join(f"{k} {v}" for k, v in r["made"]["versions"].items()) for r in results}),
        dates=sorted({r["made"]["date"] for r in results} - {None}),
        settings={
            title: yaml.safe_dump(tables.one_of_method(grid, name)["settings"], sort_keys=False, allow_unicode=True)
            for name, title in grid.methods.items()
        },
    )  # fmt: skip
    files.write_text(out / "report.html", page)
    return out / "report.html"


def mean_curves(grid: Grid, count: str) -> dict[str, dict[tuple[str, str], list[tuple[int, float]]]]:
    """Method -> (stage, what) -> the mean over the seeds of what was logged, at the steps that all have."""
    found: dict[str, dict[tuple[str, str], list[tuple[int, float]]]] = {}
    for name, title in grid.methods.items():
        results = grid.results(name, count).values()
        for stage in dict.fromkeys(stage for result in results for stage in result["stages"]):
            for what in ("loss", "validation_dice"):
                runs = [dict(map(tuple, r["stages"].get(stage, {}).get("curves", {}).get(what, []))) for r in results]
                shared = sorted(set.intersection(*map(set, runs)))
                points = [(step, float(np.mean([run[step] for run in runs]))) for step in shared]
                found.setdefault(title, {})[stage, what] = points
    return found


def overlay(path: Path, grid: Grid, counts: Sequence[str], pictures: Path) -> tuple[str, int] | None:
    """Draws image, truth and predictions for the seed that has most of the methods; gives what it shows."""
    wanted = list(dict.fromkeys(name for name in (*SHOWN, *grid.methods) if name in grid.methods))[: len(SHOWN)]
    names = [name for name in grid.methods if name in wanted]
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for count in counts:
        for name in names:
            for seed, result in grid.results(name, count).items():
                file = pictures / f"{name}-{count}-{seed}-{result['key']}.npz"
                if file.is_file():
                    found.setdefault((count, seed), {})[name] = file
    if not found:
        return None
    most = max(found, key=lambda key: len(found[key]))
    arrays, dice, result = {}, {}, {}
    for name, file in found[most].items():
        with np.load(file, allow_pickle=False) as stored:
            arrays[grid.methods[name]] = dict(stored)
        result = grid.results(name, most[0])[most[1]]
        dice[grid.methods[name]] = {case: mean(each["dice"].values()) for case, each in result["volumes"].items()}
    structures = list(result["structures"].values())
    figures.draw_overlay(path, arrays, dice, structures, result["main_plane"])
    return most


def _page(name: str) -> jinja2.Template:
    """A page's template."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"score": score, "seconds": in_words, "p": _p_value}
    return found.get_template(name)


def score(value: float | None, digits: int = 3) -> str:
    """Three decimals, or a dash for what has no score."""
    return "–" if value is None else f"{value:.{digits}f}"


def _p_value(value: float | None) -> str:
    """A probability as papers write it."""
    return "–" if value is None else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _embedded(path: Path) -> str:
    """A PNG as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
