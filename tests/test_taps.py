"""Taps: the features are the network's own, the network stays as it was, and every misuse is named."""

import copy
import gc
import io
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from mmgl_losses.networks.attach import attach_heads
from mmgl_losses.networks.heads import GlobalHead, LocalHead
from mmgl_losses.networks.taps import FeatureTaps, TappedModel, head_key


class Net(nn.Module):
    """A little encoder-decoder with dropout and batch normalisation, whose features can be asked for."""

    def __init__(self):
        super().__init__()
        self.enc = nn.ModuleList([self.block(1, 4), self.block(4, 8)])
        self.dec = nn.Sequential(self.block(12, 6), nn.Dropout(0.3))
        self.out = nn.Conv2d(6, 3, 1)

    @staticmethod
    def block(channels, out):
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def features(self, x):
        a = self.enc[0](x)
        b = self.enc[1](F.max_pool2d(a, 2))
        d = self.dec[0](torch.cat([F.interpolate(b, scale_factor=2.0), a], 1))
        return self.out(self.dec[1](d)), {"enc.1": b, "dec.0": d}

    def forward(self, x):
        return self.features(x)[0]


NAMES = ["enc.1", "dec.0"]


def image(batch=2):
    return torch.randn(batch, 1, 8, 8)


def tapped_net(**options):
    return attach_heads(Net(), image(), {"enc.1": GlobalHead, "dec.0": partial(LocalHead, stride=2)}, **options)


def total(output, embeddings):
    return output.square().mean() + sum(e.square().mean() for e in embeddings.values())


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def state(net):
    """Everything a pass could change."""
    values = {name: value.clone() for name, value in net.state_dict().items()}
    return values, [m.training for m in net.modules()], hooks(net), torch.get_rng_state()


def same(a, b):
    return (
        a[0].keys() == b[0].keys()
        and all(torch.equal(a[0][key], b[0][key]) for key in a[0])
        and a[1:3] == b[1:3]
        and torch.equal(a[3], b[3])
    )


# What taps give


def test_tapped_features_and_gradients_are_the_explicit_ones():
    net, x = Net().eval(), image()
    output, features = net.features(x)
    with FeatureTaps(net, NAMES) as taps:
        tapped_output = net(x)
        tapped = taps.read()
    assert list(tapped) == NAMES
    assert torch.equal(output, tapped_output)
    assert all(torch.equal(tapped[name], features[name]) for name in NAMES)
    explicit = torch.autograd.grad(total(output, features), list(net.parameters()))
    through = torch.autograd.grad(total(tapped_output, tapped), list(net.parameters()))
    for a, b in zip(explicit, through, strict=True):
        torch.testing.assert_close(a, b)


def test_tapped_model_is_heads_on_explicit_features():
    tapped, x = tapped_net().eval(), image()
    output, embeddings = tapped(x)
    expected, features = tapped.net.features(x)
    heads = {name: tapped.heads[head_key(name)] for name in NAMES}
    assert torch.equal(output, expected)
    assert all(torch.equal(embeddings[name], heads[name](features[name])) for name in NAMES)
    explicit = torch.autograd.grad(
        total(expected, {n: heads[n](features[n]) for n in NAMES}), list(tapped.parameters())
    )
    through = torch.autograd.grad(total(output, embeddings), list(tapped.parameters()))
    for a, b in zip(explicit, through, strict=True):
        torch.testing.assert_close(a, b)


def test_output_can_be_left_out():
    tapped, x = tapped_net(output=False).eval(), image()
    output, embeddings = tapped(x)
    assert output is None
    assert embeddings["enc.1"].shape == (2, 128)


def test_a_pass_is_read_once_and_another_can_follow():
    net, a, b = Net().eval(), image(), image()
    with FeatureTaps(net, ["enc.1"]) as taps:
        net(a)
        first = taps.read()["enc.1"]
        with pytest.raises(ValueError, match="got no call"):
            taps.read()
        net(b)
        second = taps.read()["enc.1"]
    assert torch.equal(first, net.features(a)[1]["enc.1"])
    assert torch.equal(second, net.features(b)[1]["enc.1"])


def test_features_can_be_read_after_the_block():
    net, x = Net().eval(), image()
    with FeatureTaps(net, ["dec.0"]) as taps:
        net(x)
    assert torch.equal(taps.read()["dec.0"], net.features(x)[1]["dec.0"])


