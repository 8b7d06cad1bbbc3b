"""Self-training: the teacher is the moving average by its closed form, and every mixed point has one source."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmgl_losses import (
    DeepSupervisionDice,
    MeanTeacher,
    SegmentationHead,
    UNet,
    attach_heads,
    copy_paste,
    pseudo_labels,
)

TAPS = ("decoder.blocks.1", "decoder.blocks.2")


def tapped(spatial_dims: int = 2) -> nn.Module:
    torch.manual_seed(0)
    net = UNet(1, 3, channels=(2, 2, 4, 4, 4), norm="batch", spatial_dims=spatial_dims)
    example = torch.rand(2, 1, *[32] * spatial_dims)
    return attach_heads(net, example, {n: lambda c: SegmentationHead(c, out_channels=3) for n in TAPS})


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_the_teacher_is_the_weighted_sum_of_all_past_models(momentum):
    """With w_t = 1 - min(m, 1 - 1/(t+1)) it is the sum over t of w_t prod_{s > t} (1 - w_s) theta_t."""
    student = nn.Linear(3, 2).double()
    teacher = MeanTeacher(student, momentum=momentum)
    past, steps = [], 200
    for _ in range(steps):
        with torch.no_grad():
            student.weight.copy_(torch.randn(2, 3, dtype=torch.float64))
        past.append(student.weight.detach().clone())
        teacher.update_parameters(student)
    shares = [1 - min(momentum, 1 - 1 / (t + 1)) for t in range(steps)]
    weights = [
        shares[t] * torch.tensor([1 - s for s in shares[t + 1 :]], dtype=torch.float64).prod() for t in range(steps)
    ]
    expected = sum(w * theta for w, theta in zip(weights, past, strict=True))
    torch.testing.assert_close(teacher.module.weight, expected, rtol=1e-5, atol=1e-6)
    assert sum(weights) == pytest.approx(1)
    if momentum == 0.0:
        torch.testing.assert_close(teacher.module.get_parameter("weight"), past[-1], rtol=0, atol=0)


def test_the_first_update_copies_and_early_ones_are_a_plain_mean():
    student, past = nn.Linear(2, 2), []
    teacher = MeanTeacher(student, momentum=0.99)
    for _ in range(20):
        student.weight.data = torch.randn(2, 2)
        past.append(student.weight.detach().clone())
        teacher.update_parameters(student)
        torch.testing.assert_close(teacher.module.weight, torch.stack(past).mean(0))


def test_buffers_are_copied_and_never_averaged():
    student = tapped()
    teacher = MeanTeacher(student)
    for _ in range(3):
        student.train()(torch.rand(2, 1, 32, 32))
        teacher.update_parameters(student)
    for mine, theirs in zip(teacher.module.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


def test_a_teacher_stays_in_evaluation_without_gradients_and_leaves_the_student_alone():
    student = tapped().train()
    before = copy.deepcopy(student.state_dict())
    teacher = MeanTeacher(student)
    nn.ModuleList([teacher]).train()
    images = torch.rand(2, 1, 32, 32)
    (output, levels), (again, _) = teacher(images), teacher(images)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not output.requires_grad
    assert set(levels) == set(TAPS)
    assert torch.equal(output, again)
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


def test_a_teacher_is_copied_saved_and_loaded_with_its_count():
    student = tapped()
    teacher = MeanTeacher(student, momentum=0.9)

    def move(*teachers: MeanTeacher) -> None:
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        for each in teachers:
            each.update_parameters(student)

    move(teacher)
    move(teacher)
    saved = io.BytesIO()
    torch.save(teacher.state_dict(), saved)
    saved.seek(0)
    loaded = MeanTeacher(tapped(), momentum=0.9)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    copied = copy.deepcopy(teacher)
    move(teacher, loaded, copied)
    for other in (loaded, copied):
        assert int(other.n_averaged) == 3
        for mine, theirs in zip(other.parameters(), teacher.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    move(copied)
    assert int(teacher.n_averaged) == 3  # a copy goes its own way
    assert any(not torch.equal(a, b) for a, b in zip(copied.parameters(), teacher.parameters(), strict=True))


@given(
    count=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    side=st.one_of(st.sampled_from([0.0, 1.0, 2 / 3]), st.floats(0, 1)),
    seed=st.integers(0, 99),
    ignored=st.sampled_from([-1, 255, 7]),
    kind=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
)
def test_every_point_has_image_and_label_of_one_source(count, spatial, side, seed, ignored, kind):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *spatial)
    labels, others = (torch.randint(low, low + 3, shape).to(kind) for low in (0, 3))
    one, other = labels[:, None].float(), others[:, None].float()  # an image that says its label
    mixed = copy_paste(one, labels, other, others, side=side, ignore_index=ignored, generator=generator)
    ours, theirs = mixed.labels != ignored, mixed.other_labels != ignored
    assert torch.equal(ours, ~theirs)
    assert torch.equal(torch.where(ours, mixed.labels, mixed.other_labels).float(), mixed.images[:, 0])
    assert torch.equal(ours, mixed.images[:, 0] < 3)
    first, second = mixed.images.chunk(2)
    assert torch.equal(first + second, one + other)  # nothing is lost: what one half gave, the other has
    assert mixed.labels.dtype == mixed.other_labels.dtype == torch.int64


@pytest.mark.parametrize("spatial", [(12,), (12, 15), (6, 9, 12)])
def test_boxes_have_their_size_and_reach_every_corner(spatial):
    generator, shape = torch.Generator().manual_seed(0), (400, *spatial)
    zeros, ones = torch.zeros(400, 1, *spatial), torch.ones(400, 1, *spatial)
    empty = torch.zeros(shape, dtype=torch.long)
    box = copy_paste(zeros, empty, ones, empty, generator=generator).images[:400, 0].bool()
    sides = [round(2 / 3 * size) for size in spatial]
    assert (box.flatten(1).sum(1) == torch.tensor(sides).prod()).all()
    for axis, length in enumerate(sides, start=1):
        along = box.movedim(axis, 1).reshape(400, box.shape[axis], -1).any(2)
        assert (along.sum(1) == length).all()
        assert (along.long().diff(dim=1) == 1).sum(1).max() <= 1  # in one piece
    assert box[(slice(None), *[0] * len(spatial))].any()
    assert box[(slice(None), *[-1] * len(spatial))].any()
    assert len({tuple(each.flatten().tolist()) for each in box}) > 3  # places of their own


def test_both_losses_together_see_every_point_once():
    """Gradients of the two losses are in disjoint points, and together in all of them."""
    torch.manual_seed(0)
    loss = DeepSupervisionDice(weights=(1.0,), cross_entropy=1.0, ignore_index=-1)
    labels = torch.randint(3, (2, 8, 8))
    mixed = copy_paste(torch.rand(2, 1, 8, 8), labels, torch.rand(2, 1, 8, 8), labels)
    logits = torch.randn(4, 3, 8, 8, requires_grad=True)
    touched = []
    for target in (mixed.labels, mixed.other_labels):
        (gradient,) = torch.autograd.grad(loss([logits], target), logits)
        touched.append(gradient.abs().sum(1) > 0)
    assert torch.equal(touched[0], ~touched[1])


def test_unsure_points_have_no_label():
    logits = torch.tensor([[2.0, 0.0, 0.1], [0.0, 0.0, 0.2]]).view(1, 2, 3).expand(2, 2, 3)
    assert pseudo_labels(logits).tolist() == [[0, 0, 1]] * 2
    assert pseudo_labels(logits, confidence=0.6, ignore_index=9).tolist() == [[0, 9, 9]] * 2
    sure = torch.tensor([[[1000.0], [0.0]]])
    assert pseudo_labels(sure, confidence=1.0).tolist() == [[0]]


def test_labels_of_half_precision_are_those_of_its_values():
    logits = torch.randn(2, 4, 5, 5).half()
    assert torch.equal(pseudo_labels(logits), logits.argmax(1))


def test_an_unsure_point_stays_without_label_when_it_is_pasted():
    images, labels = torch.rand(1, 1, 6, 6), torch.zeros(1, 6, 6, dtype=torch.long)
    unsure = torch.full((1, 6, 6), -1)
    mixed = copy_paste(images, labels, images, unsure)
    assert (mixed.other_labels == -1).all()


def test_a_step_of_self_training_teaches_by_the_teacher_alone():
    """The whole recipe once: the student's parameters all get a gradient, the teacher's none."""
    student = tapped()
    teacher = MeanTeacher(student)
    loss = DeepSupervisionDice(weights=(0.2, 0.3, 0.5), cross_entropy=0.5, ignore_index=-1)
    images, others = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    mixed = copy_paste(images, torch.randint(3, (2, 32, 32)), others, pseudo_labels(teacher(others)[0]))
    output, levels = student(mixed.images)
    levels = {**levels, "output": output}
    (loss(levels, mixed.labels) + 0.5 * loss(levels, mixed.other_labels)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
