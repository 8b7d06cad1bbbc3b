"""``python -m mmgl_losses``: what is there on this machine, and why an engine is not."""

import platform

import torch

import mmgl_losses
from mmgl_losses.contrast import arguments, engines, native
from mmgl_losses.contrast.problem import Problem


def lines() -> list[str]:
    """Versions, threads, CUDA, and every engine for tensors of each device."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found = [
        f"mmgl-losses {mmgl_losses.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"CPU: {platform.machine()}, {torch.get_num_threads()} threads; CUDA: {cuda}",
    ]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        few, many = _problem(2, device), _problem(1024, device)
        for name, engine in engines.ENGINES.items():
            reason = engine.refuses(many)
            chosen = [size for size, p in (("few", few), ("many", many)) if engines.engine("auto", p) is engine]
            picked = f"; impl='auto' takes it for {' and '.join(chosen)} points" if chosen else ""
            isa = f" ({native.instruction_set()})" if engine is native and reason is None else ""
            found.append(f"{name:<9} on {device}: " + (reason or f"there{isa}{picked}"))
    return found


def _problem(n: int, device: str) -> Problem:
    ids = torch.zeros(1, n, dtype=torch.int64, device=device)
    z = torch.zeros(1, n, 1, device=device)
    return arguments.pose(z, ids, temperature=1.0, bound=1.0, precision=z.dtype)


if __name__ == "__main__":
    print("\n".join(lines()))