def test_taps_nest():
    net, x = Net().eval(), image()
    with FeatureTaps(net, ["enc.1"]) as outer, FeatureTaps(net, NAMES) as inner:
        net(x)
        assert torch.equal(outer.read()["enc.1"], inner.read()["enc.1"])
    tapped = TappedModel(TappedModel(net, {"enc.1": nn.Identity()}), {"net.dec.0": nn.Identity()})
    (_, inner_features), outer_features = tapped(x)
    assert torch.equal(inner_features["enc.1"], net.features(x)[1]["enc.1"])
    assert torch.equal(outer_features["net.dec.0"], net.features(x)[1]["dec.0"])


class Many(nn.Module):
    """A module that returns more than a tensor."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "object":
            return weakref.WeakValueDictionary if y is None else type("Output", (), {"feature": y})()
        return {"tuple": (x, y), "dict": {"in": x, "feature": y}, "list": [y]}[self.kind]


class Unpack(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.many = Many(kind)

    def forward(self, x):
        many = self.many(x)
        return (
            many.feature if self.many.kind == "object" else list(many.values() if isinstance(many, dict) else many)[-1]
        )


@pytest.mark.parametrize(
    ("kind", "selector"),
    [("tuple", 1), ("tuple", -1), ("dict", "feature"), ("object", "feature"), ("list", lambda out: out[0])],
)
def test_selectors(kind, selector):
    net, x = Unpack(kind), image()
    tapped = attach_heads(net, x, {"many": GlobalHead}, selectors={"many": selector})
    output, embeddings = tapped(x)
    assert torch.equal(embeddings["many"], tapped.heads["many"](output))
    with FeatureTaps(net, {"many": selector}) as taps:
        net(x)
        assert torch.equal(taps.read()["many"], output)


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.module = net

    def forward(self, x):
        return self.module(x)


def test_names_resolve_through_wrappers():
    net, x = Net().eval(), image()
    expected = net.features(x)[1]["enc.1"]
    for given, name in [
        (Wrapped(net), "enc.1"),
        (Wrapped(net), "module.enc.1"),
        (net, "module.enc.1"),
        (net, "_orig_mod.enc.1"),
    ]:
        with FeatureTaps(given, [name]) as taps:
            given(x)
        assert torch.equal(taps.read()[name], expected)


def test_names_that_a_module_dict_refuses():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys, self.pop = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.pop(self.keys(x))

    net = Odd()
    tapped = attach_heads(net, image(), {"keys": GlobalHead, "pop": GlobalHead, "": GlobalHead})
    assert list(tapped(image())[1]) == ["keys", "pop", ""]


# What taps leave alone


@pytest.mark.parametrize("training", [True, False])
def test_the_network_does_not_notice(training):
    net, x = Net().train(training), image()
    twin = copy.deepcopy(net)
    keys = list(net.state_dict())
    tapped = attach_heads(net, x, {"enc.1": GlobalHead})
    assert tapped.net is net
    torch.manual_seed(5)
    expected = twin(x)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    output, _ = tapped(x)
    assert torch.equal(output, expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert list(net.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    twin.load_state_dict(tapped.net.state_dict())


def test_hooks_go():
    net = Net()
    with FeatureTaps(net, NAMES):
        assert hooks(net) == 2
    assert hooks(net) == 0
    with pytest.raises(RuntimeError, match="size"), FeatureTaps(net, NAMES) as taps:
        net(torch.zeros(1, 1, 7, 7))
    assert hooks(net) == 0
    taps.__exit__(None, None, None)
    tapped = TappedModel(net, {"enc.1": nn.Identity()})
    assert hooks(net) == 1
    tapped.close()
    tapped.close()
    assert hooks(net) == 0


def test_nothing_is_kept():
    tapped, x = tapped_net(), image()
    seen = []
    tapped.net.enc[1].register_forward_hook(lambda m, a, out: seen.append(weakref.ref(out)))
    total(*tapped(x)).backward()
    gc.collect()
    assert seen[0]() is None
    with pytest.raises(RuntimeError, match="size"):
        tapped(torch.zeros(1, 1, 7, 7))
    gc.collect()
    assert seen[1]() is None
    net = weakref.ref(tapped.net)
    del tapped
    gc.collect()
    assert net() is None


def test_a_failed_pass_does_not_poison_the_next():
    tapped, x = tapped_net().eval(), image()
    before = tapped(x)[1]["enc.1"]
    with pytest.raises(RuntimeError, match="size"):
        tapped(torch.zeros(1, 1, 7, 7))
    assert torch.equal(tapped(x)[1]["enc.1"], before)


def test_copies_are_independent():
    tapped, x = tapped_net().eval(), image()
    tapped(x)
    teacher = copy.deepcopy(tapped)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    student = tapped(x)[1]["enc.1"]
    assert teacher(x)[1]["enc.1"].abs().max() == 0
    assert torch.equal(tapped(x)[1]["enc.1"], student)
    teacher.close()
    assert hooks(teacher.net) == 0
    assert hooks(tapped.net) == 2
    alone = copy.deepcopy(tapped.net)
    alone(x)  # its taps are closed


def test_pickles_and_saves():
    tapped, x = tapped_net().eval(), image()
    file = io.BytesIO()
    torch.save(tapped, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x)[1]["dec.0"], tapped(x)[1]["dec.0"])
    fresh = tapped_net().eval()
    fresh.load_state_dict(tapped.state_dict())
    assert torch.equal(fresh(x)[1]["dec.0"], tapped(x)[1]["dec.0"])
    assert next(key for key in tapped.state_dict() if key.startswith("heads.enc")) == "heads.enc/1.first.weight"


# Compile, export, checkpointing


def test_compiles_whole_and_once():
    torch.compiler.reset()  # other tests have compiled the same code
    tapped, x = tapped_net(), image()
    twin = copy.deepcopy(tapped)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(tapped.eval(), backend=counter, fullgraph=True)
    for _ in range(3):
        tapped.zero_grad()
        total(*compiled(x)).backward()
    assert counter.frame_count == 1
    total(*twin.eval()(x)).backward()
    for p, q in zip(tapped.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for parameter in tapped.net.parameters():
        parameter.requires_grad_(False)
    compiled(x)  # a frozen network compiles whole too


def test_a_second_stage_after_a_compiled_first():
    torch.compiler.reset()
    net, x = Net().eval(), image()
    first = torch.compile(attach_heads(net, x, {"enc.1": GlobalHead}), backend="aot_eager", fullgraph=True)
    first(x)
    second = attach_heads(net, x, {"dec.0": GlobalHead})
    expected = second(x)[1]["dec.0"]
    compiled = torch.compile(second, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x)[1]["dec.0"], expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
def test_exports_with_the_features_as_outputs(strict):
    tapped, x = tapped_net().eval(), image()
    program = torch.export.export(tapped, (x,), strict=strict)
    output, embeddings = program.module()(x)
    expected, features = tapped(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(embeddings, features)


class Checkpointed(Net):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def features(self, x):
        run = partial(checkpoint, use_reentrant=self.reentrant)
        a = self.enc[0](x)
        b = run(lambda a: self.enc[1](F.max_pool2d(a, 2)) + 1.0, a) - 1.0
        return self.out(F.interpolate(b[:, :6], scale_factor=2.0)), {"enc.1": b}


def test_checkpointing_changes_nothing():
    net, x = Checkpointed(False).eval(), image()
    tapped = attach_heads(net, x, {"enc.1": GlobalHead})
    gradients = []
    for run in (lambda x: tapped(x), lambda x: checkpoint(tapped, x, use_reentrant=False)):
        tapped.zero_grad()
        total(*run(x)).backward()
        gradients.append([p.grad.clone() for p in tapped.parameters() if p.grad is not None])
    tapped.zero_grad()
    features = Net.features(net, x)[1]["enc.1"]  # the same, without checkpoints
    output = net.out(F.interpolate((features + 1.0 - 1.0)[:, :6], scale_factor=2.0))
    total(output, {"": tapped.heads["enc/1"](features)}).backward()
    explicit = [p.grad for p in tapped.parameters() if p.grad is not None]
    for grads in gradients:
        assert len(grads) == len(explicit)
        for a, b in zip(grads, explicit, strict=True):
            torch.testing.assert_close(a, b)


def test_recomputation_in_backward_is_not_a_second_run():
    net, x, calls = Checkpointed(False), image(), []
    net.enc[1][0].register_forward_hook(lambda *args: calls.append(1))
    with FeatureTaps(net, ["enc.1.0"]) as taps:
        for _ in range(2):
            calls.clear()
            net(x).sum().backward()
            assert len(calls) == 2  # it did run again
            taps.read()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_reentrant_checkpointing_is_refused_unless_nothing_is_trained():
    net, x = Checkpointed(True), image()
    tapped = attach_heads(net, x, {"enc.1": GlobalHead})
    with pytest.raises(ValueError, match=r"'enc.1' to carry a gradient.*use_reentrant=False"):
        tapped(x)
    with torch.no_grad():
        tapped(x)
    net.enc[1].requires_grad_(False)
    tapped(x)


def test_a_tap_on_a_part_without_parameters_sees_the_detachment_around_it():
    class Detached(Net):
        def features(self, x):
            with torch.no_grad():
                a = self.dec[1](self.enc[0](x))
            return self.out(F.pad(a, (0, 0, 0, 0, 0, 2))), {}

    tapped = attach_heads(Detached(), image(), {"dec.1": GlobalHead})
    with pytest.raises(ValueError, match=r"'dec.1' to carry a gradient"):
        tapped(image())


# attach_heads


def test_attaching_touches_nothing_but_hooks():
    net = Net()
    net.enc[0][1].eval()
    net.out.register_forward_hook(lambda m, a, out: pytest.fail("the pass must not run the user's hooks"))
    x = image()
    before = state(net)
    made = []
    attach_heads(net, x, {"enc.1": lambda channels: made.append(channels) or nn.Identity()}).close()
    assert made == [8]
    assert same(before, state(net))
    with pytest.raises(RuntimeError, match="size"):
        attach_heads(net, torch.zeros(1, 1, 7, 7), {"enc.1": GlobalHead})
    assert same(before, state(net))


class Stubborn(Net):
    """Its flow depends on values, it draws random numbers, and it counts its calls: no fake pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(()))

    def features(self, x):
        self.calls += 1
        self.latest = torch.rand(())
        if x.sum().item() > 1e9:
            raise RuntimeError("too bright")
        return super().features(x)


