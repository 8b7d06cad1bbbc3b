"""Stages and taps follow the data: nothing is left behind, and axes are those that the maps have."""

import copy
import functools
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgl_losses
from mmgl_losses import GlobalHead, LocalHead, TappedModel, UNet, attach_heads, discover_stages
from mmgl_losses.networks.taps import head_key
from mmgl_losses.networks.trace import record
from tests.networks.more_own_networks import ChannelsLast, Siamese, SwinUNet, Tokens, scripted
from tests.networks.own_networks import double


def image(size=32, channels=1):
    return torch.randn(2, channels, size, size)


@functools.lru_cache
def grid(size):
    """User code that keeps a tensor for as long as the process runs."""
    return torch.linspace(0, 1, size)


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = double(2, 4), double(4, 8), double(12, 4), nn.Conv2d(4, 3, 1)
        self.calls, self.seen, self.nested = 0, [], {"sizes": [[]]}

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.nested["sizes"][0].append(x.shape)
        x = torch.cat([x, grid(x.shape[-1]).expand_as(x)], 1)
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        return self.out(self.c(torch.cat([F.interpolate(b, scale_factor=2), a], 1)))


def test_what_user_code_caches_serves_training():
    grid.cache_clear()
    net, x = Cached(), image()
    assert discover_stages(net, x).decoder == ("c",)
    attach_heads(net, x, {"b": GlobalHead}).close()
    assert (net.calls, net.seen, net.nested) == (0, [], {"sizes": [[]]})
    for model in (net, Cached()):  # a second network, built later, too
        output = model(x)
        assert type(output) is torch.Tensor
        before = model.a[0].weight.detach().clone()
        output.square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert not torch.equal(model.a[0].weight, before)


def test_a_pass_on_meta_computes_nothing():
    with torch.device("meta"):
        net, x = UNet(channels=(4, 6, 8)), torch.zeros(2, 1, 4096, 4096)
    assert discover_stages(net, x).encoder == ("encoder.blocks.0", "encoder.blocks.1", "encoder.bottleneck")


def test_the_pass_keeps_no_tensor():
    net, x = Cached(), image()
    gc.collect()
    before = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    trace = record(net, x)
    gc.collect()
    assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= before + 1  # the cached grid
    assert len(trace.nodes) > 10


def test_lazy_modules_stay_lazy():
    net = nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 2, stride=2), nn.ReLU())
    attach_heads(net, image(), {"0": GlobalHead}).close()
    assert isinstance(net[0].weight, nn.UninitializedParameter)


def test_what_cannot_be_tapped_is_said():
    siamese = discover_stages(Siamese(), image(channels=2))
    assert siamese.encoder == ("mix",)
    assert any("'a' runs 2 times" in line for line in siamese.untapped)
    assert "Not tapped" in str(siamese)
    part = discover_stages(scripted(), image())
    assert part.encoder == ("a", "c")
    assert any("'b' is scripted" in line for line in part.untapped)
    attach_heads(scripted(), image(), {"a": GlobalHead})(image())
    for tap in (attach_heads, lambda net, x, heads: TappedModel(net, {"b": nn.Identity()})):
        with pytest.raises(ValueError, match=r"'b' to be one that Python runs, got it in 'b', which is scripted"):
            tap(scripted(), image(), {"b": GlobalHead})


@pytest.mark.parametrize(
    ("net", "name", "channels", "size"),
    [(ChannelsLast(), "a", 8, 32), (Tokens(), "transformer", 24, 8), (SwinUNet(), "stage1", 16, 8)],
)
def test_heads_on_channels_last_and_tokens_get_maps(net, name, channels, size):
    kept = {}
    net.get_submodule(name).register_forward_hook(lambda m, a, out: kept.update(out=out))
    tapped = attach_heads(net.eval(), image(), {name: functools.partial(LocalHead, stride=1)})
    x = image()
    embedding = tapped(x)[1][name]
    head = tapped.heads[head_key(name)]
    assert head.in_channels == channels
    own = kept["out"] if kept["out"].ndim == 4 else kept["out"].unflatten(1, (size, size))
    torch.testing.assert_close(embedding, head(own.permute(0, 3, 1, 2)))
    other = tapped(image(64))[1][name]
    assert other.shape[2:] == (2 * size, 2 * size)
    copy.deepcopy(tapped)(x)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 64), (64, 16), (32, 64)])
