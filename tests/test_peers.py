"""The same numbers as libraries that compute the same thing."""

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from mmgl_losses.functional import global_contrast, local_supcon


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_supcon_of_pytorch_metric_learning(tau):
    """Every class at least twice: theirs leaves anchors of zero loss out of the mean, ours anchors without positives."""
    z, y = torch.randn(40, 8, requires_grad=True), torch.arange(40) % 4
    theirs = SupConLoss(temperature=tau)(z, y)
    ours = local_supcon(z.T[None], y[None], temperature=tau)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0], rtol=1e-4, atol=1e-6)


def test_supcon_of_a_batch():
    z, y = torch.randn(3, 8, 20), torch.arange(60).reshape(3, 20) % 4
    theirs = SupConLoss(temperature=0.1)(z.mT.flatten(0, 1), y.flatten())
    torch.testing.assert_close(local_supcon(z, y, temperature=0.1, pairs="batch"), theirs)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_nt_xent_of_pytorch_metric_learning(tau):
    z, y = torch.randn(16, 8, requires_grad=True), torch.arange(8).repeat(2)
    theirs = NTXentLoss(temperature=tau)(z, y)
    ours = global_contrast(z, temperature=tau)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0], rtol=1e-4, atol=1e-6)


def test_nt_xent_of_monai():
    from monai.losses import ContrastiveLoss

    first, second = torch.randn(2, 8, 16)
    theirs = ContrastiveLoss(temperature=0.5)(first, second)
    torch.testing.assert_close(global_contrast(torch.cat([first, second]), temperature=0.5), theirs)
