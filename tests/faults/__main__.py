"""``python -m tests.faults``: kill runs and tables, fill their disk, resume them, and compare with undisturbed ones.

Half of the kills come after a random time, half at a random change to a file, so that states in the middle of a write are
met too; a folder is killed up to three times before it may end. While a run ends, another on its folder must be refused.
A disk is full from a random change on, or for files of more than a random size.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from tests.examples.tiny import write_tree
from tests.faults.child import TO_ITS_END, Child, Ended, Plan
from tests.faults.subjects import SUBJECTS, Subject

AGAIN = 3  # kills of one folder before it may end
SHARE = 0.8  # of an undisturbed run, in which faults come
SAID = 2000  # bytes that a child may say, which are a file too
ROOM = "error: Expected room on the disk for "


class Campaign:
    """Faults done to a subject.

    Args:
        subject: Which.
        data: The data set.
        folder: Where.
        rng: Draws the moments.
    """

    def __init__(self, subject: Subject, data: Path, folder: Path, rng: random.Random) -> None:
        self.subject, self.data, self.folder, self.rng = subject, data, folder, rng
        self.wrong: list[str] = []
        self.folders = 0
        began = time.perf_counter()
        whole = self._child(folder / "undisturbed").wait()
        if whole.code:
            raise RuntimeError(whole.log)
        self.seconds, self.changes = time.perf_counter() - began, whole.changes
        self.wanted = subject.left(folder / "undisturbed")
        self.sizes = [path.stat().st_size for path in (folder / "undisturbed").rglob("*") if path.is_file()]
        print(f"{subject.name}: {self.seconds:.1f} s and {self.changes} changes to files undisturbed", flush=True)

    def kill(self, most: int) -> int:
        """Kills a new folder up to three times and lets it end; gives how often it was killed."""
        out, told, killed = self._new(), [], 0
        for _ in range(min(AGAIN, most)):
            if self.rng.random() < 0.5:
                planned = Plan(seconds=self.rng.uniform(0, SHARE * self.seconds))
            else:
                planned = Plan(change=self.rng.randrange(int(SHARE * self.changes)))
            told.append(str(planned))
            ended = self._child(out, planned).wait()
            killed += ended.killed
            if not ended.killed:
                break
        self._end(out, f"{killed} kills ({'; '.join(told)})")
        return killed

    def fill(self) -> None:
        """Fills the disk of a new folder, and lets it end when there is room."""
        out = self._new()
        if self.rng.random() < 0.5:
            planned = Plan(full=self.rng.randrange(int(SHARE * self.changes)))
        else:
            planned = Plan(largest=self.rng.choice([size - 1 for size in self.sizes if size > SAID]))
        ended = self._child(out, planned).wait()
        told = f"full disk ({planned})"
        lines = ended.log.splitlines()
        if ended.code != 2 or "Traceback" in ended.log or not lines[-1].startswith(ROOM):
            self._say(told, f"said {lines[-1:]} and ended with {ended.code}")
        kept = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
        self._end(out, told)
        if any(path.stat().st_mtime_ns != when for path, when in kept.items()):
            self._say(told, "something finished was made again")

    def _end(self, out: Path, told: str) -> None:
        """Lets a folder end, a run with an intruder, and looks at what is left."""
        child = self._child(out)
        refused = None
        if self.subject.name == "run":
            time.sleep(self.rng.uniform(0.2, 0.4) * self.seconds)
            refused = self._child(out).wait()
        ended = child.wait()
        if ended.code:
            verdict = f"failed: {ended.log.strip().splitlines()[-1:]}"
        elif refused is not None and not self._well_refused(refused):
            verdict = f"an intruder ended with {refused.code}: {refused.log}"
        elif self.subject.left(out) != self.wanted:
            verdict = "another result"
        else:
            verdict = ""
        self._say(told, verdict)

    def _well_refused(self, intruder: Ended) -> bool:
        """Whether a second process said who is there, or came when all was over."""
        return intruder.code == 0 or (intruder.code == 2 and "another process at work in it" in intruder.log)

    def _say(self, told: str, verdict: str) -> None:
        print(f"  {told}: {verdict or 'as undisturbed'}", flush=True)
        self.wrong += [f"{self.subject.name}, {told}: {verdict}"] if verdict else []

    def _new(self) -> Path:
        self.folders += 1
        return self.folder / f"{self.folders}"

    def _child(self, out: Path, planned: Plan = TO_ITS_END) -> Child:
        return Child(partial(self.subject.do, self.data, out), out, planned)


def main(argv: list[str] | None = None) -> int:
    """Does all faults; 1 if a result is not the undisturbed one."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of runs, and as many of tables")
    parser.add_argument("--full", type=int, default=4, help="full disks of runs, and as many of tables")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], help="one of them")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rng, wrong = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_tree(folder / "tiny", volumes=5)
        os.chdir(folder)
        for subject in SUBJECTS:
            if options.only in (None, subject.name):
                (folder / subject.name).mkdir()
                campaign, killed = Campaign(subject, data, folder / subject.name, rng), 0
                while killed < options.kills:
                    killed += campaign.kill(options.kills - killed)
                for _ in range(options.full):
                    campaign.fill()
                wrong += campaign.wrong
                done = f"{killed} kills and {options.full} full disks in {campaign.folders} folders"
                print(f"{subject.name}: {done}, {len(campaign.wrong)} wrong", flush=True)
    print("\n".join(wrong) if wrong else "Every result is that of an undisturbed run, bit for bit.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
