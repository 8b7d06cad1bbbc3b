"""Automatic mixed precision: gradients near the wide ones, and steps that are skipped where they must be."""

import pytest
import torch

from tests.ways import plain


def trained(dtype, *, inside):
    """The model after steps under autocast: with the losses inside of it, or outside on features made wide."""
    model = plain.model(torch.float32)
    steps, scaler = plain.optimiser(model), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for images, labels in plain.batches(torch.float32):
        steps.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            output, features = model(images)
            assert all(feature.dtype == dtype for feature in features.values())
            if inside:
                loss = plain.loss_of((output, features), labels)
        if not inside:
            wide = {name: feature.float() for name, feature in features.items()}
            loss = plain.loss_of((output.float(), wide), labels)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(steps)
        scaler.update()
    assert scaler.get_scale() == 2048.0
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_wide_whatever_autocast_says(dtype):
    plain.same_parameters(trained(dtype, inside=True), trained(dtype, inside=False), rtol=1e-5, atol=1e-6)


def test_the_scaler_skips_a_step_that_is_not_finite():
    model = plain.model(torch.float32)
    steps, scaler = plain.optimiser(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    images, labels = plain.batches(torch.float32)[0]
    images[0, 0, 0, 0] = torch.inf
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.scale(plain.loss_of(model.eval()(images), labels)).backward()
    scaler.step(steps)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
