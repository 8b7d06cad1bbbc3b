"""One phase of `benchmarks.gpu` in a process of its own: its items in order, a line of JSON before and after each.

``python -m benchmarks.gpu_phase PHASE --start K --seconds S --out FOLDER``. A fault that leaves the device unusable
ends the process with status 3, and `benchmarks.gpu` starts another one behind the item that did it.
"""

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

BROKEN = 3


class Lines:
    """A file of JSON lines, each on disk before anything else happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **row: Any) -> None:
        """One more line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(phase: str, start: int, seconds: float, folder: Path) -> int:
    """The items from `start` on, for so many seconds."""
    import torch

    from benchmarks import gpu_items
    from benchmarks.case import reason

    lines = Lines(folder / "gpu.jsonl")
    setting = gpu_items.Setting(folder, time.monotonic() + seconds, torch.cuda.is_available())
    for i, item in enumerate(gpu_items.PHASES[phase](setting)):
        if i < start:
            continue
        about = {"phase": phase, "index": i, "item": item.name}
        if time.monotonic() > setting.deadline:
            lines.add(**about, state="left out")
            continue
        lines.add(**about, state="begun")
        try:
            found = item.run()
            if setting.cuda:
                torch.cuda.synchronize()
        except Exception as error:  # an item that fails is a result
            print(f"{phase}, {item.name}:\n{error}", file=sys.stderr, flush=True)
            lines.add(**about, state="failed", why=reason(error))
            if setting.cuda and not usable():
                return BROKEN
        else:
            lines.add(**about, state="done", **found)
    return 0


def usable() -> bool:
    """Whether the device still answers: after an illegal access it does not, in this process."""
    import torch

    try:
        torch.cuda.synchronize()
        return bool((torch.ones(1, device="cuda") == 1).item())
    except Exception:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Run a phase; without a GPU in the interpreter, with small tiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_phase", description=__doc__)
    parser.add_argument("phase")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic runs ask for it
    import torch

    with ExitStack() as stack:
        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
            from mmgl_losses.contrast.fused import plan

            tile = plan.Tile(32, 32, 4, 1)
            stack.enter_context(patch.multiple(plan, tile=lambda *_: tile, PROGRAMS=4))
        return run(options.phase, options.start, options.seconds, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
