"""Segmenting volumes with the network of a finished run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from examples.mmwhs import files
from examples.mmwhs.data.description import PLANES, Case, Description
from examples.mmwhs.data.slices import cut, labels_from_probabilities, resize_images, volume_to_slices
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.data.trees import NIFTI, is_volume, stem
from examples.mmwhs.data.volumes import load_volume, open_grid, to_original
from examples.mmwhs.messages import integer, message, number, one_of
from examples.mmwhs.train.evaluate import probabilities, segment_volume
from mmgl_losses import UNet

FORMAT = 3
UNLIKE = 1.5  # a spacing or field of view is unlike training beyond this factor


def export(path: Path, net: nn.Module, architecture: dict[str, Any], store: SliceStore) -> None:
    """Writes all that `predict` needs: weights, how the network is built, and how slices are made.

    Args:
        path: The file.
        net: A `UNet`.
        architecture: The arguments it was built with.
        store: What it was trained from.
    """
    described = store.dataset.description
    grids = [open_grid(case.image) for case in store.dataset.cases]
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
        "patch": None if store.patch is None else list(store.patch),
        "percentiles": list(store.percentiles),
        "spacing": np.median([grid.spacing for grid in grids], axis=0).tolist(),
        "extent": np.median([grid.spacing * grid.shape for grid in grids], axis=0).tolist(),
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
        for side in [values["slice_size"], *(values["patch"] or [])]:
            integer("slice_size", side, least=1)
        low, high = values["percentiles"]
        if not low < high:
            raise ValueError(message("`percentiles` in ascending order", (low, high)))
        for x in (*values["spacing"], *values["extent"]):
            number("spacing", x, above=0.0)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        got = f"parts that do not fit ({files.first_line(error)})"
        raise ValueError(message(expected, got)) from error
    return net.float().eval(), description, values


def predict(
    checkpoint: Path,
    images: Path | Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    with_probabilities: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes the labels of NIfTI volumes on their own grids and orientations, with the data set's label values.

    Args:
        checkpoint: ``model.pt`` of a finished run.
        images: Volumes, and folders of volumes.
        out: The label file to write, ``.nii`` or ``.nii.gz``; of several volumes or a folder, a folder, in which labels
            are named as their volumes.
        overwrite: Whether label files may be there already.
        with_probabilities: Whether to write, beside each label file, ``NAME_probabilities.npz`` with the probabilities
            of the classes, (n, C, S, S) float16, for the slices as the network sees them.
        device: Where the network runs; the CPU by default.
        say: Takes a line about each volume.

    Raises:
        ValueError: A file is missing, or in the way, or not what it should be: nothing is written then. Or voxels
            cannot be read or are not finite, which is said when all other volumes are done.
    """
    given = [images] if isinstance(images, Path) else list(images)
    pairs = _pairs(given, out)
    written = [target for _, target in pairs]
    written += [_beside(target) for target in written if with_probabilities]
    for target in written:
        if target.exists():
            if target.resolve() in {checkpoint.resolve(), *(each.resolve() for each, _ in pairs)}:
                raise ValueError(message(f"no file at {target}", "a volume or the checkpoint", "Choose another name."))
            if not overwrite:
                cure = "Choose another name, or give --overwrite."
                raise ValueError(message(f"no file at {target}", "one", cure))
    net, description, values = restore(checkpoint)
    if with_probabilities and values["patch"]:
        raise ValueError(message("a network of slices for probabilities", "one of volumes"))
    device = device or torch.device("cpu")
    net = net.to(device)
    warnings = [unlike(image, values, description) for image, _ in pairs]  # and all headers are read
    failed: list[str] = []
    for number_, ((image, target), lines) in enumerate(zip(pairs, warnings, strict=True), start=1):
        for line in lines:
            say(line)
        kept: list[torch.Tensor] | None = [] if with_probabilities else None
        try:
            labels = _segment(net, image, description, values, device, kept)
        except ValueError as error:
            failed.append(str(error))
            say(f"{number_} of {len(pairs)}: failed: {image}")
            continue
        segmented = to_original(labels, nib.load(image), description)  # pyright: ignore[reportArgumentType]
        files.replace(target, lambda aside, done=segmented: nib.save(done, aside))
        if kept is not None:
            half = torch.cat(kept).numpy()
            files.replace(_beside(target), lambda aside, half=half: np.savez_compressed(aside, probabilities=half))
        say(f"{number_} of {len(pairs)}: wrote {target}")
    if failed:
        raise ValueError("\n".join(failed))
    return [target for _, target in pairs]


def _beside(target: Path) -> Path:
    """Where the probabilities go."""
    return target.with_name(f"{stem(target)}_probabilities.npz")


def _pairs(given: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Every volume and the file for its labels."""
    volumes: list[Path] = []
    for path in given:
        found = sorted(filter(is_volume, path.iterdir())) if path.is_dir() else [path]
        if not found:
            raise ValueError(message(f"NIfTI volumes in {path}", "none"))
        volumes += found
    for volume in volumes:
        if not volume.is_file():
            raise ValueError(message(f"the volume {volume}", "no file"))
    if len(volumes) == 1 and not given[0].is_dir():
        if not out.name.endswith(NIFTI):
            raise ValueError(message("an output file that ends in .nii or .nii.gz", out))
        return [(volumes[0], out)]
    if out.name.endswith(NIFTI) or (out.exists() and not out.is_dir()):
        raise ValueError(message(f"a folder for the labels of {len(volumes)} volumes", out))
    pairs = [(volume, out / volume.name) for volume in volumes]
    if len({target for _, target in pairs}) != len(pairs):
        raise ValueError(message("volumes of different names", "two of one name", "Give one folder after the other."))
    return pairs


def unlike(image: Path, values: dict[str, Any], description: Description) -> list[str]:
    """Sentences about a spacing or field of view that the network was not trained on."""
    grid, said = open_grid(image), []
    axes = [i for i, plane in enumerate(PLANES) if plane != description.main_plane or values["patch"]]
    for what, mine, usual in (("voxels", grid.spacing, values["spacing"]),
                              ("a field of view", grid.spacing * grid.shape, values["extent"])):  # fmt: skip
        if what == "voxels" and not values["patch"]:
            continue  # slices are resized whole: their field of view is what counts
        ratio = max(max(mine[i] / usual[i], usual[i] / mine[i]) for i in axes)
        if ratio > UNLIKE:
            ours, theirs = (" x ".join(f"{float(each[i]):.3g}" for i in axes) for each in (mine, usual))
            said.append(f"WARNING: {image} has {what} of {ours} mm, and training had {theirs} mm: expect worse labels.")
    return said


def _segment(
    net: nn.Module,
    image: Path,
    description: Description,
    values: dict[str, Any],
    device: torch.device,
    kept: list[torch.Tensor] | None,
) -> np.ndarray:
    """Class indices (X, Y, Z) of a volume; `kept` takes its probabilities, batch by batch."""
    case = Case(image.name, image.name, image, None)
    voxels = load_volume(case, description, percentiles=tuple(values["percentiles"])).image
    if values["patch"]:
        return segment_volume(net, voxels, values["patch"], device)
    x, y, z = voxels.shape
    slices = cut(volume_to_slices(voxels, description.main_plane), description.crop)
    slices = resize_images(slices, values["slice_size"])
    del voxels  # the slices are all that is needed of it

    def batches() -> Iterator[torch.Tensor]:
        for batch in probabilities(net, slices, device):
            if kept is not None:
                kept.append(batch.half())
            yield batch

    return labels_from_probabilities(batches(), (x, y, z), description.main_plane, crop=description.crop)
