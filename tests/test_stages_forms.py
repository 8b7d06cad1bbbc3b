"""Stages are found in whatever form images go in and outputs come out: stacked on the batch, in objects, as tokens."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgl_losses import GlobalHead, LocalHead, attach_heads, discover_stages


def block(channels, out):
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class Net(nn.Module):
    """Two levels down, one up; `before` and `after` are the habits of a network around it."""

    def __init__(self, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.a, self.b, self.c, self.out = block(1, 8), block(8, 16), block(24, 8), nn.Conv2d(8, 3, 1)
        self.before, self.after = before, after

    def forward(self, x):
        a = self.a(self.before(x))
        b = self.b(F.max_pool2d(a, 2))
        return self.after(self.out(self.c(torch.cat([F.interpolate(b, scale_factor=2), a], 1))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda x: x.flatten(0, 1)[:, None], lambda y: y),  # views of a patient, one behind the other
        (lambda x: x.flatten(0, 1)[:, None], lambda y: y.unflatten(0, (2, 4)).transpose(1, 2)),  # slices of a volume
        (lambda x: x.flatten(0, 1)[:, None], lambda y: y.unflatten(0, (2, 4)).mean(1)),
        (lambda x: torch.cat([x[:, :1], x[:, 1:2].flip(-1)]), lambda y: y.chunk(2)),  # two images as one batch
        (lambda x: x[:, :1].repeat(3, 1, 1, 1), lambda y: y),
        (lambda x: x[torch.tensor([0, 1, 1, 0]), :1], lambda y: y),
    ],
    ids=["views", "slices", "mean of views", "two images", "repeated", "picked"],
)
def test_more_images_than_the_batch_has(before, after):
    net, x = Net(before, after), torch.randn(2, 4, 16, 16)
    stages = discover_stages(net, x)
    assert (stages.encoder, stages.decoder, stages.untapped) == (("a", "b"), ("c",), ())
    assert [row.stride for row in stages.rows] == [(1, 1), (2, 2), (1, 1), (1, 1)]
    _, embeddings = attach_heads(net, x, {"b": GlobalHead, "c": LocalHead})(x)
    images = len(before(x))
    assert embeddings["b"].shape == (images, 128)
    assert embeddings["c"].shape == (images, 128, 4, 4)


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


@dataclass(slots=True)
class Typed:
    logits: Tensor
    loss: Tensor | None = None


class Circular:
    def __init__(self, logits):
        self.me, self.parts = self, [{"logits": logits}]


@pytest.mark.parametrize("wrap", [lambda y: SimpleNamespace(logits=y), Slotted, Typed, Circular])
def test_logits_in_an_object(wrap):
    stages = discover_stages(Net(after=wrap), torch.randn(2, 1, 16, 16))
    assert (stages.encoder, stages.decoder) == (("a", "b"), ("c",))
    assert [row.name for row in stages.rows] == ["a", "b", "c", "out"]


class Transformer(nn.Module):
    """A class token before the others, taken off behind the last block."""

    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.zeros(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.up, self.out = block(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).mT
        tokens = self.layer(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))
        return self.out(self.up(F.interpolate(tokens[:, 1:].mT.unflatten(2, (4, 4)), scale_factor=2)))


def test_tokens_behind_a_class_token_are_reported_with_what_to_do():
    net, x = Transformer(), torch.randn(2, 1, 16, 16)
    stages = discover_stages(net, x)
    assert stages.untapped == (
        "encoder, stride 4x4: 'layer' returns tokens behind others, which a selector can take off; "
        "'patch' is the last module before it",
    )
    assert (stages.encoder, stages.decoder) == (("patch",), ("up",))
    tapped = attach_heads(net, x, {"layer": LocalHead}, selectors={"layer": lambda tokens: tokens[:, 1:]})
    assert tapped(x)[1]["layer"].shape == (2, 128, 1, 1)
