"""A table: stages that are shared and trained once, runs as `run` makes them, kills, and two tables on one folder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from examples.mmwhs import files
from examples.mmwhs.__main__ import main
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.study import plan, report, results, rows, table
from examples.mmwhs.study.compare import Grid
from examples.mmwhs.study.plan import Folders, Job, Task
from examples.mmwhs.study.probe import probe
from examples.mmwhs.train import config, methods, plain, setup
from examples.mmwhs.train import run as module
from examples.mmwhs.train.evaluate import evaluate
from examples.mmwhs.train.run import run
from examples.mmwhs.train.stage import StageModule
from tests.examples.tiny import SCALE, settings, write_tree

NAMES = ("random", "global", "mmgl_226", "mmgl_334")
ROOT = Path(__file__).parents[2]
SHORT = replace(
    SCALE, schedules={kind: replace(each, steps=4, every=2) for kind, each in SCALE.schedules.items()}
)  # fmt: skip
CPU = config.Compute(accelerator="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tiny")


def planned(data: Path, names: tuple[str, ...] = NAMES, labelled: tuple[float | int, ...] = (1, 2)) -> list[Job]:
    chosen = methods.load_all(names)
    return plan.jobs(
        chosen, data=str(data), scale=SHORT, labelled=labelled, seeds=[0], compute=CPU, cache=data.parent / "cache"
    )


def do(left: dict[str, Any], folders: Folders) -> list[str]:
    """All tasks in order, in this process; what was trained."""
    trained = []
    for task, _ in left.values():
        key, said, error = table.work(task, folders, os.getpid())
        assert (key, error) == (task.id, "")
        assert said != "there"
        if task.trains:
            trained.append(task.job.settings.method.stages[task.number].name)
    return trained


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, list[str]]:
    """A finished table, and the stages that were trained for it."""
    out = tmp_path_factory.mktemp("table")
    folders = Folders(files.own(out / "table", "table"), out / "results")
    return folders, do(plan.tasks(planned(data), folders), folders)


def test_a_stage_that_runs_share_is_trained_once(data: Path, done: tuple[Folders, list[str]]) -> None:
    folders, trained = done
    # Two global stages (one plane, three planes) serve four runs each; a local one serves two portfolios.
    assert sorted(trained) == sorted(["global"] * 2 + ["local"] * 2 + ["finetune"] * 8)
    assert len(folders.finished()) == len(results.read(folders.results)) == 8
    assert not list(folders.out.glob("stages/*/*.ckpt"))
    assert plan.tasks(planned(data), folders) == {}


def test_results_alone_are_enough_to_go_on(data: Path, done: tuple[Folders, list[str]], tmp_path: Path) -> None:
    elsewhere = Folders(tmp_path, done[0].results)
    assert plan.tasks(planned(data), elsewhere) == {}
    more = plan.tasks(planned(data, labelled=(1, 2, 3)), elsewhere)
    assert {task.job.settings.labelled for task, _ in more.values()} == {3}


def test_a_run_of_a_table_is_what_run_makes(data: Path, done: tuple[Folders, list[str]], tmp_path: Path) -> None:
    chosen = replace(settings(data, "mmgl_226", labelled=2), scale=SHORT)
    alone = run(chosen, tmp_path / "run", cache=data.parent / "cache")
    (ours,) = (each for name, each in done[0].finished().items() if name.startswith("mmgl_226-2-0-"))
    assert {key: ours[key] for key in ("pooled", "volumes", "labelled")} == {
        key: alone[key] for key in ("pooled", "volumes", "labelled")
    }
    assert ours["asked"] == 2
    assert ours["probe"] == pytest.approx(probe(tmp_path / "run")["local"], rel=1e-4)
    assert plain.parse(config.Method, ours["settings"]["method"], where="result") == chosen.method


def test_scores_on_validation_open_no_test_patient(
    data: Path, done: tuple[Folders, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan.jobs(
        methods.load_all(["random"]), data=str(data), scale=SHORT, labelled=[2], seeds=[0], scored="validation",
        compute=CPU, cache=tmp_path / "cache",
    )  # fmt: skip
    (plain,) = planned(data, ("random",), (2,))
    assert job.keys == plain.keys  # the same training
    assert job.key != plain.key
    opened: set[str] = set()
    for name in ("images", "labels"):
        original = getattr(SliceStore, name)

        def watched(store: SliceStore, case: Any, plane: str, original: Any = original) -> Any:
            opened.add(case.patient)
            return original(store, case, plane)

        monkeypatch.setattr(SliceStore, name, watched)
    folders = Folders(done[0].out, tmp_path / "results")
    assert do(plan.tasks([job], folders), folders) == []
    chosen = setup.Setup.of(job.settings, tmp_path / "cache")
    assert opened == {*chosen.split.labelled, *chosen.split.validation}
    result = folders.finished()[job.id]
    assert result["scored"] == "validation"
    net = chosen.network(None, files.load(folders.stage(job.keys[0]) / "weights.pt"))
    expected, _ = evaluate(net, chosen.store, chosen.split, "validation", device=torch.device("cpu"))
    assert result["pooled"] == expected["pooled"]
    assert set(result["volumes"]) == set(expected["volumes"])
    page = report.write_table(tmp_path / "page", [result], tmp_path).read_text()
    assert "Validation results" in page
    assert "test slices" not in page
    with pytest.raises(ValueError, match="one part of one data set"):
        report.write_table(tmp_path / "page", [result, *results.read(done[0].results)], tmp_path)


def test_a_stage_may_have_labels_of_its_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: stage two sees every training label, fine-tuning the few; no validation or test patient ever."""
    method = methods.load(config.Method, "mmgl", ["stages.local.labelled=1.0"])
    seen: list[set[str]] = []

    def look(stage: StageModule, slices: Any, *args: Any, **options: Any) -> None:
        seen.append({case.patient for part in slices.training.values() for case in part.cases})

    monkeypatch.setattr(module, "fit", look)
    chosen = setup.Setup.of(replace(settings(data, labelled=1), method=method), data.parent / "cache")
    for number in range(3):
        module.train(chosen, number, None, tmp_path)
    split = chosen.split
    assert seen == [set(split.train), set(split.train), set(split.labelled)]
    assert len(split.labelled) == 1 < len(split.train)
    plain = setup.Setup.of(settings(data, labelled=1), data.parent / "cache").keys()
    assert [one == other for one, other in zip(chosen.keys(), plain, strict=True)] == [True, False, False]
    everyone = setup.Setup.of(settings(data, labelled=1.0), data.parent / "cache").keys()
    assert chosen.keys()[1] != everyone[1]  # asked for by the stage, and so in its key


