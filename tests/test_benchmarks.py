"""`python -m benchmarks` at tiny sizes: that all compute the same, what is left out and why, and how times are judged."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import bars, local, measure, plots, table
from benchmarks.case import Case, Contestant, Row
from benchmarks.kinds import KINDS
from benchmarks.race import Limits, Race
from benchmarks.workload import label_maps, shape
from mmgl_losses.functional import local_supcon

QUICK = Limits(0.0, least=1, most=1, measure_memory=False)
SMALL = {
    "local": Case("local", 2, 64, 8),
    "global": Case("global", 1, 6, 4),
    "dice": Case("dice", 2, 16, 8),
}


def names(kind: str) -> list[str]:
    return [name for name, contestant in KINDS[kind].contestants.items() if not contestant.cuda]


@pytest.mark.parametrize("kind", SMALL)
def test_all_compute_the_same(kind):
    with patch.object(local, "BACKEND", "eager"):
        rows = Race("cpu", QUICK).run(SMALL[kind])
    assert [row.contestant for row in rows] == names(kind)
    assert not [row.note for row in rows if "failed" in row.note]
    for row in rows:
        if row.formula in ("", "at full size"):
            assert row.value_error is None
        else:
            assert max(row.value_error, row.gradient_error) < 2e-6, row


@pytest.mark.parametrize("formula", ["mmgl", "supcon"])
def test_the_truth_agrees_with_the_library(formula):
    """In float64 both are exact; the classes of a map are as unlike in size as those of the benchmark."""
    problem = local.Problem(Case("local", 2, 400, 8, dtype="float64"), pull=1.0)
    value, gradient = local.exact(problem, formula)
    loss = local_supcon(problem.features.mT, problem.labels, temperature=local.TEMPERATURE, formula=formula)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, problem.features)[0], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "fine-tuning"])
def test_a_step_of_training(kind):
    """Every contestant takes a step."""
    problem = KINDS[kind].problem(Case(kind, 1, 64, 2))  # one image, as where memory is measured
    steps = {name: contestant.make(problem) for name, contestant in KINDS[kind].contestants.items()}
    trained = problem.net.encoder if kind == "encoder" else problem.net.decoder
    for name, step in steps.items():
        before = [p.detach().clone() for p in trained.parameters()]
        assert step()[0].isfinite(), name
        assert not all(map(torch.equal, before, trained.parameters())), name


def test_labels_are_mostly_background():
    for points in (6400, 27000):
        maps = label_maps(4, shape(points))
        assert maps.flatten(1).shape == (4, points)
        assert 0.7 < (maps == 0).float().mean() < 0.9
        assert maps.unique().numel() == 8
    assert shape(7) == (7,)


def test_what_is_left_out_says_why():
    big = Case("local", 1, 10**6, 4)
    race = Race("cpu", replace(QUICK, memory=1e9, call=1.0))
    assert race.excluded(local.LOCAL, big, "plain") == "does not fit: about 2.24e+04 GiB"
    assert race.excluded(local.LOCAL, big, "tiled") == ""
    race.past["local", "tiled", 4, "float32"] = 1e-9
    assert race.excluded(local.LOCAL, big, "tiled") == "not tried: about 1e+03 s a step"
    assert (
        Race("cpu", replace(QUICK, deadline=0.0)).excluded(local.LOCAL, big, "tiled") == "not tried: no time was left"
    )


def test_a_failure_is_a_row():
    def broken(problem):
        raise NotImplementedError("no backward\non this device")

    kind = replace(local.LOCAL, contestants={"broken": Contestant(broken), "tiled": local.LOCAL.contestants["tiled"]})
    with patch.dict(KINDS, local=kind):
        rows = Race("cpu", QUICK).run(SMALL["local"])
    assert rows[0].note == "failed: NotImplementedError: no backward"
    assert rows[0].seconds is None
    assert rows[1].seconds > 0


class Scripted:
    """A clock that returns what it is told: for the calibration, and for each run."""

    def __init__(self, marks, seconds):
        self.marks, self.seconds = iter(marks), iter(seconds)

    def __call__(self, run, calls=1):
        return next(self.seconds)

    def mark(self):
        return next(self.marks)


def test_samples_beside_foreign_load_do_not_count():
    """A warm-up, then four rounds of one run: the second sees load before it, the third after it."""
    marks = [1.0] * 5 + [1.0, 1.1] + [1.3, 1.0] + [1.0, 2.0] + [1.2, 1.2]
    clock = Scripted(marks, [0.5, 10.0, 90.0, 90.0, 12.0])
    times = measure.interleaved({"a": lambda: None}, clock, seconds=3600.0, least=2, most=2)
    assert times["a"] == measure.Timing(11.0, 10.5, 11.5, 2, 2, True)


def test_where_all_is_loaded_the_least_disturbed_stand_in():
    timing = measure.summary([(3.0, 9.0), (2.0, 5.0), (2.5, 7.0)], limit=1.25, least=2)
    assert (timing.median, timing.samples, timing.rejected, timing.quiet) == (6.0, 2, 1, False)


def test_memory_is_what_is_held_above_the_inputs():
    """The dense one holds several copies of all pairs, each 9 MiB here; ours less than half of that."""
    case = Case("local", 1, 1536, 8)
    dense = measure.in_own_process(case, "plain")
    ours = measure.in_own_process(case, "auto")
    assert 3 * 9 < dense < 12 * 9
    assert dense > 2 * ours
    estimate = local.LOCAL.contestants["plain"].peak_bytes(case) / 2**20
    assert 0.5 * estimate < dense < 1.5 * estimate


def test_from_the_command_line_to_figures(tmp_path, capsys):
    out = tmp_path / "tiny.csv"
    options = ["--seconds", "0", "--memory", "0.00001", "--points", "36", "64", "--dims", "4", "--out", str(out)]
    with patch.object(program, "Limits", lambda seconds: replace(QUICK)):
        assert program.main([*options, "--device", "cpu", "--kinds", "local"]) == 0
    rows, where = table.read(out)
    assert "torch" in where["versions"]
    assert {(row.kind, row.n) for row in rows} == {("local", 36), ("local", 64)}
    assert "does not fit" in next(row for row in rows if row.contestant == "plain").note
    assert all(row.seconds > 0 for row in rows if row.contestant == "auto")
    printed = capsys.readouterr().out
    assert "does not fit: about" in printed
    assert printed.count("three products") == 2
    assert program.main(["table", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "**local**, n = 36, d = 4, 4 at once, float32" in shown
    assert "| plain | mmgl | does not fit: about" in shown
    assert program.main(["plots", str(out), "--out", str(tmp_path / "images")]) == 0
    assert [p.name for p in sorted((tmp_path / "images").iterdir())] == [
        "benchmark-tiny-memory.png", "benchmark-tiny-time.png",
    ]  # fmt: skip


def row(contestant: str, n: int, seconds: float | None, kind: str = "local", d: int = 64, **values) -> Row:
    return Row(kind, contestant, "mmgl", 1, n, d, "float32", seconds=seconds, **values)


def test_figures_name_their_curves():
    rows = [row(name, n, n**2 * 1e-9) for name in ("auto", "plain", "two products") for n in (400, 1600)]
    figure = plots.figure_of([*rows, row("plain", 6400, None, note="does not fit")], {"device": "a CPU"}, "time")
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axis.texts] == ["plain", "two bare products", "ours"]
    widths = [line.get_linewidth() for line in axis.lines]
    assert widths[2] > 2 * max(widths[:2])
    assert list(axis.lines[0].get_xdata()) == [400, 1600]


def test_results_survive_the_file(tmp_path):
    rows = [row("auto", 400, 0.25, peak_mib=1.5, samples=3), row("plain", 400, None, note="does not fit, sadly")]
    table.write(tmp_path / "r.csv", rows, {"device": "x, y"})
    assert table.read(tmp_path / "r.csv") == (rows, {"device": "x, y"})


def test_bars_know_met_from_missed():
    rows = [row("auto", n, 1.0, peak_mib=30.0) for n in (400, 1600, 6400, 25600)]
    rows += [row("plain", n, 22.5 if n == 1600 else 15.0) for n in (400, 1600, 6400)] + [
        row("plain, compiled", 400, 2.0)
    ]
    rows += [row("auto, SupCon", n, 1.0) for n in (400, 1600)] + [row("SupContrast style", n, 6.0) for n in (400, 1600)]
    rows += [row("two products", n, 1.25) for n in (1600, 6400)]
    rows += [row("ours", 160, 1.0, "decoder"), row("network", 160, 0.95, "decoder"), row("plain", 160, 2.0, "decoder")]
    found = {bar.what: bar for bar in bars.timed(rows)}
    met = {what: bar.met for what, bar in found.items()}
    assert met["local loss, n = 1600: times faster than plain"]
    assert not met["local loss, n = 6400: times faster than plain"]
    assert not met["local loss, n = 400: times faster than plain, compiled"]
    assert not met["local loss, n = 1600: times faster than plain, compiled"]  # not measured
    assert met["local loss, n = 400: times faster than the best peer"]
    assert not met["local loss, n = 1600: times faster than the best peer"]
    assert met["local loss, n = 25600: MiB above the inputs"]
    assert met["decoder pre-training: share of heads and loss"]
    assert not met["decoder pre-training: times faster than plain after the head"]
    products = [bar for bar in bars.timed(rows) if bar.what == "local loss, n = 1600: times two bare products"]
    assert [(bar.met, bar.stretch) for bar in products] == [(True, False), (False, True)]
    assert "MISSED" in str(found["local loss, n = 6400: times faster than plain"])
    assert "missed (stretch)" in str(products[1])


def test_accuracy_is_measured_at_both_temperatures():
    errors = [bar for bar in bars.precise(n=100, batch=1, d=8, seconds=0.0) if "gradient" in bar.what]
    assert [bar.met for bar in errors] == [True, True]
    assert all(bar.measured > 0 for bar in errors)
