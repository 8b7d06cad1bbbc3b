"""Random augmentation of a batch of slices, image and label together, by kornia; of volumes, its geometry by hand."""

from dataclasses import dataclass, replace
from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from kornia.constants import DataKey, Resample
from torch import Tensor

from examples.mmwhs.messages import one_of

Range = tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """What an augmentation does; each image draws its own numbers.

    Attributes:
        rotation: Up to so many degrees either way.
        zoom: Factor of magnification; above 1 the slice is cropped.
        shift: Up to this fraction of the slice along either axis.
        brightness: Range of the factor of brightness; (1, 1) leaves it.
        contrast: Range of the factor of contrast.
        gamma: Range of the exponent.
        noise: Standard deviation of Gaussian noise, added to every other image.
        elastic: Probability of a smooth random deformation.
        flip: Probability of mirroring left to right. Organs that know their side should keep it at 0.
    """

    rotation: float = 0.0
    zoom: Range = (1.0, 1.0)
    shift: float = 0.0
    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    gamma: Range = (1.0, 1.0)
    noise: float = 0.0
    elastic: float = 0.0
    flip: float = 0.0


STRONG = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "gamma": (0.5, 2.0), "noise": 0.05}
MILD = {"brightness": (0.8, 1.2), "contrast": (0.75, 1.3), "gamma": (0.7, 1.5), "noise": 0.03}

AUGMENTATIONS = {
    "none": Settings(),
    "contrast": Settings(rotation=30.0, zoom=(0.9, 1.7), shift=0.12, **STRONG),
    "contrast_mild": Settings(rotation=15.0, zoom=(0.9, 1.3), shift=0.08, **MILD),
    "local": Settings(rotation=15.0, zoom=(0.8, 1.3), shift=0.05, **STRONG),
    "segmentation": Settings(rotation=15.0, zoom=(0.8, 1.3), shift=0.05, **MILD),
    "segmentation_elastic": Settings(rotation=15.0, zoom=(0.8, 1.3), shift=0.05, elastic=0.5, **MILD),
}


class Augment:
    """Augments a batch: geometry for image and label alike (labels by nearest neighbour), intensity for the image.

    All numbers are drawn from the global generator of the CPU, so `torch.manual_seed` repeats them on any device.

    Args:
        settings: A name in `AUGMENTATIONS`, or settings of one's own.
        rotation: Where slices turn at all, they turn up to so many degrees, if that is more.
        flip: Where they do, they are mirrored with this probability, if that is more.
    """

    def __init__(self, settings: str | Settings, *, rotation: float = 0.0, flip: float = 0.0) -> None:
        if isinstance(settings, str):
            one_of("augmentation", settings, AUGMENTATIONS)
            settings = AUGMENTATIONS[settings]
        if settings.rotation:
            wide, often = max(rotation, settings.rotation), max(flip, settings.flip)
            settings = replace(settings, rotation=wide, flip=often)
        self.settings = settings

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images (B, 1, *spatial) in [0, 1] and integer labels (B, *spatial) or None, augmented."""
        images, labels = self.geometry(images, labels)
        return self.intensity(images), labels

    def geometry(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images and labels moved alike."""
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            images = images.float()
            if images.ndim == 5:
                return self._volumes(images, labels)
            if steps := self._geometry(images.shape[-1]):
                extra = {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": False}}
                keys = ["input", "mask"]
                if labels is None:
                    return K.AugmentationSequential(*steps, data_keys=keys[:1])(images), None
                mask = labels[:, None].to(images.dtype)
                images, mask = K.AugmentationSequential(*steps, data_keys=keys, extra_args=extra)(images, mask)
                labels = mask[:, 0].round().to(labels.dtype)
        return images, labels

    def intensity(self, images: Tensor) -> Tensor:
        """Images with other brightness, contrast, gamma and noise, every point where it was."""
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            if steps := self._intensity():
                flat = images.float().flatten(2, -2) if images.ndim == 5 else images.float()
                return K.ImageSequential(*steps)(flat).view_as(images)
        return images.float()

    def _volumes(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Patches (B, 1, X, Y, Z) turned about each axis, zoomed and shifted; what comes from outside is 0."""
        s, n = self.settings, len(images)
        if not (s.rotation or s.shift or s.zoom != (1.0, 1.0)):
            return images, labels
        theta = torch.eye(3).repeat(n, 1, 1) / torch.empty(n, 1, 1).uniform_(*s.zoom)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            angle = torch.deg2rad(torch.empty(n).uniform_(-1, 1) * s.rotation)
            turn = torch.eye(3).repeat(n, 1, 1)
            turn[:, i, i] = turn[:, j, j] = angle.cos()
            turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
            theta = turn @ theta
        shift = torch.empty(n, 3, 1).uniform_(-2, 2) * s.shift
        sides = torch.tensor(images.shape[:1:-1]).float()  # coordinates are fractions of these; angles are of voxels
        theta = theta * sides / sides[:, None]
        grid = F.affine_grid(torch.cat([theta, shift], dim=2), list(images.shape), align_corners=False)
        grid = grid.to(images.device)
        images = F.grid_sample(images, grid, align_corners=False)
        if labels is not None:
            moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
            labels = moved[:, 0].round().to(labels.dtype)
        return images, labels

    def _geometry(self, size: int) -> list[Any]:
        s = self.settings
        steps: list[Any] = []
        if s.flip:
            steps.append(K.RandomHorizontalFlip(p=s.flip))
        if s.rotation or s.shift or s.zoom != (1.0, 1.0):
            shift = (s.shift, s.shift) if s.shift else None
            zoom = s.zoom if s.zoom != (1.0, 1.0) else None
            steps.append(K.RandomAffine(s.rotation, shift, zoom, p=1.0, align_corners=False))
        if s.elastic:
            sigma = size / 10
            kernel = 2 * int(1.5 * sigma) + 1
            steps.append(K.RandomElasticTransform((kernel, kernel), (sigma, sigma), align_corners=False, p=s.elastic))
        return steps

    def _intensity(self) -> list[Any]:
        s = self.settings
        steps: list[Any] = []
        if s.brightness != (1.0, 1.0):
            steps.append(K.RandomBrightness(s.brightness, p=0.8))
        if s.contrast != (1.0, 1.0):
            steps.append(K.RandomContrast(s.contrast, p=0.8))
        if s.gamma != (1.0, 1.0):
            steps.append(K.RandomGamma(s.gamma, p=0.8))
        if s.noise:
            steps.append(K.RandomGaussianNoise(std=s.noise, p=0.5))
        return steps
