"""The report: its numbers are those of the metrics, and the page needs nothing beside it."""

import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Patch
from rich.console import Console

from examples.mmwhs import files
from examples.mmwhs.data.splits import Split
from examples.mmwhs.study import figures, report, rows
from examples.mmwhs.study.compare import Grid
from examples.mmwhs.study.figures import smooth
from examples.mmwhs.train.fit import curves
from examples.mmwhs.train.watch import in_words

STRUCTURES = {"7": "left <ventricle>", "2": "aorta [red]"}
VERSIONS = {"python": "3.11", "torch": "2.0"}


def metrics(method: str, dice: float, structures: dict[str, str] = STRUCTURES) -> dict[str, Any]:
    """Metrics as a run leaves them; the second structure is not in the second volume."""
    values = list(structures)
    each = dict.fromkeys(values, dice) | {values[0]: dice + 0.1, values[-1]: dice - 0.1}
    spread = {value: {"mean": x, "sd": 0.025} for value, x in each.items()}
    volume = {"mean": {"mean": dice, "sd": 0.025}, "each": {**spread, values[-1]: {"mean": dice, "sd": None}}}
    there, gone = dict.fromkeys(values, dice), {**dict.fromkeys(values, dice), values[-1]: None}
    stage = {"steps": 20, "seconds": 61.4, "slices": 9, "patients": 2, "validation_dice": 0.5, "best_step": 10}
    return {
        "method": method, "data": "tiny", "main_plane": "transaxial", "note": "A note & a licence.", "scored": "test",
        "structures": structures, "labelled": ["p1"], "seed": 3, "parameters": 12345, "stages": {"finetune": stage},
        "made": {"date": "2026-01-02", "machine": "a machine", "versions": VERSIONS},
        "pooled": {"dice": {"mean": dice, "each": each}, "iou": {"mean": dice / 2, "each": each}, "accuracy": 0.9},
        "per_volume": {"dice": volume, "hd95": volume, "assd": volume},
        "volumes": {"v1": {"dice": there}, "v2": {"dice": gone}},
    }  # fmt: skip


def folder(root: Path, method: str, dice: float, structures: dict[str, str] = STRUCTURES) -> Path:
    """What a finished run leaves for its report."""
    (root / "1-finetune" / "curves" / "from-step-0").mkdir(parents=True)
    lines = ["epoch,loss,step,validation_dice", "0,0.9,4,", "0,0.8,9,", "0,,9,0.4", "1,0.5,14,", "1,,19,0.5"]
    (root / "1-finetune" / "curves" / "from-step-0" / "metrics.csv").write_text("\n".join(lines) + "\n")
    files.write_json(root / "metrics.json", metrics(method, dice, structures))
    (root / "config.yaml").write_text(yaml.safe_dump({"data": "/data/tiny", "method": {"title": method}}))
    Split(("p1", "p2"), ("p3",), ("v1", "v2"), ("p1",)).save(root / "split.json")
    picture: dict[str, np.ndarray] = {}
    for case in ("v1", "v2"):
        label = np.zeros((30, 40), np.uint8)
        label[5:20, 5:20], label[20:28, 20:35] = 1, 2
        picture |= {f"{case}/image": np.random.default_rng(0).random((30, 40), np.float32)}
        picture |= {f"{case}/truth": label, f"{case}/prediction": label[::-1]}
        picture |= {f"{case}/spacing": np.array([1.0, 2.0]), f"{case}/slice": np.array(7)}
    np.savez(root / "overlay.npz", **picture)
    return root


