"""``python -m mmgl_losses``: what is there on this machine, and why an engine is not. ``check`` runs them too."""

import argparse
import platform

import torch

import mmgl_losses
from mmgl_losses.contrast import engines, native
from mmgl_losses.testing import engines as check


def machine() -> list[str]:
    """Versions, threads and CUDA."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        f"mmgl-losses {mmgl_losses.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"CPU: {platform.machine()}, {torch.get_num_threads()} threads; CUDA: {cuda}",
    ]


def lines() -> list[str]:
    """The machine, and every engine for tensors of each device."""
    found = machine()
    for device in devices():
        few, many = check.problem(2, device), check.problem(1024, device)
        for name, engine in engines.ENGINES.items():
            reason = engine.refuses(many)
            chosen = [size for size, p in (("few", few), ("many", many)) if engines.engine("auto", p) is engine]
            picked = f"; impl='auto' takes it for {' and '.join(chosen)} points" if chosen else ""
            isa = f" ({native.instruction_set()})" if engine is native and reason is None else ""
            found.append(f"{name:<9} on {device}: " + (reason or f"there{isa}{picked}"))
    return found


def devices() -> tuple[str, ...]:
    """The devices there are."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def main(words: list[str] | None = None) -> int:
    """Say what is there; with ``check`` run it, and 1 where an engine is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mmgl_losses", description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=["check"], help="run every engine on fixed problems, about a minute"
    )
    if parser.parse_args(words).command is None:
        print("\n".join(lines()))
        return 0
    print(
        "This takes about a minute. Please paste what follows into a report:\n\n```\n" + "\n".join(machine()),
        flush=True,
    )
    good = check.report(devices(), lambda line: print(line, flush=True))
    print("```")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
