"""Let torchvision be imported beside a torch without its compiled operators; the networks here use none of them."""

import importlib.util
from functools import cache
from pathlib import Path

import torch


@cache  # names can be given once, and last as long as the library that is returned
def let_torchvision_import() -> torch.library.Library | None:
    """Name the operators that torchvision expects, where its build for CUDA meets a torch without it."""
    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return None
    if "cuda" not in (Path(spec.origin).parent / "version.py").read_text().partition("cuda")[1:]:
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
