"""What people do with MONAI around this library: its loaders and transforms in front of it, its inferers behind it."""

import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.inferers import SimpleInferer, SlidingWindowInferer, sliding_window_inference
from monai.losses import DiceLoss
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    RandCropByPosNegLabeld,
    RandFlipd,
    ScaleIntensityd,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from mmgl_losses import (
    DeepSupervisionDice,
    GlobalHead,
    LocalHead,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    SegmentationHead,
    UNet,
    attach_heads,
    discover_stages,
)

KEYS = ["image", "label"]


@pytest.fixture(autouse=True)
def nothing_stays_compiled():
    """What is compiled here is compiled in pieces, and the compiler would remember that for the same code elsewhere."""
    yield
    torch.compiler.reset()


def loader():
    """Two crops of each of four slices, cached, flipped, and put together by MONAI."""
    torch.manual_seed(0)
    items = [{"image": torch.rand(24, 24), "label": torch.randint(3, (24, 24))} for _ in range(4)]
    transforms = Compose([
        EnsureChannelFirstd(KEYS, channel_dim="no_channel"), ScaleIntensityd("image"), EnsureTyped(KEYS),
        RandCropByPosNegLabeld(KEYS, label_key="label", spatial_size=(16, 16), num_samples=2),
        RandFlipd(KEYS, prob=0.5),
    ]).set_random_state(0)  # fmt: skip
    return DataLoader(CacheDataset(items, transforms, progress=False), batch_size=2)


def plain(value):
    """The same tensor without what MONAI keeps beside it."""
    assert type(value) is MetaTensor
    return value.as_tensor()


def stages(example):
    """The three stages of MMGL on one network: a tapped model, what its loss is given, and the loss."""
    net = UNet(1, 3, channels=(4, 6, 8))
    found = discover_stages(net, example)
    yield (
        attach_heads(net, example, dict.fromkeys(found.encoder, GlobalHead), output=False),
        lambda out, labels: (out[1],),
        MultiScaleGlobalContrast(weights=(0.2, 0.2, 0.6)),
    )
    yield (
        attach_heads(net, example, dict.fromkeys(found.decoder, LocalHead), output=False),
        lambda out, labels: (out[1], labels),
        MultiScaleLocalSupCon(weights=(0.4, 0.6)),
    )
    yield (
        attach_heads(net, example, {found.decoder[0]: lambda channels: SegmentationHead(channels, 3)}),
        lambda out, labels: ([*out[1].values(), out[0]], labels),
        DeepSupervisionDice(weights=(0.3, 0.7), cross_entropy=0.5),
    )


@pytest.mark.parametrize("number", range(3), ids=["global", "local", "dice"])
def test_batches_of_monai_train_as_plain_tensors_do(number):
    batches = list(loader())
    assert [tuple(batch["image"].shape) for batch in batches] == [(4, 1, 16, 16)] * 2  # two crops of two slices
    tapped, given, loss = list(stages(batches[0]["image"]))[number]
    for batch in batches:
        labels = torch.stack(
            [item.squeeze(0) for item in decollate_batch(batch["label"])]
        ).long()  # from a list of labels
        assert type(labels) is MetaTensor
        values, gradients, seen = [], [], []
        for images, marks in ((batch["image"], labels), (plain(batch["image"]), plain(labels))):
            arguments = given(tapped(images), marks)
            values.append(loss(*arguments))
            seen.append(loss.diagnose(*arguments))
            tapped.zero_grad()
            values[-1].backward()
            gradients.append({name: p.grad.clone() for name, p in tapped.named_parameters() if p.grad is not None})
            assert all(type(gradient) is Tensor for gradient in gradients[-1].values())
        assert type(values[0]) is Tensor
        assert torch.equal(*values)
        assert str(seen[0]) == str(seen[1])
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
        assert any(gradient.any() for gradient in gradients[0].values())


