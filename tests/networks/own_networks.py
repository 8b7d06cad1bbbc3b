"""Networks written by hand, each for one habit of people who write networks by hand."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmgl_losses.networks.unet import UNet
from tests.networks.entry import Entry, names


class Functional(nn.Module):
    """Pooling, interpolation and joining are functions; activations work in place."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2, self.e3, self.bottom = (
            self.block(1, 4),
            self.block(4, 8),
            self.block(8, 12),
            self.block(12, 16),
        )
        self.d3, self.d2, self.d1 = self.block(28, 12), self.block(20, 8), self.block(12, 4)
        self.out = nn.Conv2d(4, 3, 1)

    @staticmethod
    def block(channels, out):
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))

    def forward(self, x):
        def join(x, skip):
            return torch.cat([F.interpolate(x, size=skip.shape[2:], mode="bilinear"), skip], 1)

        a = self.e1(x)
        b = self.e2(F.max_pool2d(a, 2))
        c = self.e3(F.max_pool2d(b, 2))
        x = self.d3(join(self.bottom(F.max_pool2d(c, 2)), c))
        return self.out(self.d1(join(self.d2(join(x, b)), a)))


class Flat(nn.Module):
    """No blocks at all: layers in a row, one shared activation, squeeze and excitation, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.conv3 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.up1, self.join1 = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1)
        self.act, self.out, self.sigmoid = nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Sigmoid()

    def forward(self, x):
        a = self.act(self.norm1(self.conv1(x)))
        b = self.act(self.norm2(self.conv2(a)))
        b = b * self.squeeze(b)
        x = self.act(self.conv3(b))
        x = self.act(self.join2(torch.cat([self.up2(x), b], 1)))
        x = self.act(self.join1(torch.cat([self.up1(x), a], 1)))
        return self.sigmoid(self.out(x))


class TwoPart(nn.Module):
    """An encoder that returns one tensor, a decoder whose blocks first narrow and then enlarge what they get."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(self.down(1, 4), self.down(4, 8), self.down(8, 16))
        self.decoder = nn.Sequential(self.up(16, 8), self.up(8, 4), self.up(4, 4))
        self.head = nn.Conv2d(4, 3, 1)

    @staticmethod
    def down(channels, out):
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)
        )

    @staticmethod
    def up(channels, out):
        return nn.Sequential(
            nn.Conv2d(channels, out, 1), nn.Upsample(scale_factor=2), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()
        )

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x)))


def double(channels: int, out: int) -> nn.Sequential:
    """Two convolutions with their activations."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()
    )


class Shared(nn.Module):
    """One block does the work of every level; only the layers between the levels are their own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = double(8, 8)
        self.downs = nn.ModuleList(nn.Conv2d(8, 8, 2, stride=2) for _ in range(2))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(8, 8, 2, stride=2) for _ in range(2))
        self.mixes = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x, skips = self.stem(x), []
        for down in self.downs:
            skips.append(self.block(x))
            x = down(skips[-1])
        x = self.block(x)
        for up, mix in zip(self.ups, self.mixes, strict=True):
            x = self.block(mix(torch.cat([up(x), skips.pop()], 1)))
        return self.out(x)


