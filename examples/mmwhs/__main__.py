"""The command line: ``python -m examples.mmwhs demo | phantom | run | table | ablation | probe | predict``."""

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape

from examples.mmwhs.messages import integer, message, one_of
from examples.mmwhs.train import config
from examples.mmwhs.train.methods import built_in, load, load_all

DEFAULTS = config.Compute()
# The rows of the paper's Table 1 and what stands beside them; the bars of its Fig. 3.
TABLE = ["random", "global", "global_local", "semicontrast", "mmgl_226", "mmgl_127", "mmgl_334", "mmgl"]
BESIDE = ["random_ds", "pcl", "moco", "mmgl_printed", "supervised_planes", "full"]
ABLATION = ["random", "random_ds", "global_multiscale", "global_multiview", "mmgl_334"]


def parser() -> ArgumentParser:
    """All commands and their options."""
    top = ArgumentParser(prog="python -m examples.mmwhs", description="Few labels, many scales: MMGL on volumes.")
    commands = top.add_subcommands(dest="command", required=True)

    demo = ArgumentParser(description="MMGL beside random initialisation, with the same few labelled patients.")
    demo.add_argument("--data", type=str | None, help="an MM-WHS or MSD folder; a phantom is made if left out")
    demo.add_argument("--out", type=Path | None, help="the folder of all results (default: runs/demo-DATA)")
    demo.add_argument("--methods", type=list[str], default=["random", "mmgl"], help="what to compare")
    _what(demo, labelled=2, scale="small")
    _machine(demo)
    commands.add_subcommand("demo", demo, help=demo.description)

    phantom = ArgumentParser(description="Write volumes of a made-up heart, labelled as MM-WHS labels them.")
    phantom.add_argument("out", type=Path, help="a new folder")
    phantom.add_argument("--volumes", type=int, default=20)
    phantom.add_argument("--shape", type=tuple[int, int, int] | None, help="voxels, as [96,96,80]")
    phantom.add_argument("--seed", type=int, default=0)
    commands.add_subcommand("phantom", phantom, help=phantom.description)

    run = ArgumentParser(description="Train, evaluate and report one method; a killed run continues.")
    run.add_argument("--config", action="config", help="a YAML file with any of these options")
    run.add_argument("--data", type=str, required=True, help="an MM-WHS or MSD folder")
    methods = ", ".join(built_in(config.Method))
    run.add_argument("--method", type=str, default="mmgl", help=f"{methods}, or a YAML file")
    run.add_argument("--out", type=Path | None, help="the folder of the run (default: runs/DATA-METHOD-LABELLED-SEED)")
    _what(run, labelled=0.2, scale="paper")
    _machine(run)
    commands.add_subcommand("run", run, help=run.description)

    table = ArgumentParser(description="Table 1: all methods, numbers of labelled patients and seeds; resumable.")
    _many(table, methods=[*TABLE, *BESIDE], labelled=[0.1, 0.2, 0.4])
    commands.add_subcommand("table", table, help=table.description)

    ablation = ArgumentParser(description="Fig. 3: what each part of MMGL adds; resumable.")
    _many(ablation, methods=ABLATION, labelled=[0.2])
    commands.add_subcommand("ablation", ablation, help=ablation.description)

    probe = ArgumentParser(description="Score and draw what each stage of a run left in each level of the network.")
    probe.add_argument("run", type=Path, help="the folder of a run")
    commands.add_subcommand("probe", probe, help=probe.description)

    predict = ArgumentParser(description="Segment a NIfTI volume with the model.pt of a finished run.")
    predict.add_argument("image", type=Path, help="the volume")
    predict.add_argument("--checkpoint", type=Path, required=True, help="model.pt")
    predict.add_argument("-o", "--out", type=Path, required=True, help="the label file to write")
    predict.add_argument("--overwrite", action="store_true", help="replace the label file if it is there")
    commands.add_subcommand("predict", predict, help=predict.description)
    return top


