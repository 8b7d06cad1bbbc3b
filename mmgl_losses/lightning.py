"""Pre-training with Lightning: a module for any tapped network and any loss of this package, and two callbacks.

It needs ``pip install "mmgl-losses[lightning]"``; nothing else of the package imports it.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from mmgl_losses import checks
from mmgl_losses.networks.taps import FeatureTaps, TappedModel
from mmgl_losses.sampling import resample

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    cure = 'Install it with `pip install "mmgl-losses[lightning]"`.'
    text = checks.message("lightning, to pre-train with it", "no such package", cure)
    raise ModuleNotFoundError(text, name="lightning") from error

Prepare = Callable[[Any], tuple[Any, ...]]
ADAM = partial(Adam, lr=1e-3)


def as_it_is(batch: Any) -> tuple[Any, ...]:
    """A batch that is a tensor of images, or a tuple of images and what the loss takes beside the embeddings."""
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


class Pretraining(LightningModule):
    """Pre-trains a tapped network: computes ``loss(embeddings, ...)`` at each step and logs it as ``"loss"``.

    Under DDP, first freeze the parameters that the loss does not reach, with `TappedModel.freeze_unused`.

    Args:
        model: from `attach_heads`; after training, ``model.net.state_dict()`` has the weights.
        loss: a loss on its embeddings, such as `MultiScaleLocalSupCon`.
        prepare: turns a batch of your loader into ``(images, *further arguments of the loss)``. For a dictionary it
            can be ``lambda batch: (batch["image"], batch["label"].squeeze(1).long())``. To stack two augmentations of
            each image, use ``lambda images: (torch.cat([augment(images), augment(images)]),)``.
        optimiser: makes the optimiser from the parameters that are trained; Adam at 1e-3 by default.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from mmgl_losses import GlobalHead, MultiScaleGlobalContrast, UNet, attach_heads
        >>> example = torch.rand(4, 1, 16, 16)
        >>> model = attach_heads(UNet(channels=(4, 8)), example, {"encoder.bottleneck": GlobalHead}, output=False)
        >>> module = Pretraining(model, MultiScaleGlobalContrast(weights=(1.0,)))
        >>> module.training_step(example, 0)["loss"].shape
        torch.Size([])
    """

    def __init__(
        self,
        model: TappedModel,
        loss: nn.Module,
        *,
        prepare: Prepare = as_it_is,
        optimiser: Callable[[Iterable[nn.Parameter]], Optimizer] = ADAM,
    ) -> None:
        super().__init__()
        if not isinstance(model, TappedModel):
            cure = "Make one with `attach_heads`."
            raise TypeError(checks.message("`model` to be a TappedModel", type(model).__name__, cure))
        self.model, self.loss, self.prepare, self.optimiser = model, loss, prepare, optimiser

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The loss, and beside it what it was computed from, for `Diagnose`."""
        images, *rest = self.prepare(batch)
        _, embeddings = self.model(images)
        value = self.loss(embeddings, *rest)
        if not isinstance(value, Tensor) or value.ndim:
            cure = "Make it with `reduction='mean'`."
            raise TypeError(checks.message("`loss` to return one number", checks.typed(value), cure))
        if self._trainer is not None:
            self.log("loss", value.detach(), prog_bar=True, batch_size=len(images))
        return {"loss": value, "embeddings": {name: x.detach() for name, x in embeddings.items()}, "rest": rest}

    def configure_optimizers(self) -> Optimizer:
        """Of the parameters that are trained."""
        return self.optimiser([p for p in self.model.parameters() if p.requires_grad])


class Diagnose(Callback):
    """Prints ``loss.diagnose`` on the first batch of each n-th epoch, and logs its progress as ``"progress"``.

    Attributes:
        found: the latest `Diagnostics`.
    """

    def __init__(self, *, every: int = 1, show: Callable[[str], object] = print) -> None:
        self.every, self.show, self.found = checks.integer("every", every, least=1), show, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Runs on what the step has computed."""
        if batch_idx == 0 and trainer.current_epoch % self.every == 0:
            module: Any = pl_module
            self.found = module.loss.diagnose(outputs["embeddings"], *outputs["rest"])
            pl_module.log("progress", self.found.progress, batch_size=1)
            if trainer.is_global_zero:
                self.show(f"epoch {trainer.current_epoch}\n{self.found}")


class LinearProbe(Callback):
    """Asks what the features of a module already know: trains a linear layer on them during pre-training.

    At each n-th step the layer gets the features of the batch, without a gradient to the network. Before it learns
    from them, its accuracy over points, averaged over the classes of the batch, is logged as ``"probe"``.

    Args:
        name: the module of the network to probe, as in ``net.named_modules()``.
        classes: number of classes.
        labelled: turns a batch into ``(images, labels (B, *spatial))``.
        every: do this at each n-th step.
        lr: learning rate of Adam, for the layer.
    """

    def __init__(
        self, name: str, classes: int, *, labelled: Prepare = as_it_is, every: int = 10, lr: float = 1e-2
    ) -> None:
        self.name, self.labelled = checks.name("the name of a module", name), labelled
        self.layer = nn.LazyLinear(checks.integer("classes", classes, least=2))
        self.every, self.lr = checks.integer("every", every, least=1), checks.number("lr", lr, above=0.0)
        self.optimiser: Adam | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step of the layer."""
        if batch_idx % self.every:
            return
        module: Any = pl_module
        images, labels = self.labelled(batch)
        features = self._features(module.model.net, images)
        x, y = features.flatten(2).mT.flatten(0, 1), resample(labels, features.shape[2:]).flatten().long()
        logits = self.layer.to(x.device)(x)
        right = logits.argmax(1) == y
        share = torch.stack([right[y == kind].float().mean() for kind in y.unique()]).mean()
        pl_module.log("probe", share, batch_size=len(images))
        self.optimiser = self.optimiser or Adam(self.layer.parameters(), lr=self.lr)
        self.optimiser.zero_grad()
        F.cross_entropy(logits, y).backward()
        self.optimiser.step()

    def _features(self, net: nn.Module, images: Tensor) -> Tensor:
        modes = {module: module.training for module in net.modules()}
        net.eval()
        with torch.no_grad(), FeatureTaps(net, [self.name]) as taps:
            net(images)
            found = taps.read()[self.name].float()
        for module, mode in modes.items():
            module.training = mode
        return found