def test_tokens_are_arranged_as_the_image_is(size):
    net, x = Tokens().eval(), torch.randn(2, 1, *size)
    kept = {}
    net.transformer.register_forward_hook(lambda m, a, out: kept.update(out=out))
    tapped = attach_heads(net, image(), {"transformer": nn.Identity()})
    rows, columns = (side // 4 for side in size)
    expected = tapped(x)[1]["transformer"]
    assert torch.equal(expected, kept["out"].unflatten(1, (rows, columns)).permute(0, 3, 1, 2))
    compiled = torch.compile(tapped, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x)[1]["transformer"], expected)


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 8, 8, stride=8), nn.Parameter(torch.zeros(1, 1, 8))
        self.mix, self.attention = nn.Linear(8, 8), nn.Softmax(-1)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.mix(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return self.attention(x @ x.transpose(1, 2)) @ x


def test_what_is_no_map_is_refused():
    net, x = ClassToken(), image()
    for name in ("mix", "attention"):
        with pytest.raises(ValueError, match=rf"feature of '{name}' to be a map, or tokens of one, got shape"):
            attach_heads(net, x, {name: GlobalHead})
    tapped = attach_heads(
        net, x, {"mix": functools.partial(LocalHead, stride=1)}, selectors={"mix": lambda t: t[:, 1:]}
    )
    assert tapped(x)[1]["mix"].shape == (2, 128, 4, 4)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = double(1, 4), double(4, 8)

    def forward(self, x):
        a = self.a(x)
        return a, self.b(a)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.out = Pair(), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.out(self.pair(x)[1])


def test_a_frozen_part_of_an_output_can_be_selected():
    net, x = Outer(), image()
    net.pair.a.requires_grad_(False)
    tapped = attach_heads(net, x, {"pair": GlobalHead}, selectors={"pair": 0})
    assert tapped(x)[1]["pair"].requires_grad


def test_a_model_closes_and_says_so():
    net, x = Outer(), image()
    with attach_heads(net, x, {"pair.b": GlobalHead}) as tapped:
        tapped(x)
    assert not net.pair.b._forward_hooks
    with pytest.raises(ValueError, match=r"got one after `close\(\)`"):
        tapped(x)
    dropped = attach_heads(net, x, {"pair.b": GlobalHead})
    shallow = copy.copy(dropped)
    del shallow
    dropped(x)
    del dropped
    gc.collect()
    assert not net.pair.b._forward_hooks  # a model that is dropped leaves no hooks


def test_a_module_that_was_replaced_is_named():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    tapped = attach_heads(net, image(), {"1": GlobalHead})
    nn.SyncBatchNorm.convert_sync_batchnorm(tapped).eval()
    with pytest.raises(ValueError, match="convert_sync_batchnorm"):
        tapped(image())


def test_heads_take_the_type_of_their_feature():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3).bfloat16()

        def forward(self, x):
            return self.body(self.stem(x).bfloat16())

    tapped = attach_heads(Mixed(), image(), {"stem": GlobalHead, "body": GlobalHead})
    assert [e.dtype for e in tapped(image())[1].values()] == [torch.float32, torch.bfloat16]


def test_odd_names_keep_heads_apart():
    net = nn.Sequential()
    net.add_module("a", nn.Sequential())
    net.a.add_module("b", nn.Conv2d(1, 4, 1))
    net.add_module("a/b", nn.Conv2d(4, 8, 1))
    tapped = attach_heads(net, image(), {"a.b": GlobalHead, "a/b": GlobalHead})
    assert [head.in_channels for head in tapped.heads.values()] == [4, 8]
    assert head_key("a~b") != head_key("a/b")


def test_names_with_quotes_can_be_pasted():
    net = nn.Sequential()
    net.add_module('say "a"', double(1, 4))
    net.add_module("b'\\", double(4, 8))
    call = str(discover_stages(net, image())).split("\n\n")[-1]
    scope = {**vars(mmgl_losses), "net": net, "example": image()}
    exec(call, scope)
    assert scope["tapped"](image())[1]


@pytest.mark.parametrize("example", [lambda x: [x, x], lambda x: (x, x), lambda x: {"x": x, "y": x}])
def test_examples_are_arguments(example):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = double(1, 4), nn.Conv2d(4, 2, 1)

        def forward(self, x, y, scale=1.0):
            return self.out(self.a(x + y) * scale)

    net, x = Two(), image()
    assert discover_stages(net, example(x)).encoder == ("a",)
    assert discover_stages(net, x, kwargs={"y": x, "scale": 2.0}).encoder == ("a",)
    tapped = attach_heads(net, x, {"a": GlobalHead}, kwargs={"y": x})
    assert isinstance(tapped, TappedModel)
    with pytest.raises(TypeError, match="`kwargs` to be a mapping"):
        discover_stages(net, x, kwargs=[x])


def test_meta_tensors_of_monai_work_and_give_the_same():
    from monai.data import MetaTensor

    net, x = Cached().eval(), image()
    tapped = attach_heads(net, MetaTensor(x), {"b": GlobalHead, "c": LocalHead})
    plain, wrapped = tapped(x), tapped(MetaTensor(x))
    torch.testing.assert_close(torch.as_tensor(wrapped[0]).as_subclass(torch.Tensor), plain[0])
    for name, value in plain[1].items():
        torch.testing.assert_close(wrapped[1][name].as_subclass(torch.Tensor), value)
    assert discover_stages(net, MetaTensor(x)) == discover_stages(net, x)


def test_exports_with_sizes_that_vary():
    from torch.export import Dim, export

    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    tapped = attach_heads(net, image(), {"1": LocalHead}).eval()
    sizes = {0: Dim("batch"), 2: Dim("height", min=8), 3: Dim("width", min=8)}
    program = export(tapped, (image(),), dynamic_shapes={"args": (sizes,)})
    x = torch.randn(3, 1, 40, 24)
    torch.testing.assert_close(program.module()(x)[1]["1"], tapped(x)[1]["1"])