def test_what_decides_a_stage_is_in_its_key(data: Path, tmp_path: Path) -> None:
    def keys(method: str = "mmgl", **changes: Any) -> list[str]:
        chosen = replace(settings(data, method), **changes)
        return setup.Setup.of(chosen, tmp_path).keys()

    plain = keys()
    assert keys() == plain
    assert keys(compute=config.Compute(accelerator="cpu", precision="bf16-mixed")) == plain
    assert keys(labelled=1)[0] == plain[0]
    assert keys(labelled=1)[1] != plain[1]
    assert keys("mmgl_127")[:2] == plain[:2]
    assert keys("mmgl_127")[2] != plain[2]
    assert not set(keys(seed=1)) & set(plain)
    assert not set(keys("mmgl_printed")) & set(plain)  # what comes before is part of it
    wider = replace(SCALE, channels=[4, 8, 8, 8, 16])
    assert not set(keys(scale=wider)) & set(plain)
    few = replace(SCALE, validation_slices=3)
    assert [one == other for one, other in zip(keys(scale=few), plain, strict=True)] == [True, True, False]


def test_one_plane_makes_all_planes_the_main_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({setup.Setup.of(settings(data, name), tmp_path).key() for name in ("global_multiview", "mmgl_334")}) == 2
    names = ("global_multiscale", "global_multiview")
    assert len({setup.Setup.of(settings(data, name), tmp_path).key() for name in names}) == 2
    original = setup.open_dataset

    def flat(root: str, **options: Any) -> Any:
        dataset = original(root, **options)
        return replace(dataset, description=replace(dataset.description, planes=("transaxial",)))

    monkeypatch.setattr(setup, "open_dataset", flat)
    assert len({setup.Setup.of(settings(data, name), tmp_path).key() for name in names}) == 1


