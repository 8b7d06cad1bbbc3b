"""The options of all commands, and what they say."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from examples.mmwhs.data.datasets import Reading
from examples.mmwhs.messages import message
from examples.mmwhs.train import config
from examples.mmwhs.train.methods import built_in, load, read
from examples.mmwhs.train.plain import in_a_line, parse

DEFAULTS = config.Compute()
# The rows of the paper's Table 1 and what stands beside them; the bars of its Fig. 3.
TABLE = ["random", "global", "global_local", "semicontrast", "mmgl_226", "mmgl_127", "mmgl_334", "mmgl"]
BESIDE = ["random_ds", "pcl", "moco", "mmgl_printed", "supervised_planes", "full"]
ABLATION = ["random", "random_ds", "global_multiscale", "global_multiview", "mmgl_334"]
MANY: dict[str, tuple[list[str], list[float | int]]] = {
    "table": ([*TABLE, *BESIDE], [0.1, 0.2, 0.4]),
    "ablation": (ABLATION, [0.2]),
}
PROGRAM = "python -m examples.mmwhs"


class Parser(ArgumentParser):
    """Says what is wrong with a command line in a sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prints the first sentence and ends with status 2."""
        words = in_a_line(str(message))
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"error: {words}. See --help.")
        sys.exit(2)


def parser(saved: dict[str, Any] | None = None) -> ArgumentParser:
    """All commands and their options; `saved` are values for `run` from a configuration file."""
    top = Parser(prog=PROGRAM, description="Few labels, many scales: MMGL on volumes.")
    commands = top.add_subcommands(dest="command", required=True)

    demo = Parser(description="Methods side by side, with the same few labelled patients.")
    demo.add_argument("--data", type=str | None, help="a data folder; a phantom is made if left out")
    demo.add_argument("--out", type=Path | None, help="the folder of all results (default: runs/demo-DATA)")
    demo.add_argument(
        "--methods", type=str, nargs="+", default=["random_ds", "mmgl", "mmgl_selftrain"], help="names or YAML files"
    )
    _what(demo, labelled=2, scale="small")
    _reading(demo)
    _machine(demo)
    commands.add_subcommand("demo", demo, help=demo.description)

    phantom = Parser(description="Write volumes of a made-up heart, labelled as MM-WHS labels them.")
    phantom.add_argument("out", type=Path, help="a new folder")
    phantom.add_argument("--volumes", type=int, default=20)
    phantom.add_argument("--shape", type=tuple[int, int, int] | None, help="voxels, as [96,96,80]")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--overwrite", action="store_true", help="replace the phantom that is there")
    commands.add_subcommand("phantom", phantom, help=phantom.description)

    for name, text in (
        ("run", "Train, evaluate and report one method; a killed run continues."),
        ("check", "Print the plan of a run, open every file of the data, try every stage; nothing is trained."),
    ):
        run = Parser(description=text)
        run.add_argument("--config", type=Path | None, help="a YAML file with options, or the config.yaml of a run")
        run.add_argument("--data", type=str, required=True, help="a data folder")
        methods = ", ".join(built_in(config.Method))
        run.add_argument("--method", type=str, default="mmgl", help=f"{methods}, or a YAML file")
        run.add_argument("--out", type=Path | None, help="the folder (default: runs/DATA-METHOD-LABELLED-SEED)")
        _what(run, labelled=0.2, scale=None)
        _reading(run)
        _machine(run)
        run.set_defaults(saved or {})
        commands.add_subcommand(name, run, help=text)

    table = Parser(description="Table 1: all methods, numbers of labelled patients and seeds; resumable.")
    _many(table, *MANY["table"])
    commands.add_subcommand("table", table, help=table.description)

    ablation = Parser(description="Fig. 3: what each part of MMGL adds; resumable.")
    _many(ablation, *MANY["ablation"])
    commands.add_subcommand("ablation", ablation, help=ablation.description)

    probe = Parser(description="Score and draw what each stage of a run left in each level of the network.")
    probe.add_argument("run", type=Path, help="the folder of a run")
    commands.add_subcommand("probe", probe, help=probe.description)

    predict = Parser(description="Segment NIfTI volumes with the model.pt of a finished run.")
    predict.add_argument("images", type=Path, nargs="+", help="volumes, or folders of volumes")
    predict.add_argument("--checkpoint", type=Path, required=True, help="model.pt")
    predict.add_argument("-o", "--out", type=Path, required=True, help="the label file; of several, a folder")
    predict.add_argument("--overwrite", action="store_true", help="replace label files that are there")
    predict.add_argument("--probabilities", action="store_true", help="write those of the slices, too (.npz)")
    predict.add_argument("--accelerator", type=str, default=DEFAULTS.accelerator)
    commands.add_subcommand("predict", predict, help=predict.description)
    return top


def _many(command: ArgumentParser, methods: list[str], labelled: list[float | int]) -> None:
    command.add_argument("--data", type=str | None, help="a data folder; not needed with --report")
    command.add_argument("--out", type=Path | None, help="the folder of all results (default: runs/table-DATA)")
    command.add_argument("--results", type=Path | None, help="the folder of results.jsonl (default: OUT/results)")
    names = f"names or YAML files (default: {' '.join(methods)})"
    command.add_argument("--methods", type=str, nargs="+", help=names)
    counts = f"labelled patients: counts, or fractions with a point (default: {' '.join(map(str, labelled))})"
    command.add_argument("--labelled", type=int | float, nargs="+", help=counts)
    command.add_argument("--seeds", type=str, nargs="+", help="numbers, or a range like 0..4 (default: 0..4)")
    command.add_argument(
        "--score", type=Literal["test", "validation"], default="test",
        help="on whose patients; what is chosen by scores is chosen on validation",
    )  # fmt: skip
    command.add_argument(
        "--baseline", type=str | None, help="what all are compared with (default: random, or the first)"
    )
    command.add_argument("--report", action="store_true", help="only report on the results that are there already")
    command.add_argument("--jobs", type=int, default=2, help="runs at once: a device each, or a thread each")
    _scale(command, "small")
    _reading(command)
    _machine(command, "of each run")


def _scale(command: ArgumentParser, scale: str | None) -> None:
    scales = ", ".join(built_in(config.Scale))
    default = "" if scale else " (default: paper with a GPU, small without)"
    command.add_argument("--scale", type=str | None, default=scale, help=f"{scales}, or a YAML file{default}")
    override = "override a value: stages.local.loss.options.formula=mmgl, or scale.schedules.finetune.steps=600"
    command.add_argument("--set", type=str, action="append", default=[], metavar="PATH=VALUE", help=override)


def _what(command: ArgumentParser, *, labelled: float | int, scale: str | None) -> None:
    command.add_argument(
        "--labelled", type=int | float, default=labelled, help="labelled patients: a count, or a fraction with a point"
    )
    command.add_argument("--seed", type=int, default=0, help="of the split, the network and the order of the slices")
    _scale(command, scale)


def _reading(command: ArgumentParser) -> None:
    group = command.add_argument_group("how the data folder is read, where it does not say so itself")
    group.add_argument("--modality", type=str | None, help="of several: ct or mr, or a channel by name or number")
    group.add_argument("--patients", type=str | None, help="a regular expression: who is who in the cases' names")
    group.add_argument("--split", type=str | None, help="a file of splits, or a fold of one: FILE:FOLD, FOLD")
    group.add_argument("--planes", type=str, nargs="+", help="the planes to slice, first that of evaluation")
    group.add_argument("--unlabelled", type=str, nargs="+", help="folders of further volumes, for what needs no label")
    group.add_argument(
        "--rotation", type=float | None, help="degrees that slices turn in training, either way, at least"
    )
    group.add_argument("--flip", type=float | None, help="probability of mirroring slices in training, left to right")


def _machine(command: ArgumentParser, whose: str = "") -> None:
    """The machine; of a table, which has `jobs` of them, without what a single run may spread over."""
    group = command.add_argument_group("machine, in the words of Lightning's Trainer")
    group.add_argument("--accelerator", type=str, default=DEFAULTS.accelerator)
    group.add_argument("--precision", type=str, default=DEFAULTS.precision)
    group.add_argument("--workers", type=int, default=DEFAULTS.workers, help=f"processes that load slices {whose}")
    if not whose:
        group.add_argument("--devices", type=int | str, default=DEFAULTS.devices)
        group.add_argument("--num-nodes", type=int, default=DEFAULTS.num_nodes)
        group.add_argument(
            "--logger", type=Literal["csv", "tensorboard"], default=DEFAULTS.logger,
            help="tensorboard writes its events beside the files of CSV; see `tensorboard --logdir OUT`",
        )  # fmt: skip


def saved_options(argv: Iterable[str]) -> dict[str, Any]:
    """The options in the file of ``--config``: written by hand, or the ``config.yaml`` that a run has saved."""
    words = list(argv)
    at = [i for i, word in enumerate(words) if word == "--config" or word.startswith("--config=")]
    if not at or words[0] not in ("run", "check"):
        return {}
    path = Path(words[at[-1]].partition("=")[2] or "".join(words[at[-1] + 1 : at[-1] + 2]))
    if not path.is_file():
        raise ValueError(message(f"the file {path} of --config", "no such file"))
    content = read(path)
    if not isinstance(content, dict):
        raise ValueError(message(f"options in {path}", type(content).__name__))
    if isinstance(content.get("method"), dict):
        run = parse(config.Run, content, where=str(path))
        flat = {key: value for key, value in asdict(run.reading).items() if value is not None} | asdict(run.compute)
        content = {"data": run.data, "labelled": run.labelled, "seed": run.seed, **flat}
        content |= {"method": str(path), "scale": str(path)}
    return content


def scale_of(args: Namespace) -> config.Scale:
    """The scale of a command with its overrides."""
    if (name := args.scale) is None:
        import torch

        name = "paper" if torch.cuda.is_available() else "small"
    return load(config.Scale, name, [o.removeprefix("scale.") for o in args.set if o.startswith("scale.")])


def seeds_of(texts: Iterable[str]) -> list[int]:
    """``["0..2", "7"]`` as [0, 1, 2, 7]."""
    found: dict[int, None] = {}
    for text in texts:
        first, dots, last = text.partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise ValueError(message("`seeds` like 3 or 0..4", repr(text)))
        found |= dict.fromkeys(range(int(first), int(last if dots else first) + 1))
    return list(found)


def overrides(args: Namespace) -> list[str]:
    """What is overridden of methods."""
    return [o for o in args.set if not o.startswith("scale.")]


def reading_of(args: Namespace) -> Reading:
    """How the data folder is read."""
    folders = [str(Path(folder).resolve()) for folder in args.unlabelled or ()]
    return Reading(
        args.modality, args.patients, args.split, args.planes or None, args.rotation, args.flip, folders or None
    )


def settings(args: Namespace, method: config.Method, data: str) -> config.Run:
    """The configuration of a run from the options of a command."""
    return config.Run(
        data=str(Path(data).resolve()),
        method=method,
        scale=scale_of(args),
        labelled=args.labelled,
        seed=args.seed,
        reading=reading_of(args),
        compute=config.Compute(
            accelerator=args.accelerator,
            devices=args.devices,
            num_nodes=args.num_nodes,
            precision=args.precision,
            workers=args.workers,
            logger=args.logger,
        ),
    )