def _many(command: ArgumentParser, *, methods: list[str], labelled: list[float | int]) -> None:
    command.add_argument("--data", type=str, required=True, help="an MM-WHS or MSD folder")
    command.add_argument("--out", type=Path | None, help="the folder of all results (default: runs/table-DATA)")
    command.add_argument(
        "--results", type=Path | None, help="a JSON file for each run goes here (default: OUT/results)"
    )
    names = f"names or YAML files (default: {' '.join(methods)})"
    command.add_argument("--methods", type=str, nargs="+", default=methods, help=names)
    counts = "labelled patients: counts, or fractions with a point"
    command.add_argument("--labelled", type=int | float, nargs="+", default=labelled, help=counts)
    command.add_argument("--seeds", type=str, nargs="+", default=["0..4"], help="numbers, or a range like 0..4")
    command.add_argument(
        "--score", type=Literal["test", "validation"], default="test",
        help="on whose patients; what is chosen by scores is chosen on validation",
    )  # fmt: skip
    command.add_argument(
        "--baseline", type=str | None, help="what all are compared with (default: random, or the first)"
    )
    command.add_argument("--report", action="store_true", help="only report on the runs that are done already")
    command.add_argument("--jobs", type=int, default=2, help="runs at once: a device each, or a thread each")
    _scale(command, "small")
    group = command.add_argument_group("machine, in the words of Lightning's Trainer")
    group.add_argument("--accelerator", type=str, default=DEFAULTS.accelerator)
    group.add_argument("--precision", type=str, default=DEFAULTS.precision)
    group.add_argument("--workers", type=int, default=DEFAULTS.workers, help="processes that load slices, for each run")


def _scale(command: ArgumentParser, scale: str) -> None:
    scales = ", ".join(built_in(config.Scale))
    command.add_argument("--scale", type=str, default=scale, help=f"{scales}, or a YAML file")
    override = "override a value: stages.local.loss.options.formula=mmgl, or scale.schedules.finetune.steps=600"
    command.add_argument("--set", type=str, action="append", default=[], metavar="PATH=VALUE", help=override)


def _what(command: ArgumentParser, *, labelled: float | int, scale: str) -> None:
    command.add_argument(
        "--labelled", type=int | float, default=labelled, help="labelled patients: a count, or a fraction with a point"
    )
    command.add_argument("--seed", type=int, default=0, help="of the split, the network and the order of the slices")
    _scale(command, scale)


def _machine(command: ArgumentParser) -> None:
    group = command.add_argument_group("machine, in the words of Lightning's Trainer")
    group.add_argument("--accelerator", type=str, default=DEFAULTS.accelerator)
    group.add_argument("--devices", type=int | str, default=DEFAULTS.devices)
    group.add_argument("--num-nodes", type=int, default=DEFAULTS.num_nodes)
    group.add_argument("--precision", type=str, default=DEFAULTS.precision)
    group.add_argument("--workers", type=int, default=DEFAULTS.workers, help="processes that load slices")


def scale_of(args: Namespace) -> config.Scale:
    """The scale of a command with its overrides."""
    return load(config.Scale, args.scale, [o.removeprefix("scale.") for o in args.set if o.startswith("scale.")])


def seeds_of(texts: Iterable[str]) -> list[int]:
    """``["0..2", "7"]`` as [0, 1, 2, 7]."""
    found: dict[int, None] = {}
    for text in texts:
        first, dots, last = text.partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise ValueError(message("`seeds` like 3 or 0..4", repr(text)))
        found |= dict.fromkeys(range(int(first), int(last if dots else first) + 1))
    return list(found)


def settings(args: Namespace, method: str, data: str) -> config.Run:
    """The configuration of a run from the options of a command."""
    return config.Run(
        data=str(Path(data).resolve()),
        method=load(config.Method, method, [o for o in args.set if not o.startswith("scale.")]),
        scale=scale_of(args),
        labelled=args.labelled,
        seed=args.seed,
        compute=config.Compute(
            accelerator=args.accelerator,
            devices=args.devices,
            num_nodes=args.num_nodes,
            precision=args.precision,
            workers=args.workers,
        ),
    )


