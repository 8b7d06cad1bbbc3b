"""Every network of the zoo: the stages are right, and everything they name can be tapped and trained."""

import copy

import pytest
import torch

from mmgl_losses.dryrun import tensors
from mmgl_losses.heads import GlobalHead, LocalHead
from mmgl_losses.stages import discover_stages
from mmgl_losses.taps import attach_heads
from tests.networks.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_stages_are_found_and_train(name):
    entry = ZOO[name]
    net, x = entry.make(), entry.image()
    keys, modes = list(net.state_dict()), [m.training for m in net.modules()]
    stages = discover_stages(net, x)
    assert stages.encoder == entry.encoder
    assert stages.decoder == entry.decoder
    assert tuple(row.name for row in stages.rows if row.role == "output") == entry.output

    plain = copy.deepcopy(net)
    heads = dict.fromkeys(stages.encoder[-3:], GlobalHead) | dict.fromkeys(stages.decoder, LocalHead)
    tapped = attach_heads(net, x, heads)
    assert list(net.state_dict()) == keys
    assert [m.training for m in net.modules()] == modes
    torch.manual_seed(1)
    output, embeddings = tapped(x)
    torch.manual_seed(1)
    for ours, theirs in zip(tensors(output), tensors(plain(x)), strict=True):
        assert torch.equal(ours, theirs)
    rows = {row.name: row for row in stages.rows}
    for tap, embedding in embeddings.items():
        assert tapped.heads[tap.replace(".", "/")].in_channels == rows[tap].channels
        if tap in stages.decoder:
            assert embedding.shape == (2, 128, *(-(-size // 4) for size in rows[tap].size))
    loss = sum(e.square().mean() for e in embeddings.values())
    frozen = tapped.freeze_unused(loss)
    loss.backward()
    for parameter_name, parameter in tapped.named_parameters():
        assert (parameter.grad is None) == (parameter_name in frozen)
