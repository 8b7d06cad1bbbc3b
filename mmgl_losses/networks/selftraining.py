"""Self-training: a teacher that follows a model, the labels it gives, and images mixed with their labels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import Self, override

from mmgl_losses import checks
from mmgl_losses.checks import message
from mmgl_losses.networks.trace import network


class MeanTeacher(AveragedModel):
    r"""An exponential moving average of a model, always in evaluation mode and without gradients.

    .. math:: \theta_t \leftarrow m_t \, \theta_t + (1 - m_t) \, \theta, \qquad m_t = \min(m, 1 - 1 / (t + 1))

    with t the number of updates before this one, as in the code of Tarvainen and Valpola (2017). So the first update
    copies the model, and early updates forget fast. Buffers, such as running statistics, are copied. This is
    PyTorch's `AveragedModel`: the averaged model is ``teacher.module``, and its state is in the state_dict.

    Args:
        model: any module, a `TappedModel` with its heads too; copied as it is now. Give the module itself and not its
            DDP wrapper; `update_parameters` takes either.
        momentum: m, in [0, 1].

    Shape:
        What the model takes -> what it returns.

    Example:
        >>> import torch
        >>> student = nn.Conv2d(1, 2, 1)
        >>> teacher = MeanTeacher(student, momentum=0.99)
        >>> labels = pseudo_labels(teacher(torch.rand(4, 1, 8, 8)))
        >>> labels.shape
        torch.Size([4, 8, 8])
        >>> teacher.update_parameters(student)  # after each step of the optimiser
    """

    def __init__(self, model: nn.Module, *, momentum: float = 0.99) -> None:
        share = checks.number("momentum", momentum, least=0.0, most=1.0)
        super().__init__(network("model", model))
        self.momentum = share
        self.multi_avg_fn = self._average
        self.requires_grad_(False)
        self.eval()

    def _average(self, averaged: Any, current: Any, count: Tensor | int) -> None:
        """Moves the averaged parameters towards the current ones, without waiting for the device."""
        weight = torch.as_tensor(1 / (count + 1)).clamp(min=1 - self.momentum)
        for mine, theirs in zip(averaged, current, strict=True):
            mine.lerp_(theirs, weight.to(mine))

    @override
    def train(self, mode: bool = True) -> Self:
        """Changes nothing: a teacher stays in evaluation mode."""
        return super().train(False)

    @override
    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged model returns."""
        return super().forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """The momentum."""
        return f"momentum={self.momentum}"


def pseudo_labels(logits: Tensor, *, confidence: float = 0.0, ignore_index: int = -1) -> Tensor:
    """The most probable class of each point, or `ignore_index` where its probability is below `confidence`.

    ::

        probability, label = logits.softmax(1).max(1)
        label[probability < confidence] = ignore_index

    Args:
        logits: (B, C, *spatial).
        confidence: in [0, 1]; 0 keeps every label.
        ignore_index: what stands for no label.

    Returns:
        (B, *spatial), int64, without gradient.

    Example:
        >>> import torch
        >>> pseudo_labels(torch.tensor([[[0.0, 5.0]], [[0.1, 0.0]]]).transpose(0, 1), confidence=0.9).tolist()
        [[-1, 0]]
    """
    if checks.floating("logits", logits).ndim < 3 or logits.shape[1] < 2:
        expected = "`logits` of shape (B, C, *spatial) with two or more channels"
        cure = "Pass the network's own output: `teacher(images)[0]` of a tapped model."
        raise ValueError(message(expected, checks.shape(logits), cure))
    least = checks.number("confidence", confidence, least=0.0, most=1.0)
    ignored = checks.integer("ignore_index", ignore_index)
    probability, labels = logits.detach().float().softmax(1).max(1)
    return torch.where(probability < least, ignored, labels)


