"""What each command of the command line does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from examples.mmwhs.messages import integer, message, one_of
from examples.mmwhs.options import MANY, overrides, parser, reading_of, saved_options, scale_of, seeds_of, settings
from examples.mmwhs.train import config
from examples.mmwhs.train.methods import load, load_all


def do_phantom(args: Namespace, console: Console) -> None:
    """Writes a phantom."""
    from examples.mmwhs.data.phantom import write_phantom

    shape = {} if args.shape is None else {"shape": args.shape}
    write_phantom(args.out, volumes=args.volumes, seed=args.seed, overwrite=args.overwrite, **shape)
    console.print(f"{args.volumes} volumes in {args.out}")


def do_run(args: Namespace, console: Console) -> None:
    """Trains one method."""
    from examples.mmwhs.study import report
    from examples.mmwhs.train.run import run

    chosen = settings(args, load(config.Method, args.method, overrides(args)), args.data)
    word = Path(args.method).stem.partition(":")[0]
    name = "run" if word == "config" else word
    out = args.out or Path("runs") / f"{Path(chosen.data).name}-{name}-{chosen.labels}-{args.seed}"
    metrics = run(chosen, out, say=console.print, console=console)
    if metrics:
        page = report.write_runs(out, {name: out})
        console.print(report.console_table({name: metrics}))
        console.print(f"Report: {page}")


def do_check(args: Namespace, console: Console) -> None:
    """Says what a run would do and whether it can."""
    from tempfile import TemporaryDirectory

    from examples.mmwhs.train.check import check, plan
    from examples.mmwhs.train.setup import Setup

    chosen = settings(args, load(config.Method, args.method, overrides(args)), args.data)
    with TemporaryDirectory() as cache:
        setup = Setup.of(chosen, Path(cache))
        for line in plan(setup, args.out):
            console.print(line)
        check([setup], args.out or Path(), say=console.print, everything=True)
    console.print("All files can be used, every stage was built and stepped once, and there is such a machine.")


def do_demo(args: Namespace, console: Console) -> None:
    """Trains the methods side by side."""
    from examples.mmwhs.study.demo import demo

    methods = {
        name: partial(settings, args, method) for name, method in load_all(args.methods, overrides(args)).items()
    }
    name = "phantom" if args.data is None else Path(args.data).resolve().name
    demo(methods, args.out or Path("runs") / f"demo-{name}", console, data=args.data)


def do_table(args: Namespace, console: Console, command: str) -> int:
    """Trains what is missing of a table and reports on all of it; a report alone is on what is named, or on all."""
    from examples.mmwhs import files
    from examples.mmwhs.study import plan, report, results
    from examples.mmwhs.study.table import State, check_jobs, make
    from examples.mmwhs.train.run import logged

    if args.data is None and not args.report:
        raise ValueError(message("a data folder, --data", "none"))
    name = Path(args.data).resolve().name if args.data else "report"
    out = args.out or Path("runs") / f"table-{name}"
    folders = plan.Folders(out, args.results or out / "results")
    methods = load_all(args.methods or MANY[command][0], overrides(args))
    if args.baseline is not None and (args.methods or not args.report):
        one_of("baseline", args.baseline, methods)
    jobs, seeds, state = integer("jobs", args.jobs, least=1), seeds_of(args.seeds or ["0..4"]), State(total=0)
    say = logged(console.print, files.own(out, "table") / "log.txt")
    if args.report:
        found = results.chosen(
            results.read(folders.results),
            names=list(methods) if args.methods else [],
            labelled=args.labelled or [],
            seeds=seeds if args.seeds else [],
            scored=args.score,
        )
    else:
        planned = plan.jobs(
            methods,
            data=str(Path(args.data).resolve()),
            scale=scale_of(args),
            labelled=args.labelled or MANY[command][1],
            seeds=seeds,
            scored=args.score,
            reading=reading_of(args),
            compute=config.Compute(accelerator=args.accelerator, precision=args.precision, workers=args.workers),
            cache=out / "cache",
        )
        there = folders.finished()
        say(f"{sum(job.id in there for job in planned)} of {len(planned)} runs are done already.")
        if left := [job for job in planned if job.id not in there]:
            check_jobs(left, folders, say)
            state = make(planned, folders, count=jobs, say=say)
        there = folders.finished()
        found = [there[job.id] for job in planned if job.id in there]
        say(f"{state.made} of {state.total} steps done here; {len(found)} of {len(planned)} runs are done.")
    for task, error in state.failed.values():
        say(f"failed: {task.text}: {error}; see {out / 'failed'}. The same command tries again.")
    if found:
        page = report.write_table(out, found, out / "pictures", order=list(methods), baseline=args.baseline)
        console.print((out / "table.md").read_text(encoding="utf-8"))
        console.print(f"Report: {page}")
    elif args.report:
        raise ValueError(message(f"results of these methods in {folders.results}", "none"))
    return 1 if state.failed else 0


def do_probe(args: Namespace, console: Console) -> None:
    """Probes the stages of a run."""
    from examples.mmwhs.study.probe import probe

    for stage, levels in probe(args.run).items():
        scores = ", ".join(f"{level} {'–' if dice is None else f'{dice:.3f}'}" for level, dice in levels.items())
        console.print(f"{stage}: {scores}")
    console.print(f"Figures: {args.run / 'probe.png'}, {args.run / 'features.png'}")


def do_predict(args: Namespace, console: Console) -> None:
    """Segments volumes."""
    from examples.mmwhs.train.check import device, machine
    from examples.mmwhs.train.predict import predict

    compute = config.Compute(accelerator=args.accelerator)
    machine(compute)
    predict(
        args.checkpoint, args.images, args.out, overwrite=args.overwrite, with_probabilities=args.probabilities,
        device=device(compute), say=console.print,
    )  # fmt: skip


COMMANDS: dict[str, Callable[[Namespace, Console], int | None]] = {
    "demo": do_demo,
    "phantom": do_phantom,
    "run": do_run,
    "check": do_check,
    "table": partial(do_table, command="table"),
    "ablation": partial(do_table, command="ablation"),
    "probe": do_probe,
    "predict": do_predict,
}


def parsed(argv: list[str]) -> tuple[str, Namespace]:
    """The command of a command line, and its options."""
    args = parser(saved_options(argv)).parse_args(argv)
    return args.command, args[args.command]
