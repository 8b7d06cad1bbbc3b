"""Several processes of one machine that talk by gloo, for the tests of what crosses processes."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(check: Callable[[int], None], world: int, folder: Path) -> None:
    """Calls ``check(rank)`` in ``world`` processes that form a group; what one of them raises is raised here."""
    mp.spawn(_process, args=(check, world, f"file://{folder}/store"), nprocs=world)


def _process(rank: int, check: Callable[[int], None], world: int, store: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    check(rank)
    dist.barrier()
    # DDP and FSDP keep the group, so gloo's threads outlive destroy_process_group. If one of them frees a tensor while
    # the interpreter shuts down, the process aborts (https://github.com/pytorch/pytorch/issues/190489): end without it.
    os._exit(0)
