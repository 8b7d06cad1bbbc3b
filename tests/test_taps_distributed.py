"""Two processes give the gradients of one, with the defaults of DDP and FSDP."""

import copy

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmgl_losses.networks.attach import attach_heads
from mmgl_losses.networks.heads import GlobalHead, LocalHead
from mmgl_losses.networks.unet import UNet
from tests import processes


def model(**options):
    torch.manual_seed(0)
    net = UNet(1, 3, channels=(2, 3, 4)).double()
    return attach_heads(
        net, torch.zeros(1, 1, 16, 16).double(), {"encoder.up": GlobalHead, "decoder.blocks.0": LocalHead}, **options
    )


def images():
    return torch.randn(4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(embeddings):
    return sum(e.square().mean() for e in embeddings.values())


def whole(parameter):
    gradient = parameter.grad
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def compare(model, reference):
    """Gradients of the wrapped model, by name, are those of the reference."""
    mine = {name.removeprefix("module."): p for name, p in model.named_parameters()}
    for name, parameter in reference.named_parameters():
        if parameter.grad is None:
            assert mine[name].grad is None, name
        else:
            torch.testing.assert_close(whole(mine[name]), parameter.grad, rtol=1e-10, atol=1e-12, msg=name)


def work(rank):
    share = images().chunk(2)[rank]

    # A loss on the taps alone: without freezing, DDP's second step would fail for want of gradients.
    for output in (True, False):
        reference = model(output=output)
        frozen = reference.freeze_unused(loss_of(reference(images())[1]))
        assert "net.classifier.weight" in frozen
        loss_of(reference(images())[1]).backward()
        wrapped = DistributedDataParallel(copy.deepcopy(reference))
        for _ in range(3):
            wrapped.zero_grad()
            result, embeddings = wrapped(share)
            assert (result is None) != output
            loss_of(embeddings).backward()
        compare(wrapped, reference)

    # The output takes part in the loss: nothing to freeze.
    reference = model()
    result, embeddings = reference(images())
    assert reference.freeze_unused(loss_of(embeddings) + result.square().mean()) == []
    (loss_of(embeddings) + result.square().mean()).backward()
    wrapped = DistributedDataParallel(copy.deepcopy(reference))
    for _ in range(2):
        wrapped.zero_grad()
        result, embeddings = wrapped(share)
        (loss_of(embeddings) + result.square().mean()).backward()
    compare(wrapped, reference)

    # FSDP2, blocks and all.
    sharded = model()
    for part in (*sharded.net.encoder.blocks, sharded.net.decoder, *sharded.heads.values(), sharded):
        fully_shard(part)
    for _ in range(2):
        sharded.zero_grad()
        result, embeddings = sharded(share)
        (loss_of(embeddings) + result.square().mean()).backward()
    compare(sharded, reference)

    # Without freezing, DDP says so.
    wrapped = DistributedDataParallel(model())
    loss_of(wrapped(share)[1]).backward()
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        wrapped(share)


def test_two_processes_are_one(tmp_path):
    processes.run(work, 2, tmp_path)