class Mixed(NamedTuple):
    """What `copy_paste` gives.

    Attributes:
        images: (2B, C, *spatial): first ones with a box of the second in them, then the reverse.
        labels: (2B, *spatial): labels of the points that come from first images, `ignore_index` elsewhere.
        other_labels: (2B, *spatial): labels of the points that come from second images, `ignore_index` elsewhere.
    """

    images: Tensor
    labels: Tensor
    other_labels: Tensor


def copy_paste(
    images: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    *,
    side: float = 2 / 3,
    ignore_index: int = -1,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Pastes a random box of each image into its partner, both ways, and keeps the two kinds of labels apart.

    Bidirectional copy-paste (Bai et al., CVPR 2023). With `box` true inside of a box, one a pair::

        images = cat([where(box, others, images), where(box, images, others)])
        labels = cat([where(box, ignore_index, labels), where(box, labels, ignore_index)])
        other_labels = cat([where(box, other_labels, ignore_index), where(box, ignore_index, other_labels)])

    so every point has the image and the label of the same source, and counts in one of two losses::

        loss = dice(levels, mixed.labels) + 0.5 * dice(levels, mixed.other_labels)   # with dice's ignore_index

    Args:
        images: (B, C, *spatial), labelled.
        labels: (B, *spatial).
        others: (B, C, *spatial), labelled by a teacher.
        other_labels: (B, *spatial).
        side: the side of the box, as a fraction of the side of the image, in [0, 1]; 0 and 1 mix nothing.
        ignore_index: what stands for no label in what is returned.
        generator: of the places of the boxes, on the CPU; by default the global one.

    Returns:
        A `Mixed` of images (2B, C, *spatial) and labels (2B, *spatial) twice.

    Raises:
        ValueError: shapes that do not fit one another.

    Example:
        >>> import torch
        >>> one, other = torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)
        >>> mixed = copy_paste(one, one[:, 0].long(), other, other[:, 0].long())
        >>> mixed.images.mean((1, 2, 3)), (mixed.labels == -1).float().mean((1, 2))
        (tensor([0.4444, 0.5556]), tensor([0.4444, 0.5556]))
    """
    fraction = checks.number("side", side, least=0.0, most=1.0)
    ignored = checks.integer("ignore_index", ignore_index)
    shape = checks.tensor("images", images).shape
    if len(shape) < 3:
        raise ValueError(message("`images` of shape (B, C, *spatial)", checks.shape(images)))
    checks.of_shape("others", checks.tensor("others", others), shape, "Take as many of both.")
    checks.same_device("others", others, "images", images)
    labels = _whole("labels", labels, images)
    other_labels = _whole("other_labels", other_labels, images)
    box = _boxes(shape[0], shape[2:], fraction, generator).to(images.device)
    inside = box[:, None]
    return Mixed(
        torch.cat([torch.where(inside, others, images), torch.where(inside, images, others)]),
        torch.cat([torch.where(box, ignored, labels), torch.where(box, labels, ignored)]),
        torch.cat([torch.where(box, other_labels, ignored), torch.where(box, ignored, other_labels)]),
    )


def _whole(name: str, value: Tensor, images: Tensor) -> Tensor:
    """Labels of images as int64: a narrow type may not hold `ignore_index`, and would turn it into a class."""
    if checks.tensor(name, value).is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        cure = "Labels are class indices; convert them with `.long()`."
        raise TypeError(message(f"`{name}` to be an integer tensor", f"type {value.dtype}", cure))
    checks.of_shape(name, value, (images.shape[0], *images.shape[2:]))
    checks.same_device(name, value, "images", images)
    return value.long()


def _boxes(count: int, spatial: torch.Size, fraction: float, generator: torch.Generator | None) -> Tensor:
    """True inside of a box in each of `count` images: (B, *spatial), every place that holds it equally likely."""
    inside = torch.ones(count, *spatial, dtype=torch.bool)
    for axis, size in enumerate(spatial):
        length = round(fraction * size)
        first = torch.randint(size - length + 1, (count, 1), generator=generator)
        along = torch.arange(size)
        within = (along >= first) & (along < first + length)
        inside &= within.view(count, *[-1 if i == axis else 1 for i in range(len(spatial))])
    return inside
