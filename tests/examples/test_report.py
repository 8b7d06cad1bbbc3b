"""The report: its numbers are those of the metrics, and the page needs nothing beside it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from examples.mmwhs import files
from examples.mmwhs.data.splits import Split
from examples.mmwhs.study import report
from examples.mmwhs.study.demo import table
from examples.mmwhs.study.figures import colours, smooth
from examples.mmwhs.train.fit import curves

STRUCTURES = ["left <ventricle>", "aorta"]


def metrics(method: str, dice: float) -> dict[str, Any]:
    """Metrics as a run leaves them; the aorta is not in the second volume."""
    each = {"mean": dice, STRUCTURES[0]: dice + 0.1, STRUCTURES[1]: dice - 0.1}
    spread = {name: {"mean": value, "sd": 0.025} for name, value in each.items()}
    stage = {"steps": 20, "seconds": 61.4, "slices": 9, "patients": 2, "validation_dice": 0.5, "best_step": 10}
    return {
        "method": method, "data": "tiny", "main_plane": "transaxial", "note": "A note & a licence.",
        "structures": STRUCTURES, "labelled": ["p1"], "seed": 3, "parameters": 12345,
        "stages": {"finetune": stage},
        "pooled": {"dice": each, "iou": {**each, "mean": dice / 2}, "accuracy": 0.9},
        "per_volume": {**spread, STRUCTURES[1]: {"mean": dice, "sd": None}},
        "volumes": {"v1": {STRUCTURES[0]: dice, STRUCTURES[1]: dice}, "v2": {STRUCTURES[0]: dice, STRUCTURES[1]: None}},
    }  # fmt: skip


def folder(root: Path, method: str, dice: float) -> Path:
    """What a finished run leaves for its report."""
    (root / "1-finetune" / "curves" / "from-step-0").mkdir(parents=True)
    lines = ["epoch,loss,step,validation_dice", "0,0.9,4,", "0,0.8,9,", "0,,9,0.4", "1,0.5,14,", "1,,19,0.5"]
    (root / "1-finetune" / "curves" / "from-step-0" / "metrics.csv").write_text("\n".join(lines) + "\n")
    files.write_json(root / "metrics.json", metrics(method, dice))
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
    runs = [folder(root / "random", "Random", 0.4), folder(root / "mmgl", "MMGL", 0.6)]
    return report.write(root, runs)


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    addresses = Page(text).addresses
    assert len(addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"url\(|@import", text)


def test_the_tables_hold_the_numbers(page: Path) -> None:
    rows = Page(page.read_text()).rows
    assert ["Dice", "0.400", "0.600"] in rows
    assert [STRUCTURES[0], "0.500", "0.700"] in rows
    assert ["mIoU", "0.200", "0.300"] in rows
    assert ["PixAcc", "0.900", "0.900"] in rows
    assert [STRUCTURES[1], "0.400 ± –", "0.600 ± –"] in rows  # one volume has no spread
    assert ["v2", "0.400", "0.600"] in rows  # the mean of the structures that are there
    assert ["MMGL: finetune", "20", "9", "2", "0.500", "1 min 01 s"] in rows


def test_the_page_says_who_was_labelled_and_whose_data_it_is(page: Path) -> None:
    text = page.read_text()
    assert "A note &amp; a licence." in text
    assert re.search(r"labels of 1 of\s+2 training patients, tested on 2 others", text)
    assert "several seeds" in text


def test_figures_are_drawn(page: Path) -> None:
    for name in ("curves", "overlay"):
        picture = imread(page.parent / f"{name}.png")
        assert min(picture.shape[:2]) > 250
        assert picture[..., :3].std() > 0.05
    overlay = imread(page.parent / "overlay.png")[..., :3]
    wanted = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in colours(STRUCTURES).values()]
    for colour in wanted:  # the legend shows each structure in its colour
        assert (np.abs(overlay - colour).max(axis=2) < 0.01).sum() > 50


def test_the_table_of_the_terminal_has_the_same_rows() -> None:
    both = {name: metrics(name, dice) for name, dice in (("Random", 0.4), ("MMGL", 0.6))}
    shown = table(both)
    assert [column.header for column in shown.columns][1:] == ["Random", "MMGL"]
    assert shown.row_count == len(report.headline(both)) + 1


def test_curves_of_a_resumed_stage_are_joined(tmp_path: Path) -> None:
    for start, rows in ((0, ["0.9,1", "0.8,3", "0.7,5"]), (4, ["0.6,5", "0.5,7"])):
        path = tmp_path / "curves" / f"from-step-{start}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(["loss,step", *rows]) + "\n")
    assert curves(tmp_path) == {"loss": [(2, 0.9), (4, 0.8), (6, 0.6), (8, 0.5)]}


def test_a_run_that_never_finds_a_structure_is_named() -> None:
    stuck = metrics("Stuck", 0.1)  # leaves 0 for the second structure
    assert report.missed({"Stuck": stuck, "MMGL": metrics("MMGL", 0.6)}) == {"Stuck": [STRUCTURES[1]]}


def test_smoothing_averages_a_window() -> None:
    assert smooth([1.0, 5.0, 3.0], width=3).tolist() == [3.0, 3.0, 4.0]
    line = np.arange(30.0)
    np.testing.assert_allclose(smooth(line)[4:-4], line[4:-4])


@pytest.mark.parametrize(("value", "text"), [(59.4, "59 s"), (60, "1 min 00 s"), (754, "12 min 34 s")])
def test_seconds(value: float, text: str) -> None:
    assert report.seconds(value) == text


def test_what_has_no_score_is_a_dash() -> None:
    assert report.score(None) == "–"
    assert report.score(0.12345) == "0.123"