def test_a_network_that_needs_values_runs_once_for_real_and_is_put_back():
    net = Stubborn()
    x, latest = image(), net.latest
    before = state(net)
    tapped = attach_heads(net, x, {"enc.1": nn.Identity()})
    tapped.close()
    assert same(before, state(net))
    assert net.latest is latest
    with pytest.raises(RuntimeError, match="too bright"):
        attach_heads(net, torch.full((1, 1, 8, 8), 1e9), {"enc.1": GlobalHead})
    assert same(before, state(net))
    made = attach_heads(net, image(), {"enc.1": GlobalHead, "dec.0": GlobalHead})
    assert [head.in_channels for head in made.heads.values()] == [8, 6]


def test_heads_follow_the_type_of_the_network():
    tapped = attach_heads(Net().double(), image().double(), {"enc.1": GlobalHead})
    assert tapped(image().double())[1]["enc.1"].dtype == torch.float64


def test_ready_modules_and_partials_are_heads():
    ready = GlobalHead(8, 5)
    tapped = attach_heads(Net(), image(), {"enc.1": ready, "dec.0": partial(LocalHead, out_channels=7, stride=2)})
    assert tapped.heads["enc/1"] is ready
    assert tapped(image())[1]["dec.0"].shape == (2, 7, 4, 4)