class Page(HTMLParser):
    """What of a page could be loaded from elsewhere, and its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "ventricle")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return report.write_runs(
        root, {"random": folder(root / "random", "Random", 0.4), "mmgl": folder(root / "mmgl", "MMGL", 0.6)}
    )


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    addresses = Page(text).addresses
    assert len(addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"url\(|@import", text)


def test_the_tables_hold_the_numbers(page: Path) -> None:
    rows = Page(page.read_text()).rows
    assert ["Dice", "0.400", "0.600"] in rows
    assert [STRUCTURES["7"], "0.500", "0.700"] in rows
    assert ["mIoU", "0.200", "0.300"] in rows
    assert ["PixAcc", "0.900", "0.900"] in rows
    assert [STRUCTURES["2"], "0.400 ± –", "0.600 ± –"] in rows  # one volume has no spread
    assert ["v2", "0.400", "0.600"] in rows  # the mean of the structures that are there
    assert ["MMGL: finetune", "20", "9", "2", "0.500", "1 min 01 s"] in rows


def test_the_page_says_who_was_labelled_and_whose_data_it_is(page: Path) -> None:
    text = page.read_text()
    assert "A note &amp; a licence." in text
    assert re.search(r"labels of 1 of\s+2 training patients, scored on 2\s+test patients", text)
    assert "2026-01-02, a machine" in text
    assert "torch 2.0" in text
    assert "several seeds" in text


def test_figures_are_drawn(page: Path) -> None:
    for name in ("curves", "overlay"):
        picture = imread(page.parent / f"{name}.png")
        assert min(picture.shape[:2]) > 250
        assert picture[..., :3].std() > 0.05
    overlay = imread(page.parent / "overlay.png")[..., :3]
    wanted = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in figures.palette(2)]
    for colour in wanted:  # the legend shows each structure in its colour
        assert (np.abs(overlay - colour).max(axis=2) < 0.01).sum() > 50


def test_the_table_of_the_terminal_has_the_same_rows() -> None:
    both = {name: metrics(name.title(), dice) for name, dice in (("random", 0.4), ("mmgl", 0.6))}
    shown = report.console_table(both)
    assert [str(column.header) for column in shown.columns][1:] == ["Random", "Mmgl"]
    assert shown.row_count == len(report.headline(both)) + 1
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    text = console.export_text()
    assert "aorta [red]" in text  # no markup
    assert re.search(r"aorta \[red\] +│ +0.300 +│ +0.500", text)


def test_methods_of_one_title_and_structures_of_any_name_lose_no_score() -> None:
    odd = {"1": "mean", "2": "accuracy", "3": "dice"}
    both = {name: metrics("Same", dice, odd) for name, dice in (("a", 0.4), ("b", 0.6))}
    rows = {name: values for name, values, _ in report.headline(both)}
    assert rows["Dice"] == [0.4, 0.6]
    assert rows["mean"] == pytest.approx([0.5, 0.7])
    assert rows["dice"] == pytest.approx([0.3, 0.5])
    assert [str(c.header) for c in report.console_table(both).columns][1:] == ["Same [a]", "Same [b]"]


COUNTS = (1, 2, 12, 40)


@pytest.mark.parametrize("count", COUNTS)
def test_no_two_looks_are_alike(count: int) -> None:
    assert len(set(figures.palette(count))) == count
    looks = figures.looks([str(i) for i in range(count)])
    assert len(looks) == len({tuple(sorted(look.items())) for look in looks.values()}) == count


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of their files."""
    saved: list[Figure] = []
    original = figures.save

    def save(figure: Figure, path: Path) -> None:
        saved.append(figure)
        original(figure, path)

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(figures, "DPI", 60)  # quicker
    return saved