def command(data: Path, scale: Path, out: Path, jobs: int) -> list[str]:
    options = ["--data", data, "--scale", scale, "--out", out, "--jobs", jobs, "--accelerator", "cpu", "--seeds", "0"]
    names = ["--methods", "random", "mmgl_226", "--labelled", "1", "2"]
    return [sys.executable, "-m", "examples.mmwhs", "table", *map(str, options), *names]


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be noticed does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def until(what: Any, seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def test_a_killed_table_goes_on_with_another_beside_it(
    data: Path, done: tuple[Folders, list[str]], tmp_path: Path
) -> None:
    """kill -9 of the parent ends its workers; then two tables on the folder share the rest between them."""
    scale, out = tmp_path / "scale.yaml", tmp_path / "out"
    scale.write_text(yaml.safe_dump(asdict(SHORT)))
    with subprocess.Popen(command(data, scale, out, 2), cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        until(lambda: list(out.glob("stages/*/last.ckpt")))
        workers = children(first.pid)
        assert len(workers) >= 2
        os.kill(first.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, workers)), 20)
    folders = Folders(out, out / "results")
    left = len(plan.tasks(planned(data, ("random", "mmgl_226")), folders))
    assert left >= 5
    both = [
        subprocess.Popen(command(data, scale, out, 1), cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    made = [int(next(line for line in text.splitlines() if "steps done here" in line).split()[0]) for text in said]
    assert sum(made) == left  # none was done twice
    found, wanted = folders.finished(), done[0].finished()
    assert len(found) == len(results.read(folders.results)) == 4
    for name, each in found.items():
        assert each["pooled"] == wanted[name]["pooled"]
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("dies", [False, True])
def test_a_run_that_fails_takes_no_other_with_it(
    dies: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, or in processes of which one is killed in the middle of its task."""
    broken = planned(data, ("random", "mmgl_226"), (1,))
    local = broken[1].keys[1]
    folders = Folders(tmp_path, tmp_path / "results")
    monkeypatch.setattr(table, "work", partial(pretends, local, dies))
    said: list[str] = []
    state = table.make(broken, folders, count=2 if dies else 1, say=said.append)
    assert list(state.failed) == [local]
    assert len(state.skipped) == 2  # fine-tuning and evaluation
    assert (state.total, state.made) == (6, 3)
    assert list(folders.finished()) == [broken[0].id]
    reason = table.DEAD if dies else "no memory"
    assert reason in next((tmp_path / "failed").iterdir()).read_text()
    assert any(f"failed: {reason}" in line.replace("RuntimeError: ", "") for line in said)
    assert set(plan.tasks(broken, folders)) == {local, *state.skipped}  # the next call tries again


def test_of_what_was_refused_the_sentence_is_said() -> None:
    assert table.reason("Traceback\na.b.FullError: Expected room, got none.\n") == "Expected room, got none."
    assert table.reason("Traceback\nRuntimeError: no memory\n") == "RuntimeError: no memory"


def pretends(fails: str, dies: bool, task: Task, folders: Folders, *_: Any) -> tuple[str, str, str]:
    """Leaves what a task would; one fails, or its process dies."""
    if task.id == fails and dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.id == fails:
        return task.id, "", "Traceback\nRuntimeError: no memory\n"
    if task.trains:
        files.write_json(folders.stage(task.id) / "done.json", {})
        (folders.stage(task.id) / "weights.pt").touch()
    else:
        job = task.job
        about = {"name": job.name, "asked": job.settings.labels, "seed": job.settings.seed, "key": job.key}
        results.append(folders.results, {"format": setup.FORMAT, **about})
    return task.id, "made", ""


def test_results_are_lines_that_are_whole_or_not_there(tmp_path: Path) -> None:
    for number in range(3):
        results.append(tmp_path, {"format": setup.FORMAT, "number": number})
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, 15):  # a process was killed while it wrote the last
        path.write_bytes(whole[:-cut])
        assert [each["number"] for each in results.read(tmp_path)] == [0, 1]
        results.append(tmp_path, {"format": setup.FORMAT, "number": 7})
        assert [each["number"] for each in results.read(tmp_path)] == [0, 1, 7]
    path.write_bytes(whole.replace(b'"number": 1', b'"number" 1'))
    with pytest.raises(ValueError, match=r"whole JSON in every line of .*results.jsonl, got .* in line 2"):
        results.read(tmp_path)
    path.write_text('{"format": 2}\n')
    with pytest.raises(ValueError, match=r"results of format 3 in .*, got format 2 in line 1"):
        results.read(tmp_path)


def test_two_results_of_one_run_are_refused(done: tuple[Folders, list[str]]) -> None:
    found = results.read(done[0].results)
    other = {**found[0], "key": "of other data"}
    wanted: dict[str, Any] = {"names": [], "labelled": [], "seeds": [], "scored": "test"}
    assert results.chosen([*found, found[0]], **wanted) == found
    with pytest.raises(ValueError, match=r"one result of every run, got .* and of other data"):
        results.chosen([*found, other], **wanted)
    with pytest.raises(ValueError, match="one result of every run"):
        Grid.of([*found, other])


def test_the_report_needs_the_results_alone(done: tuple[Folders, list[str]], tmp_path: Path) -> None:
    found = results.read(done[0].results)
    page = report.write_table(tmp_path, found, done[0].out / "pictures", order=NAMES).read_text()
    for name in ("runs", "differences", "learning", "probe", "overlay"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert "http" not in page.replace("http://www.w3.org", "")
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(rows) == 9
    dice = np.mean([r["pooled"]["dice"]["mean"] for r in found if (r["name"], r["asked"]) == ("mmgl_226", 1)])
    assert f"{dice:.3f}" in (tmp_path / "table.md").read_text().split("MMGL (2:2:6) |")[1].split("(1)")[0]
    probes = [max(r["probe"].values()) for r in found if (r["name"], r["asked"]) == ("mmgl_226", 1)]
    said = (tmp_path / "table.md").read_text().split("linear probe")[1]
    assert f"{np.mean(probes):.3f} ({len(probes)})" in said.split("| MMGL (2:2:6) |")[1].split("|")[0]
    level = next(row.split(",") for row in rows if row.startswith("mmgl_226,1,"))[
        rows[0].split(",").index("probe: level")
    ]
    assert found[0]["probe"].keys() > {level}
    with pytest.raises(ValueError, match="one part of one data set"):
        report.write_table(tmp_path, [], tmp_path)
    other = report.write_table(tmp_path / "other", found, tmp_path, order=NAMES, baseline="mmgl_226").read_text()
    assert "Against MMGL (2:2:6)" in other
    ours, theirs = ({r["seed"]: r["pooled"]["dice"]["mean"] for r in found if (r["name"], r["asked"]) == (name, 2)}
                    for name in ("random", "mmgl_226"))  # fmt: skip
    said = (tmp_path / "other" / "table.md").read_text().split("difference to MMGL (2:2:6)")[1]
    assert f"{ours[0] - theirs[0]:+.3f} (1)" in said.split("| Random |")[1].split("|")[1]
    with pytest.raises(ValueError, match="baseline"):
        report.write_table(tmp_path / "other", found, tmp_path, baseline="mmgl")
    again = report.write_table(tmp_path / "bare", found, tmp_path / "nowhere")
    assert "What the networks see" not in again.read_text()


def test_a_report_alone_trains_nothing(
    data: Path, done: tuple[Folders, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale, out = tmp_path / "scale.yaml", tmp_path / "out"
    scale.write_text(yaml.safe_dump(asdict(SHORT)))
    words = command(data, scale, out, 1)[3:]
    words[words.index("--labelled") :] = ["--labelled", "1", "2", "3", "--results", str(done[0].results)]
    assert main([*words, "--baseline", "mmgl_226", "--report"]) == 0
    assert "MMGL (2:2:6)" in capsys.readouterr().out
    assert "Against MMGL (2:2:6)" in (out / "report.html").read_text()
    assert len((out / "runs.csv").read_text().splitlines()) == 5
    assert not (out / "stages").exists()
    assert main([*words, "--baseline", "mmgl"]) == 2  # said before anything is trained
    assert "baseline" in capsys.readouterr().err
    assert not (out / "stages").exists()


def test_the_last_bar_has_the_portfolio_of_the_others(done: tuple[Folders, list[str]]) -> None:
    template = results.read(done[0].results)[0]

    def bars(**portfolios: list[float]) -> list[str]:
        found = []
        for name, weights in portfolios.items():
            stage = {"loss": {"options": {"weights": weights}}}
            found.append({**template, "name": name, "settings": {"method": {"stages": [stage]}}})
        return rows.bars_of(Grid.of(found))

    few, many = [0.3, 0.3, 0.4], [0.2, 0.3, 0.5]
    assert bars(random=[1.0], random_ds=many, mmgl_334=few, mmgl=many) == ["random", "random_ds", "mmgl"]
    assert bars(random=[1.0], random_ds=few, mmgl_334=few, mmgl=many) == ["random", "random_ds", "mmgl_334"]
    assert bars(random=[1.0], random_ds=few, mmgl=many) == ["random", "random_ds"]


@pytest.mark.parametrize("name", methods.built_in(config.Method))
def test_every_stage_of_every_method_trains_on_what_it_may_see(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of each stage: its patients, the shape of its batch, and gradients where they belong and nowhere else."""
    seen: list[tuple[StageModule, Any]] = []
    monkeypatch.setattr(module, "fit", lambda stage, slices, *args, **options: seen.append((stage, slices)))
    chosen = setup.Setup.of(settings(data, name, labelled=2), data.parent / "cache")
    for number in range(len(chosen.settings.method.stages)):
        module.train(chosen, number, None, tmp_path)
    assert [stage.stage for stage, _ in seen] == chosen.settings.method.stages
    for stage, slices in seen:
        batches = {}
        for kind, part in slices.training.items():
            allowed = chosen.split.labelled if kind == "labelled" else chosen.split.train
            assert {case.patient for case in part.cases} == set(allowed)
            batches[kind] = torch.utils.data.default_collate([part[i] for i in range(0, 12, 3)])
            assert ("label" in batches[kind]) == (kind == "labelled")
        assert ("labelled" in batches, "unlabelled" in batches) == (stage.stage.labels, stage.stage.unlabelled)
        batch = batches if len(batches) > 1 else next(iter(batches.values()))
        if slices.validation is not None:
            assert {c.patient for c in slices.validation.dataset.cases} == set(chosen.split.validation)
        monkeypatch.setattr(stage, "log", lambda *args, **options: None)
        stage.training_step(batch, 0).backward()
        stage.on_train_batch_end(None, batch, 0)
        for key, parameter in stage.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key
        frozen = [key for key, p in stage.tapped.named_parameters() if not p.requires_grad and "encoder" in key]
        assert bool(frozen) == ("encoder" in stage.stage.frozen)


def test_keys_and_locks_are_plain_text(data: Path, tmp_path: Path) -> None:
    job = planned(data, ("full",))[0]
    assert job.label == "full-1.0-0"
    assert len(planned(data, ("full",), (1, 2))) == 1  # it has labels of its own
    assert json.dumps(job.keys)