def test_networks_with_several_arguments():
    class Two(Net):
        def forward(self, x, *, scale):
            return super().forward(x * scale)

    net, x = Two(), image()
    tapped = attach_heads(net, {"x": x, "scale": torch.ones(())}, {"enc.1": GlobalHead})
    assert tapped(x, scale=2.0)[1]["enc.1"].shape == (2, 128)

    class Pair(Net):
        def forward(self, x, y):
            return super().forward(x + y)

    assert attach_heads(Pair(), (x, x), {"enc.1": GlobalHead})(x, x)[1]["enc.1"].shape == (2, 128)


# freeze_unused


def test_freezing_leaves_exactly_what_the_loss_reaches():
    tapped, x = tapped_net(), image()
    loss = tapped(x)[1]["enc.1"].sum()
    frozen = tapped.freeze_unused(loss)
    reached = {name for name, p in tapped.named_parameters() if p.requires_grad}
    loss.backward()
    assert reached == {name for name, p in tapped.named_parameters() if p.grad is not None}
    assert set(frozen) == {name for name, _ in tapped.named_parameters()} - reached
    assert any(name.startswith("heads.dec/0") for name in frozen)
    assert any(name.startswith("net.out") for name in frozen)
    assert tapped.freeze_unused(tapped(x)[1]["enc.1"].sum()) == []
    for name in frozen:
        tapped.get_parameter(name).requires_grad_(True)
    assert all(p.requires_grad for p in tapped.parameters())


