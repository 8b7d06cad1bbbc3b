"""One stage of training as a Lightning module: the network with its heads, the augmentation, and the loss."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, Self

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from examples.mmwhs.data.augment import Augment
from examples.mmwhs.messages import message
from examples.mmwhs.train.components import component
from examples.mmwhs.train.config import Schedule, Stage
from examples.mmwhs.train.evaluate import scores
from examples.mmwhs.train.parts import Part
from examples.mmwhs.train.points import PointContrast, build, heads, places
from mmgl_losses import MeanTeacher, attach_heads, copy_paste, pseudo_labels

Batch = Mapping[str, Any]


def seed_of(*parts: object) -> int:
    """A seed that only depends on what the parts say, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


class Untapped(nn.Module):
    """A network without heads, called like one that has them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and no levels."""
        return self.net(images), {}


class StageModule(lightning.LightningModule):
    """A network with the heads and the loss of one stage.

    Args:
        net: The whole network; `stage` says which part of it trains.
        stage: The stage.
        schedule: Its schedule.
        classes: Number of classes, background included.
        shape: Sides of a slice or patch, for the pass that sizes the heads.
        seed: Of the run.
        pose: The options of `Augment` that the data set asks for.
    """

    def __init__(
        self,
        net: nn.Module,
        stage: Stage,
        schedule: Schedule,
        *,
        classes: int,
        shape: Sequence[int],
        seed: int,
        pose: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.stage, self.schedule, self.classes, self.seed = stage, schedule, classes, seed
        self.augment = Augment(stage.augmentation, **(pose or {}))
        torch.manual_seed(seed_of(seed, stage.name))
        self.loss = build(stage.loss, "loss", classes)
        self.matrix, self.sure = MulticlassConfusionMatrix(classes), SumMetric()
        trained = net if stage.part == "whole" else net.get_submodule(stage.part)
        self.frozen = [net.get_submodule(name).requires_grad_(False) for name in stage.frozen]
        if stage.taps and stage.head is not None:
            images = torch.rand(2 * stage.copies, 1, *shape)
            labels = torch.randint(classes, (len(images), *shape))
            self.tapped = attach_heads(trained, images, heads(stage.taps, stage.head, classes), output=stage.output)
            self.tapped.eval()  # the pass below leaves running statistics alone
            positions, planes = torch.rand(2), torch.zeros(2, dtype=torch.long)
            marks = labels if stage.labels or stage.moves_places else None
            ids = self.ids(images, marks, {"position": positions, "plane": planes})
            self.tapped.freeze_unused(self.loss_of(images, ids))
        else:
            self.tapped = Untapped(trained)
        self.keys = stage.keys and component(stage.keys.name, self.tapped, **stage.keys.options)
        self.teacher = None
        if stage.teaching is not None:
            self.teacher = MeanTeacher(self.tapped, momentum=stage.teaching.momentum)
            self.strong = Augment(stage.teaching.augmentation)
        self.points = None
        if stage.contrast is not None:  # after the teacher, which has no use for these heads
            self.points = PointContrast(self.tapped, stage.contrast, classes=classes, example=torch.rand(2, 1, *shape))
        self.train()

    def setup(self, stage: str) -> None:
        """Lets several processes take the loss of the whole batch, as one would, where the loss knows how to."""
        if self.trainer.world_size > 1:
            self.loss = self._gathered(self.loss, self.stage.loss)
            if self.points is not None:
                self.points.loss = self._gathered(self.points.loss, self.points.contrast.loss)

    def _gathered(self, loss: nn.Module, part: Part) -> nn.Module:
        if "gather" not in signature(type(loss)).parameters:
            return loss
        return build(replace(part, options={"gather": True, **part.options}), "loss", self.classes)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but what is frozen stays in evaluation: its running statistics do not move either."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def ids(self, images: Tensor, labels: Tensor | None, batch: Batch) -> Tensor:
        """What makes positive pairs: labels or places (A·B, H, W), or a number for each row (A·B,).

        Args:
            images: (A·B, 1, H, W): all first augmentations, then all second ones.
            labels: (A·B, H, W), augmented with the images, where the stage has any: labels, or places.
            batch: The B slices before augmentation: their position and plane.
        """
        pairs, copies = self.stage.pairs, self.stage.copies
        if labels is not None:
            return labels
        if pairs == "places":
            return self.places(images)
        if pairs == "slices":  # slices of different planes are never near
            return (batch["position"].float() + 10 * batch["plane"]).repeat(copies)
        first = self.global_rank << 32  # images of different processes are different images
        return torch.arange(first, first + len(images) // copies, device=images.device).repeat(copies)

    def places(self, images: Tensor) -> Tensor:
        """For each point of (N, 1, *spatial) the number of its cell, from 1 on: (N, *spatial)."""
        return places(images, self.stage.cell)

    def loss_of(self, images: Tensor, ids: Tensor) -> Tensor:
        """The stage's loss of augmented images."""
        output, levels = self.tapped(images)
        if self.stage.output:
            return self._value({**levels, "output": output}, ids)
        if self.stage.loss.options.get("pairs") == "augmentations":
            instances = torch.arange(len(images) // self.stage.copies, device=images.device)
            return self._value(levels, ids, instances.repeat(self.stage.copies))
        return self._value(levels, ids)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes everything random in a step depend on its number alone, so that a resumed run goes on alike."""
        torch.manual_seed(seed_of(self.seed, self.stage.name, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Augments, taps, and takes the loss."""
        loss = self.loss_on(batch)
        if not loss.isfinite():
            raise ValueError(self._not_finite(loss, batch))
        self.log("loss", loss, prog_bar=True)
        return loss

    def loss_on(self, batch: Batch) -> Tensor:
        """The loss of a batch of slices, augmented; in self-training, of a labelled and an unlabelled batch."""
        if self.stage.teaching is not None:
            return self.taught(batch["labelled"], batch["unlabelled"])
        images, labels = batch["image"], batch["label"] if self.stage.labels else None
        if self.stage.moves_places:
            labels = self.places(images)
        images, labels = self.augmented(images, labels)
        ids = self.ids(images, labels, batch)
        if self.keys is None:
            return self.loss_of(images, ids)
        (queries, others), own = images.chunk(2), ids[: len(ids) // 2]
        keys, key_ids = self.keys(others, own)
        return self._value(self.tapped(queries)[1], own, keys=keys, key_instances=key_ids)

    def taught(self, labelled: Batch, unlabelled: Batch) -> Tensor:
        """The loss on labelled points, and on points that the teacher labels, of slices that exchange boxes."""
        how, ignored = self.stage.teaching, self.stage.loss.options["ignore_index"]
        assert how is not None
        assert self.teacher is not None
        images, labels = self.augment(labelled["image"], labelled["label"])
        others, _ = self.augment.geometry(unlabelled["image"])
        seen = pseudo_labels(self.teacher(others)[0], confidence=how.confidence, ignore_index=ignored)
        assert labels is not None
        mixed = copy_paste(images, labels, self.strong.intensity(others), seen, side=how.side, ignore_index=ignored)
        if self.points is None:
            (output, levels), contrast = self.tapped(mixed.images), 0.0
        elif self.points.contrast.ids == "labels":
            known = torch.where(mixed.labels == ignored, mixed.other_labels, mixed.labels)
            (output, levels), contrast = self.points.of_labels(mixed.images, known)
        else:
            contrast = self.points.of_places(self.strong.intensity(others), self.strong.intensity(others))
            output, levels = self.tapped(mixed.images)
        levels = {**levels, "output": output}
        return self._value(levels, mixed.labels) + how.weight * self._value(levels, mixed.other_labels) + contrast

    def _value(self, *inputs: Any, **named: Any) -> Tensor:
        """What the stage's loss returns, which is one number."""
        value = self.loss(*inputs, **named)
        if isinstance(value, Tensor) and not value.ndim:
            return value
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        expected = f"the loss of stage {self.stage.name!r}, {self.stage.loss.name}, to return one number"
        raise TypeError(
            message(expected, got, "Leave `reduction` out." if "reduction" in self.stage.loss.options else "")
        )

    def _not_finite(self, loss: Tensor, batch: Batch) -> str:
        """What there is to say of a loss that is NaN or infinite."""
        parts = batch.values() if self.stage.teaching else [batch]
        names = ", ".join(name for part in parts for name in part["slice"])
        got = f"{loss.item()} at step {self.global_step} on the slices {names}"
        if not all(p.isfinite().all() for p in self.parameters()):
            got += ", with weights that were not finite before them"
        cure = f"Look at these slices, or lower `learning_rate` ({self.schedule.learning_rate:g}) in its schedule."
        return message(f"a finite loss in stage {self.stage.name!r}", got, cure)

    def augmented(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All copies of each slice, stacked along the batch, and their labels where there are any."""
        if self.stage.aligned:
            images, labels = self.augment.geometry(images, labels)
            copies = [(self.augment.intensity(images), labels) for _ in range(self.stage.copies)]
        else:
            copies = [self.augment(images, labels) for _ in range(self.stage.copies)]
        targets = [label for _, label in copies if label is not None]
        return torch.cat([image for image, _ in copies]), torch.cat(targets) if targets else None

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Lets the keys and the teacher follow the network."""
        if self.keys is not None:
            self.keys.follow(self.tapped)
        if self.teacher is not None:
            self.teacher.update_parameters(self.tapped)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts pixels by true and predicted class, and how sure a teacher is of the structures that it names."""
        output, _ = (self.teacher or self.tapped)(batch["image"])
        named = output.argmax(dim=1)
        self.matrix.update(named, batch["label"])
        if self.teacher is not None:
            self.sure.update(output.float().softmax(dim=1).amax(dim=1)[named > 0].sum())

    def on_validation_epoch_end(self) -> None:
        """The mean Dice over the structures, pooled over the validation slices, and the Dice of each.

        Of a teacher also, over the points in which it names a structure, how many are right and how sure it is.
        """
        counts = self.matrix.compute()
        dice = scores(counts)["dice"]
        self.log("validation_dice", _number(dice["mean"]), prog_bar=True, sync_dist=True)
        logged = {f"validation_dice_{index}": value for index, value in enumerate(dice["each"], start=1)}
        if self.teacher is not None:
            named = counts[:, 1:].sum().item()
            logged["validation_right"] = counts.diagonal()[1:].sum().item() / named if named else None
            logged["validation_sure"] = self.sure.compute().item() / named if named else None
            self.sure.reset()
        self.log_dict({name: _number(value) for name, value in logged.items()}, sync_dist=True)
        self.matrix.reset()

    def left(self, net: nn.Module) -> dict[str, Tensor]:
        """The weights that the stage leaves: of the network, or, where there is a teacher, of the teacher."""
        kept = net if self.teacher is None else self.teacher.module.get_submodule("net")
        return {key: value.cpu() for key, value in kept.state_dict().items()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, its rate falling along a cosine to zero over the stage."""
        s = self.schedule
        trained = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=s.learning_rate, weight_decay=s.weight_decay, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, s.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def _number(score: float | None) -> float:
    """A score as Lightning logs it: what has none is -1."""
    return -1.0 if score is None else score
