"""More networks written by hand: where shapes and order mislead, and only the flow of data tells."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.entry import Entry, names
from tests.networks.own_networks import double


class Plain(nn.Module):
    """A U-Net of three levels with blocks `a`, `b`, `c`, `d`, `e` and the head `out`; parts of it are replaced below."""

    def __init__(self, classes=3, channels=1, widths=(8, 16, 32)):
        super().__init__()
        one, two, three = widths
        self.a, self.b, self.c = double(channels, one), double(one, two), double(two, three)
        self.d, self.e = double(three + two, two), double(two + one, one)
        self.out = nn.Conv2d(one, classes, 1)

    def features(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([F.interpolate(c, size=b.shape[2:]), b], 1))
        return self.e(torch.cat([F.interpolate(d, size=a.shape[2:]), a], 1))

    def forward(self, x):
        return self.out(self.features(x))


class Squeezed(Plain):
    """One class, whose axis is taken off."""

    def forward(self, x):
        return self.out(self.features(x)).squeeze(1)


class Named(Plain):
    """Logits and features in one dictionary."""

    def forward(self, x):
        features = self.features(x)
        return {"logits": self.out(features), "features": features}


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class Typed(Plain):
    """A dataclass comes out."""

    def forward(self, x):
        return Output(self.out(self.features(x)).log_softmax(1))


class Cascade(nn.Module):
    """A coarse network, and a fine one that is given the image and what the coarse one says."""

    def __init__(self):
        super().__init__()
        self.coarse, self.fine = Plain(), Plain(channels=4)

    def forward(self, x):
        return self.fine(torch.cat([x, self.coarse(x).softmax(1)], 1))


class Inner(nn.Module):
    """A block of U2-Net: a small U-Net with a residual connection around it."""

    def __init__(self, channels, out, depth):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU())
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(out, 4, 3, padding=1), nn.ReLU()) for _ in range(1))
        self.down.extend(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(depth - 1))
        self.bottom = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ReLU())
        self.up = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()) for _ in range(depth - 1))
        self.up.append(nn.Sequential(nn.Conv2d(8, out, 3, padding=1), nn.ReLU()))

    def forward(self, x):
        x = self.first(x)
        y, skips = x, []
        for i, down in enumerate(self.down):
            y = down(F.max_pool2d(y, 2, ceil_mode=True) if i else y)
            skips.append(y)
        y = self.bottom(y)
        for up in self.up:
            skip = skips.pop()
            y = up(torch.cat([F.interpolate(y, size=skip.shape[2:], mode="bilinear"), skip], 1))
        return x + y


class Nested(Plain):
    """U2-Net: every block is a U-Net, as deep as its place allows."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Inner(1, 8, 3), Inner(8, 16, 2), Inner(16, 32, 1)
        self.d, self.e = Inner(48, 16, 2), Inner(24, 8, 3)


class Volume(nn.Module):
    """A 3-D stem, whose depth is then taken off, before a 2-D U-Net."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, (3, 1, 1)), nn.ReLU())
        self.net = Plain(channels=4)

    def forward(self, x):
        return self.net(self.stem(x).squeeze(2))


class Window(nn.Module):
    """Attention in windows of 4 x 4 on channels-last maps, as in Swin."""

    def __init__(self, channels, shift=0):
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(channels),
            nn.Linear(channels, 3 * channels),
            nn.Linear(channels, channels),
        )
        self.shift = shift
        self.softmax = nn.Softmax(-1)

    def forward(self, x):
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm(x)
        y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).chunk(3, -1)
        y = self.out(self.softmax(q @ k.transpose(1, 2)) @ v)
        y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)


class Merge(nn.Module):
    """Patch merging: four neighbours become one, in the channels."""

    def __init__(self, channels):
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels)

    def forward(self, x):
        parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.reduction(torch.cat(parts, -1))


class Expand(nn.Module):
    """Patch expansion: one place becomes four, from the channels."""

    def __init__(self, channels):
        super().__init__()
        self.expand = nn.Linear(channels, 2 * channels)

    def forward(self, x):
        b, h, w, c = x.shape
        return self.expand(x).view(b, h, w, 2, 2, c // 2).permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 2)


class SwinUNet(nn.Module):
    """Channels-last all the way; as many channels as places along a side at one level."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 4, stride=4)
        self.stage1, self.merge, self.stage2 = nn.Sequential(Window(16), Window(16, 2)), Merge(16), Window(32)
        self.expand, self.mix, self.stage3 = Expand(32), nn.Linear(32, 16), Window(16)
        self.head = nn.Sequential(nn.ConvTranspose2d(16, 8, 4, stride=4), nn.ReLU())
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.stage1(self.embed(x).permute(0, 2, 3, 1))
        x = self.stage3(self.mix(torch.cat([self.expand(self.stage2(self.merge(a))), a], -1)))
        return self.out(self.head(x.permute(0, 3, 1, 2)))