def test_freezing_computes_no_gradient():
    tapped, x = tapped_net(), image()
    loss = tapped(x)[1]["enc.1"].sum()
    loss.register_hook(lambda grad: pytest.fail("a backward pass ran"))
    tapped.freeze_unused(loss)
    assert all(p.grad is None for p in tapped.parameters())


def test_freezing_sees_through_checkpoints_that_show_it():
    tapped = attach_heads(Checkpointed(False), image(), {"enc.1": GlobalHead})
    frozen = tapped.freeze_unused(tapped(image())[1]["enc.1"].sum())
    assert "net.enc.1.0.weight" not in frozen
    assert "net.out.weight" in frozen


def test_freezing_needs_a_graph_of_this_model():
    tapped, x = tapped_net(), image()
    for loss in (torch.zeros(()), tapped_net()(x)[1]["enc.1"].sum()):
        with pytest.raises(ValueError, match="depends on parameters of this model"):
            tapped.freeze_unused(loss)
    net = Checkpointed(True)
    reentrant = attach_heads(net, x, {"enc.0": GlobalHead})
    with pytest.raises(ValueError, match="reentrant"):
        reentrant.freeze_unused(reentrant(x)[0].sum())
    assert all(p.requires_grad for p in [*tapped.parameters(), *reentrant.parameters()])


# Misuse


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.act = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))

    def forward(self, x):
        return self.act(self.conv(self.conv(x)))