class Listed(nn.Module):
    """Everything in lists; the encoder's loop, the decoder's loop, and a dictionary with two heads at the end."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(double(a, b) for a, b in ((1, 4), (4, 8), (8, 16), (16, 32)))
        self.decoder = nn.ModuleList(double(a, b) for a, b in ((48, 16), (24, 8), (12, 4)))
        self.heads = nn.ModuleDict({"out": nn.Conv2d(4, 3, 1), "aux": nn.Conv2d(8, 3, 1)})

    def forward(self, x):
        skips = []
        for block in self.encoder[:-1]:
            skips.append(block(x))
            x = F.avg_pool2d(skips[-1], 2)
        x = self.encoder[-1](x)
        for block in self.decoder:
            before = x
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1))
        del before
        aux = F.interpolate(self.heads["aux"](F.avg_pool2d(x.repeat(1, 2, 1, 1), 2)), size=x.shape[2:])
        return {"out": self.heads["out"](x), "aux": aux}


class Stacked(nn.Sequential):
    """A Sequential whose forward pass adds skip connections to the order of its parts."""

    def __init__(self):
        super().__init__(
            double(1, 4), nn.MaxPool2d(2), double(4, 8), nn.MaxPool2d(2), double(8, 16),
            nn.ConvTranspose2d(16, 8, 2, 2), double(8, 8), nn.ConvTranspose2d(8, 4, 2, 2), double(4, 4), nn.Conv2d(4, 3, 1),
        )  # fmt: skip

    def forward(self, x):
        skips = []
        for module in self:
            if isinstance(module, nn.MaxPool2d):
                skips.append(x)
            x = module(x)
            if isinstance(module, nn.ConvTranspose2d):
                x = x + skips.pop()
        return x


class Checkpointed(nn.Module):
    """Every block runs under activation checkpointing."""

    def __init__(self, reentrant=False):
        super().__init__()
        self.reentrant = reentrant
        self.a, self.b, self.c = double(1, 4), double(4, 8), double(8, 16)
        self.d, self.e, self.out = double(24, 8), double(12, 4), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        def run(block, x):
            return checkpoint(block, x, use_reentrant=self.reentrant)

        a = run(self.a, x)
        b = run(self.b, F.max_pool2d(a, 2))
        c = run(self.c, F.max_pool2d(b, 2))
        x = run(self.d, torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.out(run(self.e, torch.cat([F.interpolate(x, scale_factor=2), a], 1)))


class Folded(nn.Module):
    """The encoder and the decoder are modules that return lists, with pixel shuffles on the way up."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.levels = nn.ModuleList(double(a, b) for a, b in ((1, 4), (4, 8), (8, 16)))

        def forward(self, x):
            features = []
            for i, level in enumerate(self.levels):
                features.append(level(F.max_pool2d(x, 2) if i else x))
                x = features[-1]
            return features

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand = nn.ModuleList([nn.Conv2d(16, 32, 1), nn.Conv2d(8, 16, 1)])
            self.levels = nn.ModuleList([double(16, 8), double(8, 4)])

        def forward(self, features):
            x = features[-1]
            for expand, level, skip in zip(self.expand, self.levels, features[-2::-1], strict=True):
                x = level(torch.cat([F.pixel_shuffle(expand(x), 2), skip], 1))
            return x

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = self.Encoder(), self.Decoder(), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x)))


class Valued(nn.Module):
    """Looks at the values of its input, which tensors without data do not have."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = double(1, 4), double(4, 8), double(12, 4), nn.Conv2d(4, 3, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        if x.abs().max().item() > 1:
            x = x / x.abs().max()
        a = self.norm(self.a(x))
        b = self.b(F.max_pool2d(a, 2))
        return self.d(self.c(torch.cat([F.interpolate(b, scale_factor=2), a], 1)))


class Bare(nn.Module):
    """No module of its own but itself: parameters and functions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.second = nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x):
        deep = F.conv2d(F.max_pool2d(x, 2), self.first, padding=1).relu()
        return F.interpolate(F.conv2d(deep, self.second), scale_factor=2)


OWN = {
    "UNet": Entry(
        lambda: UNet(1, 3, channels=(4, 6, 8, 10, 12)),
        (*names("encoder.blocks.{}", 4), "encoder.bottleneck"),
        names("decoder.blocks.{}", 4),
        ("classifier",),
    ),
    "UNet, 3-D, shallow, as many classes as channels": Entry(
        lambda: UNet(1, 4, channels=(4, 6, 8), spatial_dims=3),
        (*names("encoder.blocks.{}", 2), "encoder.bottleneck"),
        names("decoder.blocks.{}", 2),
        ("classifier",),
        (16, 17, 19),
    ),
    "functional": Entry(Functional, ("e1", "e2", "e3", "bottom"), ("d3", "d2", "d1"), ("out",)),
    "flat": Entry(
        Flat,
        ("norm1", "norm2", "conv3"),
        ("join2", "join1"),
        ("out",),
        logits=None,
        revised="`sigmoid` was expected in the output too; the output is named by the last layers with weights.",
    ),
    "two parts": Entry(TwoPart, names("encoder.{}", 3), names("decoder.{}", 3), ("head",)),
    "one block shared by all levels": Entry(Shared, "1:8 2:8 4:8", "2:8 1:8", ("out",)),
    "lists of modules, a dictionary out": Entry(
        Listed, names("encoder.{}", 4), names("decoder.{}", 3), logits=lambda output: output["out"]
    ),
    "a Sequential with skips": Entry(Stacked, ("0", "2", "4"), ("6", "8"), ("9",)),
    "checkpointed": Entry(Checkpointed, ("a", "b", "c"), ("d", "e"), ("out",)),
    "encoder and decoder return lists": Entry(
        Folded, names("encoder.levels.{}", 3), names("decoder.levels.{}", 2), ("head",)
    ),
    "depends on values": Entry(
        Valued,
        ("norm", "b"),
        ("c",),
        ("d",),
    ),
    "functions only": Entry(Bare, "", ""),
}
