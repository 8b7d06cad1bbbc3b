"""Loops people write themselves."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.ways import plain


def test_gradient_accumulation():
    """Losses that are means over images: the mean of the gradients of two parts is that of the whole batch."""
    loss = plain.MultiScaleLocalSupCon(weights={"decoder.blocks.0": 1.0}, temperature=0.3)
    images, labels = plain.batches()[0]
    gradients = []
    for parts in (1, 2):
        model = plain.model().eval()  # batch normalisation would see other batches
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            points = {"decoder.blocks.0": model(x)[1]["decoder.blocks.0"]}
            (loss(points, y) / parts).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 10
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


def test_two_passes_before_one_backward():
    model, (first, second, _) = plain.model(), plain.batches()
    both = [plain.loss_of(model(images), labels) for images, labels in (first, second)]
    torch.stack(both).sum().backward()
    twin = plain.model()
    for images, labels in (first, second):
        plain.loss_of(twin(images), labels).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_a_teacher_by_deepcopy():
    """An exponential moving average gives the keys; the student is the plain one, the teacher follows it."""
    model = plain.model()
    steps, teacher = plain.optimiser(model), copy.deepcopy(model).requires_grad_(False)
    expected = {name: value.clone() for name, value in teacher.state_dict().items()}
    for images, labels in plain.batches():
        with torch.no_grad():
            _, keys = teacher(images)
        assert not any(key.requires_grad for key in keys.values())
        steps.zero_grad()
        plain.loss_of(model(images), labels).backward()
        steps.step()
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
        for name, parameter in model.named_parameters():
            expected[name] = expected[name] + 0.1 * (parameter.detach() - expected[name])
    plain.same_parameters(model, plain.trained())
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_channels_last():
    model = plain.model().to(memory_format=torch.channels_last)
    steps = plain.optimiser(model)
    for images, labels in plain.batches():
        steps.zero_grad()
        plain.loss_of(model(images.to(memory_format=torch.channels_last)), labels).backward()
        steps.step()
    plain.same_parameters(model, plain.trained())


@pytest.mark.parametrize("part", ["whole", "net"])
def test_gradient_checkpointing(part):
    model = plain.model()
    if part == "net":  # a part inside the network, with taps in it
        block = model.net.encoder.blocks[1]
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        run = model
    else:
        run = partial(checkpoint, model, use_reentrant=False)
    steps = plain.optimiser(model)
    for images, labels in plain.batches():
        steps.zero_grad()
        plain.loss_of(run(images), labels).backward()
        steps.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(plain.trained().named_parameters()))


def test_reentrant_checkpointing_of_a_tapped_part_says_so():
    model = plain.model()
    block = model.net.decoder.blocks[0]
    inner = block.forward
    block.forward = lambda *args: checkpoint(inner, *args, use_reentrant=True)
    images, _ = plain.batches()[0]
    model(images)  # the tap is on the block, around the checkpoint: attached, and right
    deep = plain.attach_heads(
        plain.UNet(1, 3, channels=(4, 6, 8)).double(), images, {"encoder.blocks.1.0": plain.GlobalHead}
    )
    block = deep.net.encoder.blocks[1]
    again = block.forward
    block.forward = lambda *args: checkpoint(again, *args, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        deep(images)


def test_a_run_that_is_pickled_or_resumed_goes_on_alike():
    """Half of the steps, then by pickle and by state_dict into a fresh model."""
    model, losses = plain.model(), pickle.loads(pickle.dumps((plain.GLOBAL, plain.LOCAL, plain.DICE)))
    steps, batches = plain.optimiser(model), plain.batches()
    step(model, steps, *batches[0])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "steps": steps.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = plain.model()
    resumed.load_state_dict(state["model"])
    again = plain.optimiser(resumed)
    again.load_state_dict(state["steps"])
    pickled = pickle.loads(pickle.dumps(model))
    for batch in batches[1:]:
        step(model, steps, *batch)
        step(resumed, again, *batch)
    plain.same_parameters(resumed, plain.trained())
    with torch.no_grad():
        pickled_loss = plain.loss_of(pickled(batches[1][0]), batches[1][1])
    assert pickled_loss.isfinite()
    assert all(loss.state_dict() == {} for loss in losses)


def step(model, steps, images, labels):
    steps.zero_grad()
    plain.loss_of(model(images), labels).backward()
    steps.step()


def test_the_network_is_handed_on_without_heads():
    model = plain.trained()
    bare = plain.UNet(1, 3, channels=(4, 6, 8)).double()
    bare.load_state_dict(model.net.state_dict())
    images, _ = plain.batches()[0]
    assert torch.equal(bare.eval()(images), model.eval()(images)[0])
    heads = [key for key in model.state_dict() if key.startswith("heads.")]
    assert len(model.state_dict()) == len(bare.state_dict()) + len(heads)