def read_once(net, x, name, **options):
    with FeatureTaps(net, [name], **options) as taps:
        net(x)
    return taps.read()[name]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("act.2", ValueError, r"the name of a module of the network, got 'act.2'. Close matches: .*'act.1'"),
        ("unused", ValueError, r"'unused' to run once in a forward pass, got no call"),
        ("conv", ValueError, r"'conv' to run once in a forward pass, got 2 calls. It is shared"),
        ("act.0", ValueError, r"'act.0' to stay as it was, got it overwritten in place.*inplace=True"),
    ],
)
def test_misuse_is_named_everywhere(name, error, words):
    net, x = Shared(), image()
    with pytest.raises(error, match=words):
        attach_heads(net, x, {name: GlobalHead})
    with pytest.raises(error, match=words):
        TappedModel(net, {name: nn.Identity()})(x)
    with pytest.raises(error, match=words):
        read_once(net, x, name)


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("compiled", [False, True])
def test_which_call_of_a_module_to_take(call, compiled):
    net, x = Shared(), image()
    first = net.conv(x)
    expected = (first, net.conv(first))[call]
    tapped = attach_heads(net, x, {"conv": nn.Identity()}, calls={"conv": call})
    if compiled:
        tapped = torch.compile(tapped, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(tapped(x)[1]["conv"], expected)
    tapped.close()
    with FeatureTaps(net, ["conv"], calls={"conv": call}) as taps:
        net(x)
    assert torch.equal(taps.read()["conv"], expected)


class OnceMore(nn.Sequential):
    """In training it goes through its first part a second time, with something else: a reconstruction beside it."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        features = self[0](x)
        return (self[1](features), self[0](x.flip(-1)).mean()) if self.training else self[1](features)


def test_a_module_that_runs_once_more_in_training():
    net, x = OnceMore(), image()
    tapped = attach_heads(net, x, {"0": nn.Identity()})
    with pytest.raises(ValueError, match=r"got 2 calls.*once more in training.*`calls=\{'0': 0\}` is the first"):
        tapped(x)
    tapped.close()
    tapped = attach_heads(net, x, {"0": nn.Identity()}, calls={"0": 0})
    for mode in (True, False):
        tapped.train(mode)
        assert torch.equal(tapped(x)[1]["0"], net[0](x))


@pytest.mark.parametrize(
    ("calls", "error", "words"),
    [
        ({"conv": 2}, ValueError, r"'conv' to run 3 times in a forward pass, for `calls\['conv'\]=2`, got 2 calls"),
        ({"conv": -1}, ValueError, r"`calls\['conv'\]` to be an integer of at least 0, got -1"),
        ({"conv": "first"}, TypeError, r"`calls\['conv'\]` to be an integer"),
        ({"act": 0}, ValueError, "the name of a tapped module in `calls`, got 'act'"),
        (0, TypeError, "`calls` to be a mapping from names to numbers of calls, got 0"),
    ],
)
def test_calls_that_are_none(calls, error, words):
    net, x = Shared(), image()
    with pytest.raises(error, match=words):
        attach_heads(net, x, {"conv": nn.Identity()}, calls=calls)
    with pytest.raises(error, match=words):
        TappedModel(net, {"conv": nn.Identity()}, calls=calls)(x)
    with pytest.raises(error, match=words):
        read_once(net, x, "conv", calls=calls)


def test_a_copy_survives_what_follows_in_place():
    net, x = Shared(), image()
    tapped = attach_heads(net, x, {"act.0": GlobalHead}, selectors={"act.0": torch.clone})
    head = tapped.heads["act/0"]
    torch.testing.assert_close(tapped(x)[1]["act.0"], head(net.act[0](net.conv(net.conv(x)))))


def test_outputs_that_are_no_tensors_are_named():
    for kind, words in [("tuple", "got tuple of 2"), ("dict", "keys 'in', 'feature'"), ("object", "got Output")]:
        net, x = Unpack(kind), image()
        with pytest.raises(TypeError, match=rf"module 'many' to return a tensor, .*{words}"):
            attach_heads(net, x, {"many": GlobalHead})
        with pytest.raises(TypeError, match=words):
            TappedModel(net, {"many": nn.Identity()})(x)
    with pytest.raises(ValueError, match=r"output of 'many' to have 'depth', got dict with the keys"):
        attach_heads(Unpack("dict"), x, {"many": GlobalHead}, selectors={"many": "depth"})
    with pytest.raises(ValueError, match=r"to have 5, got tuple of 2"):
        attach_heads(Unpack("tuple"), x, {"many": GlobalHead}, selectors={"many": 5})
    with pytest.raises(TypeError, match=r"selector of 'many' to give a tensor"):
        attach_heads(Unpack("tuple"), x, {"many": GlobalHead}, selectors={"many": lambda out: out})


def compiled_whole():
    return torch.compile(Net(), backend="eager")


def compiled_in_place():
    net = Net()
    net.compile(backend="eager")
    return net


def compiled_part():
    net = Net()
    net.enc[1] = torch.compile(net.enc[1], backend="eager")
    return net


@pytest.mark.parametrize(
    ("make", "name"), [(compiled_whole, "enc.1"), (compiled_in_place, "enc.1"), (compiled_part, "enc.1.0")]
)
def test_compiled_networks_are_refused(make, name):
    with pytest.raises(ValueError, match=r"compiled already. .*torch.compile\(attach_heads"):
        attach_heads(make(), image(), {name: GlobalHead})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_tap_around_a_compiled_part_works():
    net, x = compiled_part().eval(), image()
    tapped = attach_heads(net, x, {"enc.1": nn.Identity()})
    assert torch.equal(tapped(x)[1]["enc.1"], net.features(x)[1]["enc.1"])


def test_data_parallel_is_refused():
    tapped = tapped_net()
    tapped._is_replica = True
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        tapped(image())


def test_inference_mode_and_functional_call():
    tapped, x = tapped_net().eval(), image()
    expected = tapped(x)[1]["enc.1"]
    with torch.inference_mode():
        assert torch.equal(tapped(x)[1]["enc.1"], expected)
    weights = {name: p.detach() for name, p in tapped.named_parameters()}
    gradients = torch.func.grad(lambda w: torch.func.functional_call(tapped, w, (x,))[1]["enc.1"].sum())(weights)
    expected.sum().backward()
    torch.testing.assert_close(gradients["net.enc.0.0.weight"], tapped.net.enc[0][0].weight.grad)
