"""``python -m benchmarks.gpu``: the kernels on this GPU: right first, then fast, beside what a user could write.

Phases run one after another, each in processes of its own with a limit of time, the most telling first. Every result
is on disk as soon as it is known; what hangs is stopped and what breaks the device ends its process alone, and the
phase goes on behind it. The last 60 lines say what came out. GPU.md is the sheet to follow.

Needs this repository, torch, triton, numpy and pytest, and one GPU. Without a GPU the same code runs at tiny sizes in
Triton's interpreter, and no figure counts.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_phase import Lines
from benchmarks.gpu_summary import summary

ROOT = Path(__file__).parent.parent


class Phase(NamedTuple):
    """What a phase may take, in seconds."""

    name: str
    whole: float
    item: float  #: the longest that one item, or the start of a process, may say nothing


TRIES = {
    1: [
        Phase("machine", 45, 45),  # the first process reads torch from a cold disk
        Phase("problems", 60, 20),
        Phase("kernels", 80, 20),
        Phase("module", 35, 20),
        Phase("tests", 70, 70),
        Phase("counters", 40, 30),
    ],
    2: [
        Phase("machine", 30, 30),
        Phase("problems", 30, 20),
        Phase("headline", 70, 30),
        Phase("random", 45, 20),
        Phase("competitors", 110, 60),
        Phase("float32", 30, 30),
        Phase("module", 25, 20),
        Phase("kernels", 40, 20),
    ],
}


class Runner:
    """Runs phases, and writes to a folder what came of them."""

    program = ("-m", "benchmarks.gpu_phase")

    def __init__(self, folder: Path, deadline: float, patience: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.deadline, self.patience = folder, deadline, patience
        self.lines, self.errors = Lines(folder / "gpu.jsonl"), folder / "errors.txt"

    def rows(self) -> list[dict[str, Any]]:
        """All lines so far."""
        if not self.lines.path.exists():
            return []
        return [json.loads(line) for line in self.lines.path.read_text().splitlines()]

    def phase(self, phase: Phase) -> None:
        """All items of a phase, in as many processes as it takes."""
        end = min(time.monotonic() + phase.whole * self.patience, self.deadline)
        start = 0
        while True:
            left = end - time.monotonic()
            if left < 1:
                self.lines.add(phase=phase.name, item="the rest", state="left out")
                return
            done_before = len(self.rows())
            why = self.process(phase, start, left)
            if why is None:
                return
            fresh = [row for row in self.rows()[done_before:] if "index" in row]
            if not fresh:
                self.lines.add(phase=phase.name, item="the process", state="failed", why=why)
                return
            last = fresh[-1]
            if last["state"] == "begun":
                self.lines.add(phase=phase.name, index=last["index"], item=last["item"], state="failed", why=why)
            start = last["index"] + 1

    def process(self, phase: Phase, start: int, left: float) -> str | None:
        """One process from an item on; how it ended where it did not end well."""
        command = [sys.executable, *self.program, phase.name, "--out", str(self.folder)]
        command += ["--start", str(start), "--seconds", f"{left:.1f}"]
        with self.errors.open("a") as errors:
            process = subprocess.Popen(command, cwd=ROOT, stdout=errors, stderr=errors, start_new_session=True)
        begun, size, heard = time.monotonic(), -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            now, grown = time.monotonic(), self.lines.path.stat().st_size if self.lines.path.exists() else 0
            if grown != size:
                size, heard = grown, now
            silent, late = now - heard > phase.item * self.patience, now - begun > left + 5
            if silent or late:
                os.killpg(process.pid, 9)
                process.wait()
                return f"stopped: nothing for {now - heard:.0f} s" if silent else "stopped: the time of the phase is up"
        if process.returncode == 0:
            return None
        said = self.errors.read_text().strip().splitlines()
        return f"status {process.returncode}: {said[-1] if said else ''}"[:200]


def main(arguments: list[str] | None = None) -> int:
    """Run the phases of a try; 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = dict.fromkeys(phase.name for phases in TRIES.values() for phase in phases)
    parser.add_argument("--try", type=int, default=1, choices=TRIES, dest="attempt", help="which list of phases")
    parser.add_argument("--only", nargs="+", choices=[*names], help="these phases, in this order")
    parser.add_argument("--seconds", type=float, default=330.0, help="time for all of it")
    parser.add_argument("--patience", type=float, default=1.0, help="what limits of phases and items are multiplied by")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results/gpu")))
    options = parser.parse_args(arguments)
    start = time.monotonic()
    runner = Runner(options.out, start + options.seconds, options.patience)
    before = len(runner.rows())
    known = {phase.name: phase for phases in TRIES.values() for phase in phases} | {p.name: p for p in TRIES[1]}
    for phase in [known[name] for name in options.only] if options.only else TRIES[options.attempt]:
        begun = time.monotonic()
        runner.phase(phase)
        print(f"{phase.name}: {time.monotonic() - begun:.0f} s", flush=True)
    text, good = summary(runner.rows()[before:])
    text.append(f"{time.monotonic() - start:.0f} s; everything in {options.out}")
    (options.out / "summary.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