def legend_of(figure: Figure) -> list[tuple[str, Any]]:
    """Texts of a figure's legend with their colours, all of them within its edges."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
    assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    handles = [h.get_facecolor() if isinstance(h, Patch) else h.get_color() for h in legend.legend_handles]
    return list(zip([text.get_text() for text in legend.get_texts()], handles, strict=True))


def names(count: int) -> list[str]:
    return [f"${i}^ a method of a long name, number {i}" for i in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_every_method_has_its_line_and_its_place_in_the_legend(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    curves = {name: {("global", "loss"): [(1, 0.9), (2, i / 50)]} for i, name in enumerate(names(count))}
    figures.draw_curves(tmp_path / "c.png", curves)
    assert len(drawn[0].axes[0].lines) == count
    assert [text for text, _ in legend_of(drawn[0])] == names(count)


def test_a_curve_that_methods_share_has_the_colours_of_all(tmp_path: Path, drawn: list[Figure]) -> None:
    points = [(step, step / 9) for step in range(1, 10)]
    longer = {("finetune", "loss"): points, ("selftrain", "loss"): points}
    figures.draw_curves(tmp_path / "c.png", {"a": {("finetune", "loss"): points}, "b": longer, "c": longer})
    first, second = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in (first, second)] == ["finetune: loss", "selftrain: loss"]
    assert len(first.lines) == 3
    pixels = imread(tmp_path / "c.png")[..., :3]
    panel = pixels[: int(0.8 * len(pixels)), : pixels.shape[1] // 2].reshape(-1, 3)  # without the legend
    for look in figures.looks(["a", "b", "c"]).values():
        assert (np.abs(panel - to_rgb(look["color"])).max(1) < 0.1).sum() > 10


@pytest.mark.parametrize("count", COUNTS)
def test_every_structure_and_method_of_an_overlay_is_there(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    label = (np.arange(30 * 40).reshape(30, 40) % (count + 1)).astype(np.uint8)
    picture = {"v/image": np.ones((30, 40), np.float32), "v/truth": label, "v/prediction": label,
               "v/spacing": np.array([1.0, 1.0]), "v/slice": np.array(3)}  # fmt: skip
    methods = names(min(count, 4))
    dice = {name: {"v": 0.5} for name in methods}
    figures.draw_overlay(tmp_path / "o.png", dict.fromkeys(methods, picture), dice, names(count), "transaxial")
    handles = legend_of(drawn[0])
    assert [text for text, _ in handles] == names(count)
    assert len({colour for _, colour in handles}) == count
    assert len(drawn[0].axes) == 2 + len(methods)
    truth = drawn[0].axes[1].images[1]  # in the colours of the legend
    for value, (_, colour) in enumerate(handles):
        assert truth.cmap(truth.norm(value))[:3] == pytest.approx(colour[:3])
    first = imread(tmp_path / "o.png")[..., :3]
    x, y, wide, high = (figures.DPI / drawn[0].dpi * v for v in drawn[0].axes[0].get_window_extent().bounds)
    edge = first[int(len(first) - y - 0.6 * high) : int(len(first) - y - 0.4 * high), int(x) : int(x + 0.12 * wide)]
    assert edge.min() < 0.5  # the R shows on an image that is white


@pytest.mark.parametrize("count", COUNTS)
def test_every_row_of_a_table_is_drawn(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [(i, 0) for i in range(count)] + [(0, seed) for seed in range(1, count)]
    results = [
        {**metrics(names(count)[i], 0.3 + i / 100), "name": f"m{i}", "asked": 1, "seed": seed} for i, seed in runs
    ]
    grid = Grid.of(results)
    figures.draw_runs(tmp_path / "r.png", grid, ["1"])
    assert sorted(t.get_text() for t in drawn[0].axes[0].get_yticklabels()) == sorted(names(count))
    seeds = [(text, colour) for text, colour in legend_of(drawn[0]) if text.startswith("seed")]
    assert len(seeds) == len({colour for _, colour in seeds}) == count
    figures.draw_probe(tmp_path / "p.png", {name: {"a": 0.5, "b": None} for name in names(count)}, "probe of $x$")
    assert len(drawn[1].axes[0].get_yticklabels()) == count
    points = {"bottleneck": (np.random.default_rng(0).random((80, 2)), np.arange(80) % (count + 1))}
    figures.draw_features(tmp_path / "f.png", {"global": points}, names(count))
    assert len({str(colour) for _, colour in legend_of(drawn[2])}) == count + 1


def results_of(titles: list[str], counts: tuple[int, ...] = (1, 3, 7), **changes: Any) -> list[dict[str, Any]]:
    """Three seeds of each."""
    return [
        {**metrics(title, 0.3 + i / 100 + seed / 90), "name": f"m{i}", "asked": count, "seed": seed, **changes}
        for i, title in enumerate(titles)
        for count in counts
        for seed in range(3)
    ]


def test_no_label_of_a_panel_runs_into_the_next(tmp_path: Path, drawn: list[Figure]) -> None:
    grid = Grid.of(results_of(["A baseline with a rather long name, which is MMGL as printed", "another"]))
    figures.draw_differences(tmp_path / "d.png", grid, grid.counts, "m0")
    drawn[0].draw_without_rendering()
    boxes = [axis.xaxis.label.get_window_extent() for axis in drawn[0].axes]
    assert len(boxes) == 3
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    (legend,) = drawn[0].legends
    assert not any(box.overlaps(legend.get_window_extent()) for box in boxes)


def test_a_bar_begins_at_nothing(tmp_path: Path, drawn: list[Figure]) -> None:
    """Its length is its value."""
    grid = Grid.of(results_of(["one", "other"]))
    figures.draw_ablation(tmp_path / "a.png", grid, ["m0", "m1"], "3", {"m0": 0.82, "m1": 0.83})
    low, high = drawn[0].axes[0].get_ylim()
    assert low == 0.0
    assert 83 < high < 104


def test_the_page_of_a_table_names_runs_that_lost_a_structure(tmp_path: Path) -> None:
    results = results_of(["one", "other"], counts=(1,))
    settings = {"method": {"labelled": None, "stages": [{"loss": {"options": {"weights": [1.0]}}}]}}
    for result in results:
        result |= {"settings": settings, "key": "k", "format": 3}
    page = report.write_table(tmp_path / "calm", results, tmp_path).read_text(encoding="utf-8")
    assert "lost more than half" not in page
    lost = {"7": {"from": 0.721, "to": 0.0995, "step": 200}}
    results[1]["stages"] = {"selftrain": {**results[1]["stages"]["finetune"], "fell": lost}}
    page = report.write_table(tmp_path / "lost", results, tmp_path).read_text(encoding="utf-8")
    assert "In 1 of 6 runs a structure lost more than half" in page
    assert "m0-1-1: left &lt;ventricle&gt; fell from 0.721 to 0.100 by step 200 of selftrain" in page


def test_what_a_name_holds_breaks_no_table() -> None:
    structures = {"1": "seed", "2": "Dice", "3": "a|b"}
    results = results_of(["A|B\nC", "other"], counts=(1,), structures=structures)
    for result in results:
        result["pooled"]["dice"]["each"] = {"1": 0.1, "2": 0.2, "3": 0.3}
    row = rows.run_rows(results)[0]
    assert (row["seed"], row["seed [1]"], row["Dice [2]"], row["a|b"]) == (0, 0.1, 0.2, 0.3)
    assert row["Dice"] == pytest.approx(0.3)
    paper = {"table": {}, "citation": "a paper"}
    lines = rows.markdown(Grid.of(results), ["1"], paper, "m0").splitlines()
    assert r"A\|B C" in lines[2]
    tables = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {5, 3}
    assert "difference to" not in rows.markdown(Grid.of(results[:3]), ["1"], paper, "m0")


def test_curves_of_a_resumed_stage_are_joined(tmp_path: Path) -> None:
    for start, held in ((0, ["0.9,1", "0.8,3", "0.7,5"]), (4, ["0.6,5", "0.5,7"])):
        path = tmp_path / "curves" / f"from-step-{start}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(["loss,step", *held]) + "\n")
    assert curves(tmp_path) == {"loss": [(2, 0.9), (4, 0.8), (6, 0.6), (8, 0.5)]}


def test_a_run_that_never_finds_a_structure_is_named() -> None:
    stuck = metrics("Stuck", 0.1)  # leaves 0 for the second structure
    assert report.missed({"stuck": stuck, "mmgl": metrics("MMGL", 0.6)}) == {"stuck": [STRUCTURES["2"]]}


def test_smoothing_averages_a_window() -> None:
    assert smooth([1.0, 5.0, 3.0], width=3).tolist() == [3.0, 3.0, 4.0]
    line = np.arange(30.0)
    np.testing.assert_allclose(smooth(line)[4:-4], line[4:-4])


@pytest.mark.parametrize(("value", "text"), [(59.4, "59 s"), (60, "1 min 00 s"), (754, "12 min 34 s")])
def test_seconds(value: float, text: str) -> None:
    assert in_words(value) == text


def test_what_has_no_score_is_a_dash() -> None:
    assert report.score(None) == "–"
    assert report.score(0.12345) == "0.123"
