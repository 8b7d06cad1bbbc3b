"""Pre-training with Lightning: the same parameters as the plain loop, and what the callbacks say."""

import pytest
import torch
from torch.utils.data import DataLoader

from mmgl_losses import GlobalHead, LocalHead, MultiScaleGlobalContrast, MultiScaleLocalSupCon, UNet, attach_heads

lightning = pytest.importorskip("mmgl_losses.lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
]
EXAMPLE = torch.rand(2, 1, 16, 16)


def model(name="decoder.blocks.0", head=LocalHead):
    torch.manual_seed(1)
    return attach_heads(UNet(1, 3, channels=(4, 8)), EXAMPLE, {name: head}, output=False)


def batches():
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(4, 2, 1, 16, 16, generator=generator)
    return [(x, (x[:, 0] > 0.5).long()) for x in images]


def trainer(path, *callbacks, epochs=1):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=path, enable_checkpointing=False,
        callbacks=list(callbacks), **quiet,
    )  # fmt: skip


def test_is_the_plain_loop(tmp_path):
    loss = MultiScaleLocalSupCon(weights=(1.0,))
    module = lightning.Pretraining(model(), loss)
    said, diagnose = [], None
    diagnose = lightning.Diagnose(every=2, show=said.append)
    probe = lightning.LinearProbe("encoder.blocks.0", 2, every=1, lr=0.3)
    fit = trainer(tmp_path, diagnose, probe, epochs=3)
    fit.fit(module, DataLoader(batches(), batch_size=None))
    plain = model()
    steps = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for _ in range(3):
        for images, labels in batches():
            steps.zero_grad()
            loss(plain(images)[1], labels).backward()
            steps.step()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(module.model.get_parameter(name), parameter, msg=name)
    assert [text.splitlines()[0] for text in said] == ["epoch 0", "epoch 2"]
    assert str(diagnose.found) in said[-1]
    assert fit.callback_metrics["progress"] == pytest.approx(diagnose.found.progress, rel=1e-5)
    # Whether a pixel is bright is in its features, so the layer learns it.
    assert 0.7 < fit.callback_metrics["probe"] <= 1


def test_augmentations_and_dictionaries(tmp_path):
    data = [{"image": torch.rand(4, 1, 16, 16)} for _ in range(2)]
    module = lightning.Pretraining(
        model("encoder.bottleneck", GlobalHead),
        MultiScaleGlobalContrast(weights=(1.0,)),
        prepare=lambda batch: (torch.cat([batch["image"], batch["image"].flip(3)]),),
        optimiser=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    before = {name: value.clone() for name, value in module.model.net.state_dict().items()}
    fit = trainer(tmp_path)
    fit.fit(module, DataLoader(data, batch_size=None))
    assert fit.callback_metrics["loss"].isfinite()
    after = module.model.net.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_bad_input():
    with pytest.raises(TypeError, match="Expected `model` to be a TappedModel, got UNet. Make one with `attach_heads`"):
        lightning.Pretraining(UNet(1, 2, channels=(4, 8)), MultiScaleLocalSupCon())
    each = lightning.Pretraining(model(), MultiScaleLocalSupCon(weights=(1.0,), reduction="none"))
    with pytest.raises(
        TypeError, match="Expected `loss` to return one number, got .*. Make it with `reduction='mean'`"
    ):
        each.training_step(batches()[0], 0)
    with pytest.raises(ValueError, match="Expected `every` to be an integer of at least 1, got 0."):
        lightning.Diagnose(every=0)
    with pytest.raises(ValueError, match="Expected `classes` to be an integer of at least 2, got 1."):
        lightning.LinearProbe("x", 1)