class Tokens(nn.Module):
    """TransUNet: convolutions, then tokens (B, N, C), then a decoder."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.patch = double(1, 8), double(8, 16), nn.Conv2d(16, 24, 2, stride=2)
        layer = nn.TransformerEncoderLayer(24, 2, 24, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.d, self.e, self.out = double(40, 16), double(24, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.patch(b)
        tokens = self.transformer(c.flatten(2).transpose(1, 2))
        c = tokens.transpose(1, 2).reshape(c.shape)
        d = self.d(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.out(self.e(torch.cat([F.interpolate(d, scale_factor=2), a], 1)))


class Siamese(nn.Module):
    """One encoder sees two images, one after the other; the decoder joins both."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mix = double(1, 8), double(8, 16), double(32, 16)
        self.e, self.out = double(32, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        pairs = []
        for image in (x[:, :1], x[:, 1:]):
            a = self.a(image)
            pairs.append((a, self.b(F.max_pool2d(a, 2))))
        deep = self.mix(torch.cat([pairs[0][1], pairs[1][1]], 1))
        return self.out(self.e(torch.cat([F.interpolate(deep, scale_factor=2), pairs[0][0], pairs[1][0]], 1)))


class Padded(Plain):
    """The image is padded inside, and the output cut back: the first maps are larger than the image."""

    def forward(self, x):
        return super().forward(F.pad(x, (6, 6, 6, 6)))[..., 6:-6, 6:-6]


class Enlarged(Plain):
    """The image is enlarged inside."""

    def forward(self, x):
        x = super().forward(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return F.avg_pool2d(x, 2)


class Shuffled(nn.Module):
    """The image is unshuffled into channels first, and shuffled back at the end."""

    def __init__(self):
        super().__init__()
        self.net = Plain(channels=4, classes=12)

    def forward(self, x):
        return F.pixel_shuffle(self.net(F.pixel_unshuffle(x, 2)), 2)


class Unfolded(nn.Module):
    """Patches by unfold and linear layers; places come back by fold."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Linear(16, 24), double(24, 24)
        self.back, self.e, self.out = nn.Linear(24, 16 * 8), double(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        patches = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        maps = self.mix(patches.transpose(1, 2).reshape(x.shape[0], 24, x.shape[2] // 4, x.shape[3] // 4))
        x = F.fold(self.back(maps.flatten(2).transpose(1, 2)).transpose(1, 2), x.shape[2:], 4, stride=4)
        return self.out(self.e(x))


class ChannelsLast(nn.Module):
    """ConvNeXt's blocks: a depthwise convolution, then everything on the last axis; the modules take and give channels-last."""

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            self.norm, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 16), nn.Linear(16, channels)

        def forward(self, x):
            y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return x + self.down(F.gelu(self.up(self.norm(y))))

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(1, 8, 3, padding=1), self.Block(8)
        self.shrink, self.b = nn.Conv2d(8, 16, 2, stride=2), self.Block(16)
        self.grow, self.mix, self.c = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Linear(16, 8), self.Block(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        a = self.a(self.stem(x).permute(0, 2, 3, 1))
        b = self.b(self.shrink(a.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        up = self.grow(b.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.out(self.c(self.mix(torch.cat([up, a], -1)))).permute(0, 3, 1, 2)


class Hourglass(nn.Module):
    """Two hourglasses in a row, with a residual branch at each level and a head after each."""

    class Glass(nn.Module):
        def __init__(self):
            super().__init__()
            self.side1, self.side2 = double(8, 8), double(8, 8)
            self.down1, self.down2, self.up2, self.up1 = double(8, 8), double(8, 8), double(8, 8), double(8, 8)

        def forward(self, x):
            one = self.down1(F.max_pool2d(x, 2))
            two = self.up2(self.down2(F.max_pool2d(one, 2)))
            inner = self.up1(F.interpolate(two, scale_factor=2) + self.side2(one))
            return F.interpolate(inner, scale_factor=2) + self.side1(x)

    def __init__(self):
        super().__init__()
        self.stem, self.glass1, self.glass2 = double(1, 8), self.Glass(), self.Glass()
        self.head1, self.back, self.fuse, self.head2 = (
            nn.Conv2d(8, 3, 1),
            nn.Conv2d(3, 8, 1),
            double(8, 8),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        first = self.glass1(x)
        logits = self.head1(first)
        return [logits, self.head2(self.fuse(self.glass2(x + first + self.back(logits))))]


class Unpadded(nn.Module):
    """The first U-Net: no padding, skips are cut to fit."""

    def __init__(self):
        super().__init__()

        def valid(channels, out):
            return nn.Sequential(nn.Conv2d(channels, out, 3), nn.ReLU(), nn.Conv2d(out, out, 3), nn.ReLU())

        self.down = nn.ModuleList([valid(1, 4), valid(4, 8), valid(8, 16), valid(16, 32)])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in (16, 8, 4))
        self.up = nn.ModuleList(valid(2 * c, c) for c in (16, 8, 4))
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        skips = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for grow, up, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            x = grow(x)
            cut = (skip.shape[2] - x.shape[2]) // 2
            x = up(torch.cat([skip[:, :, cut : cut + x.shape[2], cut : cut + x.shape[3]], x], 1))
        return self.out(x)


class Gated(Plain):
    """Attention gates, as functions, and squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.gate, self.side, self.psi = nn.Conv2d(32, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 1, 1)
        self.squeeze, self.excite = nn.Linear(32, 4), nn.Linear(4, 32)

    def features(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        c = c * self.excite(self.squeeze(c.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        up = F.interpolate(c, scale_factor=2)
        b = b * self.psi((self.gate(up) + self.side(b)).relu()).sigmoid()
        d = self.d(torch.cat([up, b], 1))
        return self.e(torch.cat([F.interpolate(d, scale_factor=2), a], 1))


class Full(nn.Module):
    """U-Net 3+: each level of the decoder joins all levels of the encoder and the deeper ones of the decoder."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2, self.e3 = double(1, 8), double(8, 16), double(16, 32)
        self.from1, self.from2, self.from3 = (nn.Conv2d(c, 8, 3, padding=1) for c in (8, 16, 32))
        self.to1, self.to2, self.to3, self.to4 = (nn.Conv2d(c, 8, 3, padding=1) for c in (8, 16, 32, 24))
        self.d2, self.d1, self.out = double(24, 24), double(24, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        e1 = self.e1(x)
        e2 = self.e2(F.max_pool2d(e1, 2))
        e3 = self.e3(F.max_pool2d(e2, 2))
        pooled, enlarged = self.from1(F.max_pool2d(e1, 2)), self.from3(F.interpolate(e3, scale_factor=2))
        d2 = self.d2(torch.cat([pooled, self.from2(e2), enlarged], 1))
        deep = self.to3(F.interpolate(e3, scale_factor=4))
        return self.out(self.d1(torch.cat([self.to1(e1), self.to4(F.interpolate(d2, scale_factor=2)), deep], 1)))


def plain(**options):
    return lambda: Plain(**options)


def scripted() -> nn.Module:
    net = Plain()
    net.b = torch.jit.script(net.b)
    return net


ABC, DE, OUT = ("a", "b", "c"), ("d", "e"), ("out",)
MORE_OWN = {
    "own U-Net, 8 classes as channels": Entry(plain(classes=8), ABC, DE, OUT),
    "own U-Net, 16 classes at 250": Entry(plain(classes=16), ABC, DE, OUT, (250, 250)),
    "own U-Net, 64 classes": Entry(plain(classes=64, widths=(64, 64, 64)), ABC, DE, OUT),
    "own U-Net, logits squeezed": Entry(lambda: Squeezed(1), ABC, DE, OUT, logits=None),
    "own U-Net, logits and features": Entry(Named, ABC, DE, OUT, logits=lambda output: output["logits"]),
    "own U-Net, a dataclass out": Entry(Typed, ABC, DE, OUT, logits=lambda output: output.logits),
    "a cascade of two": Entry(Cascade, ("fine.a", "fine.b", "fine.c"), ("fine.d", "fine.e"), ("fine.out",)),
    "U-Nets inside a U-Net": Entry(Nested, ABC, DE, OUT, (64, 64)),
    "a 3-D stem before 2-D": Entry(
        Volume, ("net.a", "net.b", "net.c"), ("net.d", "net.e"), ("net.out",), (3, 32, 32), logits=None
    ),
    "Swin's windows, channels-last": Entry(SwinUNet, ("stage1", "stage2"), ("stage3", "head"), OUT, (64, 64)),
    "tokens at the bottom": Entry(Tokens, ("a", "b", "transformer"), DE, OUT),
    "Siamese": Entry(Siamese, ("mix",), ("e",), OUT, channels=2),
    "padded inside": Entry(Padded, ABC, DE, OUT),
    "enlarged inside": Entry(Enlarged, ABC, DE, OUT),
    "unshuffled first": Entry(Shuffled, ("net.a", "net.b", "net.c"), ("net.d", "net.e"), ("net.out",)),
    "unfold and fold": Entry(Unfolded, ("mix",), ("e",), OUT),
    "ConvNeXt's blocks, channels-last": Entry(ChannelsLast, ("a", "b"), ("c",), OUT),
    "two hourglasses": Entry(
        Hourglass,
        ("glass2.side1", "glass2.side2", "glass2.up2"),
        ("glass2.up1", "fuse"),
        logits=lambda output: output[1],
        revised="`glass2.down2` was expected; `glass2.up2` follows it on the same level.",
    ),
    "unpadded, skips cut": Entry(Unpadded, names("down.{}", 4), names("up.{}", 3), OUT, (188, 188), logits=None),
    "gates and excitation": Entry(Gated, ABC, DE, OUT),
    "U-Net 3+": Entry(Full, ("e1", "e2", "e3"), ("d2", "d1"), OUT),
    "one scripted block": Entry(
        scripted,
        ("a", "c"),
        DE,
        OUT,
        revised="`b` was expected; a scripted module takes no hooks, and the report says so.",
    ),
}
