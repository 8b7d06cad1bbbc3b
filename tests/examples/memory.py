"""``python -m tests.examples.memory``: the memory that `predict` needs for a large volume, and whether that is under 2 GB.

A network of eight classes on slices of 160 x 160, as the paper's are, segments 512 x 512 x 400 voxels of noise in a process of
its own, from a file as a CT has: 16 bits, an intercept, compressed. The largest resident memory of that process is what is
printed. Linux: it is counted in KiB there.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from examples.mmwhs import files
from examples.mmwhs.train import config, methods, predict
from mmgl_losses import UNet

SHAPE, CLASSES, SIDE, LIMIT = (512, 512, 400), 8, 160, 2e9


def write(folder: Path) -> tuple[Path, Path]:
    """The volume, and the file of a network as `predict.export` writes it."""
    rng = np.random.default_rng(0)
    voxels = np.stack([rng.integers(0, 2000, SHAPE[:2], dtype=np.int16) for _ in range(SHAPE[2])], axis=2)
    image, large = folder / "large.nii.gz", nib.Nifti1Image(voxels, np.eye(4))
    large.header.set_slope_inter(1, -1024)
    nib.save(large, image)
    channels = tuple(methods.load(config.Scale, "small").channels)
    built = {"in_channels": 1, "out_channels": CLASSES, "channels": channels, "norm": "batch"}
    names = [f"structure {index}" for index in range(1, CLASSES)]
    values = list(range(1, CLASSES))
    files.save(
        folder / "model.pt",
        {
            "format": predict.FORMAT,
            "architecture": built,
            "data": {"name": "noise", "classes": names, "values": values, "main_plane": "transaxial", "crop": 1.0},
            "slice_size": SIDE,
            "patch": None,
            "percentiles": [1.0, 99.0],
            "spacing": [1.0] * 3,
            "extent": [float(side) for side in SHAPE],
            "state_dict": UNet(**built).state_dict(),
        },
    )
    return image, folder / "model.pt"


def main() -> int:
    """Measures, prints, and fails above the limit."""
    with TemporaryDirectory() as temporary:
        image, model = write(Path(temporary))
        labels = Path(temporary) / "labels.nii.gz"
        words = ["predict", str(image), "--checkpoint", str(model), "-o", str(labels), "--accelerator", "cpu"]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "examples.mmwhs", *words], check=True)
        took = time.perf_counter() - began
        assert nib.load(labels).shape == SHAPE  # pyright: ignore[reportAttributeAccessIssue]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = " x ".join(map(str, SHAPE))
    print(f"predict, {size} voxels, {CLASSES} classes: {peak / 1e9:.2f} GB, {took:.0f} s")
    return int(peak >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
