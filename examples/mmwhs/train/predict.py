"""Segmenting a volume with the network of a finished run."""

from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from torch import nn

from examples.mmwhs import files
from examples.mmwhs.data.datasets import PLANES, Case, Description, load_volume
from examples.mmwhs.data.slices import cut, labels_from_probabilities, resize_images, volume_to_slices
from examples.mmwhs.data.volumes import to_original
from examples.mmwhs.messages import integer, message, number, one_of
from examples.mmwhs.train.evaluate import probabilities
from mmgl_losses import UNet

FORMAT = 2


def export(path: Path, net: nn.Module, architecture: dict[str, Any], store: Any) -> None:
    """Writes all that `predict` needs: weights, how the network is built, and how slices are made.

    Args:
        path: The file.
        net: A `UNet`.
        architecture: The arguments it was built with.
        store: The `SliceStore` it was trained from.
    """
    described = store.dataset.description
    values = {
        "format": FORMAT,
        "architecture": architecture,
        "data": {
            "name": described.name,
            "classes": list(described.classes),
            "values": list(described.values),
            "main_plane": described.main_plane,
            "crop": described.crop,
        },
        "slice_size": store.size,
        "percentiles": list(store.percentiles),
        "state_dict": {key: value.cpu() for key, value in net.state_dict().items()},
    }
    files.save(path, values)


def restore(path: Path) -> tuple[UNet, Description, dict[str, Any]]:
    """The network that `export` wrote, the description of its data, and the rest of the file.

    No memory is taken for a network that is larger than the weights in the file.

    Raises:
        ValueError: The file is not there or is not such a file.
    """
    expected = f"{path} to be the model.pt of a finished run"
    if not path.is_file():
        raise ValueError(message(expected, "no file"))
    try:
        values = files.load(path)
    except ValueError as error:
        raise ValueError(message(expected, "a file that cannot be read", "Copy it again.")) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(message(expected, "another file", "Use model.pt, not a stage's checkpoint."))
    try:
        with torch.device("meta"):
            net = UNet(**values["architecture"])
        net.load_state_dict(values["state_dict"], assign=True)
        data = values["data"]
        description = Description(
            name=str(data["name"]),
            classes=tuple(map(str, data["classes"])),
            values=tuple(map(int, data["values"])),
            main_plane=data["main_plane"],
            crop=number("crop", data["crop"], above=0.0, most=1.0),
        )
        one_of("main_plane", description.main_plane, PLANES)
        integer("slice_size", values["slice_size"], least=1)
        low, high = values["percentiles"]
        if not low < high:
            raise ValueError(message("`percentiles` in ascending order", (low, high)))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        got = f"parts that do not fit ({files.first_line(error)})"
        raise ValueError(message(expected, got)) from error
    return net.float().eval(), description, values


def predict(
    checkpoint: Path, image: Path, out: Path, *, overwrite: bool = False, device: torch.device | None = None
) -> Path:
    """Writes the labels of a NIfTI volume on its own grid and orientation, with the data set's label values.

    Args:
        checkpoint: ``model.pt`` of a finished run.
        image: The volume.
        out: The label file to write, ``.nii`` or ``.nii.gz``.
        overwrite: Whether `out` may be there already.
        device: Where the network runs; the CPU by default.

    Raises:
        ValueError: A file is missing, or in the way, or not what it should be.
    """
    if not image.is_file():
        raise ValueError(message(f"the volume {image}", "no file"))
    if not out.name.endswith((".nii", ".nii.gz")):
        raise ValueError(message("an output file that ends in .nii or .nii.gz", out))
    if out.exists() and (not overwrite or out.resolve() in (image.resolve(), checkpoint.resolve())):
        raise ValueError(message(f"no file at {out}", "one", "Choose another name."))
    net, description, values = restore(checkpoint)
    case = Case(image.name, image.name, image, None)
    volume = load_volume(case, description, percentiles=tuple(values["percentiles"]))
    slices = cut(volume_to_slices(volume.image, description.main_plane), description.crop)
    slices = resize_images(slices, values["slice_size"])
    device = device or torch.device("cpu")
    result = probabilities(net.to(device), slices, device)
    x, y, z = volume.image.shape
    labels = labels_from_probabilities(result, (x, y, z), description.main_plane, crop=description.crop)
    segmented = to_original(labels, nib.load(image), description)  # pyright: ignore[reportArgumentType]
    files.replace(out, lambda aside: nib.save(segmented, aside))
    return out