@pytest.mark.filterwarnings("ignore")  # those of the compiler, about what MONAI's class does
@pytest.mark.parametrize("number", range(3), ids=["global", "local", "dice"])
def test_batches_of_monai_are_compiled_once(number, capsys):
    batches = list(loader())
    tapped, given, loss = list(stages(batches[0]["image"]))[number]
    counter = CompileCounterWithBackend("eager")

    def step(images, labels):
        return loss(*given(tapped(images), labels))

    compiled, frames = torch.compile(step, backend=counter), []
    for batch in batches:
        images, labels = batch["image"], batch["label"].squeeze(1).long()
        torch.testing.assert_close(compiled(images, labels).as_subclass(Tensor), step(plain(images), plain(labels)))
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert len({*frames}) == 1  # in several pieces, each of them once
    assert capsys.readouterr().out == ""


def test_labels_as_they_come_from_a_loader_are_refused_with_the_line_that_mends_them():
    batch = next(iter(loader()))
    for loss in (MultiScaleLocalSupCon(weights=(1.0,)), DeepSupervisionDice(weights=(1.0,))):
        with pytest.raises(ValueError, match=r"squeeze\(1\)"):
            loss([torch.zeros(4, 3, 16, 16)], batch["label"])


def tapped_model():
    net, x = UNet(1, 3, channels=(4, 6, 8)).eval(), torch.rand(1, 1, 24, 24)
    return attach_heads(net, x, {"encoder.bottleneck": GlobalHead}), x


def test_a_window_slides_over_the_network_of_a_tapped_model():
    tapped, x = tapped_model()
    with torch.no_grad():
        whole = sliding_window_inference(x, (24, 24), 1, tapped.net)
        torch.testing.assert_close(whole, tapped(x).output)
        windows = SlidingWindowInferer((16, 16), 2, overlap=0.5)(x, tapped.net)
        assert windows.shape == whole.shape
    assert tapped(x).embeddings["encoder.bottleneck"].shape == (1, 128)  # and it is tapped as before


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer((16, 16), 2, overlap=0.5)])
def test_an_evaluator_takes_the_network_of_a_tapped_model(inferer):
    tapped, _ = tapped_model()
    torch.manual_seed(0)
    data = [{"image": torch.rand(1, 24, 24), "label": torch.randint(3, (1, 24, 24))} for _ in range(4)]

    def evaluated(network):
        metrics = {"dice": MeanDice(num_classes=3, output_transform=from_engine(["pred", "label"]))}
        classes = AsDiscreted("pred", argmax=True)
        loader = DataLoader(Dataset(data), batch_size=2)
        engine = SupervisedEvaluator(
            "cpu", loader, network, inferer=inferer, postprocessing=classes, key_val_metric=metrics
        )
        engine.run()
        return engine.state.metrics["dice"]

    plain = UNet(1, 3, channels=(4, 6, 8))
    plain.load_state_dict(tapped.net.state_dict())
    assert 0 < evaluated(tapped.net) < 1
    assert evaluated(tapped.net) == evaluated(plain)
    if isinstance(inferer, SlidingWindowInferer):
        with pytest.raises(AttributeError, match="which is `tapped.net`"):
            evaluated(tapped)


@pytest.mark.parametrize("buffered", [{}, {"buffer_steps": 1}], ids=["", "buffered"])
def test_a_tapped_model_in_a_sliding_window_says_what_to_pass(buffered):
    tapped, x = tapped_model()
    with (
        torch.no_grad(),
        pytest.raises(AttributeError, match=r"Expected a tensor, got what a tapped model .*`tapped\.net`"),
    ):
        sliding_window_inference(x, (16, 16), 2, tapped, **buffered)


def test_what_a_tapped_model_returns_in_place_of_logits_says_what_to_do():
    tapped, x = tapped_model()
    for use in (
        lambda out: DiceLoss()(out, torch.zeros(1, 3, 24, 24)),
        lambda out: out.argmax(1),
        lambda out: out.softmax(1),
    ):
        with pytest.raises(AttributeError, match="Unpack it, `output, embeddings = tapped"):
            use(tapped(x))
    out = tapped(x)
    assert isinstance(out, tuple)
    assert not hasattr(out, "nothing")
    with pytest.raises(AttributeError, match="'Tapped' object has no attribute 'nothing'"):
        out.nothing  # noqa: B018
