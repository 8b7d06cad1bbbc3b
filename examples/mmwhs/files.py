"""Files that are either whole or not there: written aside, then renamed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Lets `make` write a file or folder beside `path`, with the same suffixes, and renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.part-{path.name}")
    try:
        make(aside)
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    replace(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes plain values as JSON; NaN is an error."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, value: Any) -> None:
    """`torch.save`, for what `load` reads: tensors and plain values."""
    replace(path, lambda aside: torch.save(value, aside))


def load(path: Path) -> Any:
    """`torch.load` on the CPU, of tensors and plain values only."""
    return torch.load(path, map_location="cpu", weights_only=True)