def do_phantom(args: Namespace, console: Console) -> None:
    """Writes a phantom."""
    from examples.mmwhs.data.phantom import write_phantom

    shape = {} if args.shape is None else {"shape": args.shape}
    write_phantom(args.out, volumes=args.volumes, seed=args.seed, **shape)
    console.print(f"{args.volumes} volumes in {args.out}")


def do_run(args: Namespace, console: Console) -> None:
    """Trains one method."""
    from examples.mmwhs.study.demo import table
    from examples.mmwhs.train.run import run

    chosen = settings(args, args.method, args.data)
    name = f"{Path(chosen.data).name}-{Path(args.method).stem}-{chosen.labels}-{args.seed}"
    out = args.out or Path("runs") / name
    metrics = run(chosen, out, say=console.print, progress=console.is_terminal)
    if metrics:
        console.print(table({metrics["method"]: metrics}))
        console.print(f"Report: {out / 'report.html'}")


def do_demo(args: Namespace, console: Console) -> None:
    """Trains the methods side by side."""
    from examples.mmwhs.study.demo import demo

    methods = {Path(name).stem: partial(settings, args, name) for name in args.methods}
    name = "phantom" if args.data is None else Path(args.data).resolve().name
    demo(methods, args.out or Path("runs") / f"demo-{name}", console, data=args.data)


def do_table(args: Namespace, console: Console) -> int:
    """Trains what is missing of a table and reports on all of it."""
    from examples.mmwhs.study import plan, progress, tablereport
    from examples.mmwhs.study.table import State, make

    data = str(Path(args.data).resolve())
    out = args.out or Path("runs") / f"table-{Path(data).name}"
    folders = plan.Folders(out, args.results or out / "results")
    methods = load_all(args.methods, [o for o in args.set if not o.startswith("scale.")])
    planned = plan.jobs(
        methods,
        data=data,
        scale=scale_of(args),
        labelled=args.labelled,
        seeds=seeds_of(args.seeds),
        scored=args.score,
        compute=config.Compute(accelerator=args.accelerator, precision=args.precision, workers=args.workers),
        cache=out / "cache",
    )
    if args.baseline is not None:
        one_of("baseline", args.baseline, methods)
    jobs = integer("jobs", args.jobs, least=1)
    with progress.View(planned, folders, console) as view:
        state = State(total=0) if args.report else make(planned, folders, count=jobs, show=view.show)
    view.conclude(state)
    if view.results:
        page = tablereport.write(
            out, list(view.results.values()), out / "pictures", order=list(methods), baseline=args.baseline
        )
        console.print(f"Report: {page}")
    return 1 if state.failed else 0


def do_probe(args: Namespace, console: Console) -> None:
    """Probes the stages of a run."""
    from examples.mmwhs.study.probe import probe

    for stage, levels in probe(args.run).items():
        scores = ", ".join(f"{level} {'–' if dice is None else f'{dice:.3f}'}" for level, dice in levels.items())
        console.print(f"{stage}: {scores}")
    console.print(f"Figures: {args.run / 'probe.png'}, {args.run / 'features.png'}")


def do_predict(args: Namespace, console: Console) -> None:
    """Segments a volume."""
    from examples.mmwhs.train.predict import predict

    predict(args.checkpoint, args.image, args.out, overwrite=args.overwrite)
    console.print(f"Wrote {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; an error of the user is one sentence and exit status 2."""
    args = parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    command = {
        "demo": do_demo,
        "phantom": do_phantom,
        "run": do_run,
        "table": do_table,
        "ablation": do_table,
        "probe": do_probe,
        "predict": do_predict,
    }[args.command]
    try:
        return command(args[args.command], console) or 0
    except ValueError as error:
        said = str(error)
    except OSError as error:
        said = message("files that can be read and written", str(error))
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(said)}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
