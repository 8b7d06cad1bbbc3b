"""Methods side by side: the same labelled patients, the same first weights, the same fine-tuning budget."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from examples.mmwhs import files
from examples.mmwhs.data.phantom import write_phantom
from examples.mmwhs.study import report
from examples.mmwhs.train import config
from examples.mmwhs.train.check import check
from examples.mmwhs.train.fit import is_first
from examples.mmwhs.train.run import folders_of, logged, run
from examples.mmwhs.train.setup import Setup
from examples.mmwhs.train.watch import in_words


def demo(methods: Mapping[str, Callable[[str], config.Run]], out: Path, console: Console, *, data: str | None) -> None:
    """Runs every method in a folder of its own below `out`, prints a table, and writes one report on all.

    Args:
        methods: Id, which names the folder -> the configuration, given the data folder.
        out: The folder; a phantom goes to ``out/phantom``, prepared slices to ``out/cache``.
        console: Where to print.
        data: The data folder; None makes a phantom.
    """
    with files.room(out), files.alone(out, "demo") if is_first() else nullcontext():
        began, say = time.perf_counter(), logged(console.print, out / "log.txt")
        if data is None:
            data = str(out / "phantom")
            if is_first() and not (out / "phantom").exists():
                say("Making a phantom of 20 volumes ...")
                files.replace(out / "phantom", lambda aside: write_phantom(aside, volumes=20, seed=0))
        results, shared, setups = {}, {}, {}
        runs = {name: settings(data) for name, settings in methods.items()}
        if is_first():
            setups = {name: Setup.of(chosen, out / "cache") for name, chosen in runs.items()}
            check(list(setups.values()), out, say=say)  # a fault of the last is said before the first is trained
        for name, chosen in runs.items():
            setup = setups.get(name)
            results[name] = run(
                chosen, out / name, cache=out / "cache", say=console.print, console=console, shared=shared, setup=setup
            )
            shared |= folders_of(setup or Setup.of(chosen, out / "cache"), out / name)
        if not is_first():
            return
        files.write_json(out / "metrics.json", results)
        page = report.write_runs(out, {name: out / name for name in methods})
        first = next(iter(results.values()))
        console.print()
        console.print(report.console_table(results))
        for name, missed in report.missed(results).items():
            say(f"{results[name]['method']} never finds {', '.join(missed)}: it may be stuck.")
        say(
            f"{first['data']}, labelled: {', '.join(first['labelled'])}; seed {first['seed']}. "
            "One draw: which patients are labelled usually matters more than the method."
        )
        say(f"Done in {in_words(time.perf_counter() - began)}. Report: {page}")
