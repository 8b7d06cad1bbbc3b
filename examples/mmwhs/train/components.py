"""What a method needs beyond heads and losses, by the name that its configuration gives: where keys come from."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from examples.mmwhs.messages import integer, number, one_of


class MomentumQueue(nn.Module):
    r"""Keys from a copy of the network that follows it slowly, and a queue of its past ones (He et al. 2020).

    .. math:: \theta_k \leftarrow m \, \theta_k + (1 - m) \, \theta_q

    A query's positive is the copy's embedding of the other augmentation of its slice. Its negatives are the queue and,
    unlike in MoCo, the copy's embeddings of the other slices in the batch.

    Args:
        tapped: The network with heads that makes the queries.
        momentum: m, in [0, 1).
        size: Embeddings of each level that the queue holds.
    """

    def __init__(self, tapped: nn.Module, *, momentum: float = 0.99, size: int = 1024) -> None:
        super().__init__()
        self.momentum = number("momentum", momentum, least=0.0, most=1.0)
        self.size = integer("size", size, least=1)
        self.teacher = deepcopy(tapped).requires_grad_(False)
        self.queues: dict[str, Tensor] = {}

    def get_extra_state(self) -> dict[str, Tensor]:
        """The queue, whose length changes, for checkpoints."""
        return self.queues

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Takes the queue of a checkpoint."""
        self.queues = dict(state)

    @torch.no_grad()
    def forward(self, images: Tensor, instances: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Keys of each level, the batch's own first, and their instances; those of the queue are -1.

        Args:
            images: The other augmentation of each slice.
            instances: (B,), at least 0: which slice is whose.
        """
        _, levels = self.teacher(images)
        keys = {name: torch.cat([level, *self._queued(name, level)]) for name, level in levels.items()}
        past = len(next(iter(keys.values()))) - len(instances)
        self.queues = {name: level[: self.size] for name, level in keys.items()}
        return keys, torch.cat([instances, instances.new_full((past,), -1)])

    def _queued(self, name: str, like: Tensor) -> list[Tensor]:
        return [self.queues[name].to(like)] if name in self.queues else []

    @torch.no_grad()
    def follow(self, tapped: nn.Module) -> None:
        """Moves the copy towards the network, after each step; what is counted and not learned is copied."""
        for mine, theirs in zip(self.teacher.parameters(), tapped.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.momentum)
        for mine, theirs in zip(self.teacher.buffers(), tapped.buffers(), strict=True):
            mine.copy_(theirs)


COMPONENTS: dict[str, Callable[..., Any]] = {"MomentumQueue": MomentumQueue}


def component(name: str, tapped: nn.Module, **options: Any) -> Any:
    """A component by its name in `COMPONENTS`.

    Raises:
        ValueError: The name is unknown.
    """
    one_of("component", name, COMPONENTS)
    return COMPONENTS[name](tapped, **options)
