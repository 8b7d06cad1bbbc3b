"""Try every network of the list and write what came out: ``python -m tests.networks --write docs/networks.md``."""

import argparse
import gc
import math
import platform
import sys
import time
import warnings
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tests.networks.shim import let_torchvision_import
from tests.networks.trial import Trial, try_network
from tests.networks.zoo import ZOO

PACKAGES = ("torch", "monai", "dynamic-network-architectures", "transformers", "segmentation-models-pytorch", "timm", "torchvision")  # fmt: skip
PAGE = """# Networks it was tried on

{count} networks with random weights have been tried, small ones where their configuration allows it. `make networks` runs
them and writes this page (`python -m tests.networks --write docs/networks.md`). Versions: {versions}; Python {python},
{threads} thread of a CPU.

On each network:

- `discover_stages` must find the stages that were written down beforehand (`tests/networks/*_networks.py`). It must leave
  weights, buffers, modes, the random state and the type of the output as they were.
- The calls that it prints must run as they are.
- One training step must work with each of the three losses, with heads on the stages found, and must change the weights.
- The plain `state_dict` must load strictly into a fresh network, which must then give the same output.

How to read the table:

- A stage is written as stride:channels, such as `2x4x4:12`.
- *none* for the decoder: no layer makes features finer than the coarsest ones. Such networks interpolate their logits, or
  have none.
- *reported*: the stages found are right. There are others that cannot be tapped as they are, and the report says why.
- *calls*: in training, modules run once more for another branch. The option `calls` says which call the heads take.

**{passed} of {count} pass.**{failures}

| network | encoder | decoder | result |
|---|---|---|---|
{rows}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of names; all networks by default")
    parser.add_argument("--write", type=Path, help="the page to write; with names, only their rows change")
    arguments = parser.parse_args()
    let_torchvision_import()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # those of the networks' own libraries
    trials = {}
    for name in sorted(ZOO, key=lambda name: math.prod(ZOO[name].size) > 128**2):  # the large ones last
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        start, trials[name] = time.monotonic(), Trial()
        with trials[name].step("the network"), redirect_stdout(sys.stderr):
            trials[name] = try_network(ZOO[name])
        gc.collect()
        mark = "fails" if trials[name].problems else "ok"
        if arguments.write:  # after each, so that what was found is not lost
            known = read(arguments.write) if arguments.only and arguments.write.exists() else {}
            done = {**known, **trials}
            arguments.write.write_text(page({name: done[name] for name in ZOO if name in done}))
        print(f"{mark:5} {name} ({time.monotonic() - start:.0f} s)", *trials[name].problems, sep="\n      ", flush=True)
    return any(trial.problems for trial in trials.values())


def read(path: Path) -> dict[str, Trial]:
    """The trials on a page that was written before, so that some can be run again."""
    text = path.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    cells = {
        name: ["" if cell == "none" else cell for cell in (encoder, decoder)] for name, encoder, decoder, _ in rows
    }
    trials = {name: Trial(*cells[name], reported=("",) * ("reported" in result)) for name, _, _, result in rows}
    for line in text.partition("## What fails")[2].partition("\n## ")[0].splitlines():
        if line.startswith("- **"):
            name, _, problems = line.removeprefix("- **").partition("**: ")
            trials[name].problems = [problems]
    return trials


def page(trials: dict[str, Trial]) -> str:
    failed = {name: trial for name, trial in trials.items() if trial.problems}
    text = PAGE.format(
        count=len(trials),
        passed=len(trials) - len(failed),
        failures=_remarks(failed, [name for name in ZOO if name not in trials]),
        versions=", ".join(f"{name} {installed}" for name in PACKAGES if (installed := _installed(name))),
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        rows="\n".join(
            f"| {name} | {trial.encoder or 'none'} | {trial.decoder or 'none'} | "
            f"{'**fails**' if trial.problems else 'passes'}{', reported' if trial.reported else ''}{', calls' if ZOO[name].calls else ''} |"
            for name, trial in trials.items()
        ),
    )
    if failed:
        text += "\n## What fails\n\n"
        text += "".join(f"- **{name}**: {'; '.join(trial.problems)}\n" for name, trial in failed.items())
    if revised := {name: ZOO[name].revised for name in trials if ZOO[name].revised}:
        text += "\n## Expectations that were revised\n\n"
        text += "The first expectation was another one here; it was changed after a look at the network, for the reason given.\n\n"
        text += "".join(f"- **{name}**: {reason}\n" for name, reason in revised.items())
    return text


def _remarks(failed: Collection[str], absent: Sequence[str]) -> str:
    """What the number of those that pass does not say."""
    text = f" The {len(failed)} that do not are at the end, with what went wrong." if failed else ""
    return text + (f" Not run: {'; '.join(absent)}." if absent else "")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    raise SystemExit(main())
