"""Everything a user does with a network, done once, with what went wrong in words."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

import mmgl_losses
from mmgl_losses import (
    DeepSupervisionDice,
    GlobalHead,
    LocalHead,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    SegmentationHead,
    Stages,
    TappedModel,
    attach_heads,
    discover_stages,
)
from mmgl_losses.networks.recorder import tensors
from tests.networks.entry import Entry, agree, level

CLASSES = 3


@dataclass
class Trial:
    """What a network gave; `problems` is empty where all was as it should be."""

    encoder: str = ""
    decoder: str = ""
    problems: list[str] = field(default_factory=list)
    reported: tuple[str, ...] = ()

    def check(self, good: bool, problem: str) -> None:
        if not good:
            self.problems.append(problem)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """An error in this step is a problem of it."""
        try:
            yield
        except Exception as error:
            self.problems.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


def try_network(entry: Entry) -> Trial:
    """Find the stages, train one step of each of the three stages, and give the weights back."""
    trial = Trial()
    torch.manual_seed(0)
    net, images = entry.make(), entry.image(4)
    labels = torch.randint(CLASSES, (4, *entry.size))
    keys = list(net.state_dict())
    stages = _look(trial, entry, net, images[:2])
    with trial.step("the pasted calls"):
        _paste(stages, net, images[:2])
    with trial.step("global contrast"):
        _train(trial, entry, net, images, dict.fromkeys(stages.encoder[-3:], GlobalHead), lambda _, z: _global(z))
    spatial = _growing(stages)
    with trial.step("local contrast"):
        heads = dict.fromkeys(spatial[-3:], partial(LocalHead, stride=1))
        _train(trial, entry, net, images, heads, lambda _, z: _local(z, labels))
    with trial.step("deep supervision"):
        heads = dict.fromkeys(spatial[-3:], partial(SegmentationHead, out_channels=CLASSES))
        _train(trial, entry, net, images, heads, lambda output, z: _dice(entry, output, z, labels))
    with trial.step("giving the weights back"):
        trial.check(list(net.state_dict()) == keys, "the state_dict has other keys")
        fresh = entry.make()
        fresh.load_state_dict(net.state_dict(), strict=True)
        outputs = [_evaluated(net, images), _evaluated(fresh, images)]
        trial.check(all(map(torch.equal, *outputs)), "a fresh network with the weights gives another output")
    return trial


def _look(trial: Trial, entry: Entry, net: nn.Module, image: Tensor) -> Stages:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, random = [module.training for module in net.modules()], torch.get_rng_state()
    types = [type(tensor) for tensor in _evaluated(net, image)]
    hooks = [len(module._forward_hooks) for module in net.modules()]  # with those that it hung on itself in that pass
    for module, training in zip(net.modules(), modes, strict=True):
        module.training = training
    stages = discover_stages(net, image)
    trial.check(torch.equal(torch.get_rng_state(), random), "the random state moved")
    trial.check(modes == [module.training for module in net.modules()], "training modes changed")
    same = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    trial.check(same, "weights or buffers changed")
    after = [type(tensor) for tensor in _evaluated(net, image)]
    trial.check(types == after, f"the network returned {types}, and returns {after} now")
    for module, training in zip(net.modules(), modes, strict=True):
        module.training = training
    trial.check(hooks == [len(module._forward_hooks) for module in net.modules()], "hooks were left behind")
    rows = {role: [row for row in stages.rows if row.role == role] for role in ("encoder", "decoder", "output")}
    trial.encoder, trial.decoder = (" ".join(map(level, rows[role])) for role in ("encoder", "decoder"))
    trial.check(agree(entry.encoder, rows["encoder"]), f"encoder: expected {entry.encoder}, found {stages.encoder}")
    trial.check(agree(entry.decoder, rows["decoder"]), f"decoder: expected {entry.decoder}, found {stages.decoder}")
    names = tuple(row.name for row in rows["output"])
    trial.check(entry.output in (None, names), f"output: expected {entry.output}, found {names}")
    trial.reported = stages.untapped
    told = "No decoder" in str(stages) or "No stages" in str(stages)
    trial.check(told != bool(stages.decoder), "the report does not say whether there is a decoder")
    return stages


def _paste(stages: Stages, net: nn.Module, example: Tensor) -> None:
    """Run what the report says, as it says it."""
    for call in str(stages).split("# ")[1:]:
        exec(call.partition("\n")[2], scope := {**vars(mmgl_losses), "net": net, "example": example})
        scope["tapped"].close()


def _growing(stages: Stages) -> list[str]:
    """The stages of the decoder, or else those of the encoder from its end, coarse to fine, one of each size."""
    rows = {row.name: row for row in stages.rows}
    names = stages.decoder or stages.encoder[::-1]
    sizes = [math.prod(rows[name].size) for name in names]
    return [name for i, name in enumerate(names) if all(size < sizes[i] for size in sizes[:i])]


def _train(
    trial: Trial,
    entry: Entry,
    net: nn.Module,
    images: Tensor,
    heads: dict,
    loss: Callable[[object, dict[str, Tensor]], Tensor],
) -> None:
    """One step of training through heads on the network."""
    if not heads:
        return
    net.train()
    calls = {name: call for name, call in entry.calls.items() if name in heads}
    tapped: TappedModel = attach_heads(net, images[:2], heads, calls=calls)
    optimiser = torch.optim.SGD(tapped.parameters(), lr=0.1)
    value = loss(*tapped(images))
    value.backward()
    trial.check(bool(value.isfinite()), f"the loss is {value}")
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    trial.check(any(bool(gradient.any()) for gradient in gradients), "no gradient reaches the network")
    trial.check(all(bool(gradient.isfinite().all()) for gradient in gradients), "a gradient is not finite")
    before = [p.detach().clone() for p in net.parameters()]
    optimiser.step()
    moved = any(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    trial.check(moved, "the weights did not move")
    net.zero_grad(set_to_none=True)
    tapped.close()


def _global(embeddings: dict[str, Tensor]) -> Tensor:
    return MultiScaleGlobalContrast(weights=(1.0,) * len(embeddings))(embeddings)


def _local(features: dict[str, Tensor], labels: Tensor) -> Tensor:
    labels = _flat(labels, next(iter(features.values())))
    return MultiScaleLocalSupCon(weights=(1.0,) * len(features), stride=2)(features, labels)


def _flat(labels: Tensor, features: Tensor) -> Tensor:
    """Labels with as many axes as the features: a network may take volumes and go on with slices."""
    while labels.ndim > features.ndim - 1:
        labels = labels[:, 0]
    return labels


def _dice(entry: Entry, output: object, coarser: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The heads on the coarser levels, and the network's own output as the finest."""
    levels = list(coarser.values())
    if entry.logits is not None:
        own = entry.logits(output)
        levels = [level for level in levels if level[0, 0].numel() < own[0, 0].numel()]
        levels.append(own[:, :CLASSES] if own.shape[1] != CLASSES else own)
    return DeepSupervisionDice(weights=(1.0,) * len(levels), cross_entropy=0.5)(levels, _flat(labels, levels[0]))


def _evaluated(net: nn.Module, images: Tensor) -> list[Tensor]:
    net.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return list(tensors(net(images[:2])))
