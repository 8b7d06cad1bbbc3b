"""Stages one and two of MMGL as trainers of nnU-Net; stage three is nnU-Net itself, with ``-pretrained_weights``."""

import math
from contextlib import nullcontext
from functools import partial

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from mmgl_losses import (
    GlobalHead,
    LocalHead,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    TappedModel,
    attach_heads,
    discover_stages,
)


class _PreTrainer(nnUNetTrainer):
    """Trains nnU-Net's network through heads on it, and saves it without them."""

    def __init__(self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            raise RuntimeError("Pre-train on one GPU (leave -num_gpus out); fine-tuning may use several.")
        self.num_epochs = 100
        self.initial_lr = 1e-3
        self.enable_deep_supervision = False  # the network's own output takes no part
        self.num_val_iterations_per_epoch = 0  # and so there is no Dice
        self._best_ema = math.inf  # nor a best checkpoint: take the final one
        self.grad_scaler = torch.GradScaler("cuda", enabled=device.type == "cuda")

    def attach(self, example: torch.Tensor) -> TappedModel:
        """Heads on the stages to pre-train."""
        raise NotImplementedError

    def contrast(self, images: torch.Tensor, labels: torch.Tensor) -> tuple:
        """What the loss is called with."""
        raise NotImplementedError

    def _do_i_compile(self):
        return False  # heads go on networks that are not compiled yet

    def configure_optimizers(self):
        """Attach the heads, and optimise them with the network."""
        patch = self.configuration_manager.patch_size
        self.tapped = self.attach(torch.zeros(2, self.num_input_channels, *patch, device=self.device))
        optimiser = torch.optim.Adam(self.tapped.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimiser, PolyLRScheduler(optimiser, self.initial_lr, self.num_epochs)

    @staticmethod
    def get_training_transforms(*args, **options):
        """Labels as they are, where fine-tuning is on regions too."""
        return nnUNetTrainer.get_training_transforms(*args, **{**options, "regions": None})

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net's, with another loss, and the heads among what is trained."""
        images = batch["data"].to(self.device, non_blocking=True)
        labels = batch["target"][:, 0].to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            self.seen = self.contrast(images, labels)
            loss = self.loss(*self.seen)
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.tapped.parameters(), 12)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def on_train_epoch_end(self, train_outputs: list[dict]):
        """Write into the log whether the loss learns."""
        super().on_train_epoch_end(train_outputs)
        self.print_to_log_file(f"The last batch:\n{self.loss.diagnose(*self.seen)}")

    def on_validation_epoch_end(self, val_outputs: list[dict]):
        """Log that there is none: nnU-Net wants a value for each epoch."""
        for key, value in {"mean_fg_dice": math.nan, "dice_per_class_or_region": [], "val_losses": math.nan}.items():
            self.logger.log(key, value, self.current_epoch)

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Nothing to validate: the network's output is not trained yet."""
        self.print_to_log_file(f"Go on with -pretrained_weights {self.output_folder}/checkpoint_final.pth")

    def save_checkpoint(self, filename: str) -> None:
        """The network alone, as nnU-Net saves it, and beside it the heads, for ``--c``."""
        super().save_checkpoint(filename)
        if not self.disable_checkpointing:
            torch.save(self.tapped.heads.state_dict(), f"{filename}.heads")

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Network and heads."""
        super().load_checkpoint(filename_or_checkpoint)
        heads = torch.load(f"{filename_or_checkpoint}.heads", map_location=self.device, weights_only=True)
        self.tapped.heads.load_state_dict(heads)


class nnUNetTrainerMMGLGlobal(_PreTrainer):
    """Stage one: which two patches are looks at one place? Trains the encoder; takes no notice of labels."""

    def attach(self, example: torch.Tensor) -> TappedModel:
        """On the last three stages of the encoder, which runs alone."""
        encoder = self.network.encoder
        stages = discover_stages(encoder, example)
        return attach_heads(encoder, example, {name: GlobalHead for name in stages.encoder[-3:]}, output=False)

    def contrast(self, images: torch.Tensor, labels: torch.Tensor) -> tuple:
        """Embeddings, the second looks below the first."""
        return (self.tapped(torch.cat(images.chunk(2, dim=1)))[1],)

    def _build_loss(self):
        return MultiScaleGlobalContrast(weights=(0.2, 0.2, 0.6))

    @staticmethod
    def get_training_transforms(*args, **options):
        """nnU-Net's augmentation, twice."""
        return TwoLooks(_PreTrainer.get_training_transforms(*args, **options))


class nnUNetTrainerMMGLLocal(_PreTrainer):
    """Stage two: which points of a patch are of one class? Trains encoder and decoder on what is labelled."""

    def attach(self, example: torch.Tensor) -> TappedModel:
        """On the last three stages of the decoder: every fourth point, or fewer, 4096 at most."""
        stages = discover_stages(self.network, example)
        sizes = {row.name: row.size for row in stages.rows}
        heads = {}
        for name in stages.decoder[-3:]:
            stride = math.ceil((math.prod(sizes[name]) / 4096) ** (1 / len(sizes[name])))
            heads[name] = partial(LocalHead, stride=max(4, stride))
        return attach_heads(self.network, example, heads, output=False)

    def contrast(self, images: torch.Tensor, labels: torch.Tensor) -> tuple:
        """Features of points, and the labels."""
        return self.tapped(images)[1], labels

    def _build_loss(self):
        ignored = self.label_manager.ignore_label
        return MultiScaleLocalSupCon(weights=(0.2, 0.2, 0.6), ignore_index=ignored)


class TwoLooks(BasicTransform):
    """Two augmentations of a patch in place of one: the channels of the second behind those of the first."""

    def __init__(self, transform: BasicTransform):
        super().__init__()
        self.transform = transform

    def apply(self, data_dict: dict, **params) -> dict:
        """Augment twice."""
        first, second = (self.transform(**{key: value.clone() for key, value in data_dict.items()}) for _ in range(2))
        return {**first, "image": torch.cat([first["image"], second["image"]])}
