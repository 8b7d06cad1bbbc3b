"""Files that are either whole or not there: written aside, then renamed. What is wrong with one is one sentence."""

import errno
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

from examples.mmwhs.messages import message

MARK, LOCK = "mmwhs.json", ".lock"
ASIDE = re.compile(r"\.[0-9a-f]{32}\.part-.+")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
AGAIN = "It is damaged: remove {}, and the same command makes it again."


def own(folder: Path, kind: str) -> Path:
    """Makes a folder this program's own, or finds that it is; the one way in which a folder is written to or swept.

    It belongs to the program when it says so by its own mark, which is made first of all. Nothing is written to or
    deleted in any other.

    Args:
        folder: New, empty, or one that the same kind of command has made.
        kind: Of command: ``run``, ``demo``, ``table`` or ``phantom``.

    Raises:
        ValueError: It is another's, or of another kind of command.
    """
    cure = "Choose another folder with --out."
    if folder.exists() and not folder.is_dir():
        raise ValueError(message(f"{folder} to be a folder", "a file", cure))
    mark = folder / MARK
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and MARK not in there:
        got = f"a folder with other files ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''})"
        raise ValueError(message(f"{folder} to be new, empty or made by `{kind}`", got, cure))
    if there and mark.read_bytes():  # it is empty where the program was killed at its very start
        made = read_json(mark)
        if not isinstance(made, dict) or made.get("made by") != f"examples.mmwhs {kind}":
            got = f"one made by {made.get('made by') if isinstance(made, dict) else made!r}"
            raise ValueError(message(f"{folder} to be new, empty or made by `{kind}`", got, cure))
        return folder
    with room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"made by": f"examples.mmwhs {kind}"}) + "\n", encoding="utf-8")
    return folder


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Lets `make` write a file or folder beside `path`, with the same suffixes, and renames it to `path`.

    Raises:
        ValueError: The disk is full.
    """
    with room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{uuid4().hex}.part-{path.name}")
        try:
            make(aside)
            os.replace(aside, path)
        finally:
            _remove(aside)


def sweep(folder: Path) -> None:
    """Removes what killed processes have left half-written in and below a folder of ours that is locked."""
    for path in [path for path in folder.rglob(".*.part-*") if ASIDE.fullmatch(path.name)]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


class FullError(ValueError):
    """There is no room on the disk."""


@contextmanager
def room(path: Path) -> Iterator[None]:
    """A full disk becomes one sentence that names what was written: a `FullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        cure = "Make room, and give the same command again."
        raise FullError(message(f"room on the disk for {path}", f"{error.strerror!r}", cure)) from error


@contextmanager
def alone(folder: Path, kind: str) -> Iterator[None]:
    """Makes a folder our own and holds it against other processes; the lock dies with its process.

    Raises:
        ValueError: It is not ours, or another process holds it.
    """
    lock = FileLock(own(folder, kind) / LOCK)
    try:
        with room(folder):
            lock.acquire(blocking=False)
    except Timeout as error:
        cure = "Wait until it ends, or choose another folder with --out."
        raise ValueError(message(f"{folder} to itself", "another process at work in it", cure)) from error
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    replace(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes plain values as JSON; NaN is an error."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(message(f"whole JSON in {path}", first_line(error), AGAIN.format("it"))) from error


def save(path: Path, value: Any) -> None:
    """`torch.save`, for what `load` reads: tensors and plain values."""
    whole = io.BytesIO()  # a full disk is no OSError in torch's own writer
    torch.save(value, whole)
    replace(path, lambda aside: aside.write_bytes(whole.getbuffer()))


def load(path: Path) -> Any:
    """`torch.load` on the CPU, of tensors and plain values only.

    Raises:
        ValueError: The file is not there, damaged, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as parts:  # torch does not look at the checksums
            if (wrong := parts.testzip()) is not None:
                raise ValueError(f"a wrong checksum of {wrong}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        cure = AGAIN.format(f"the folder {path.parent}")
        raise ValueError(message(f"a whole checkpoint in {path}", first_line(error), cure)) from error


def first_line(error: Exception) -> str:
    """The first line of what an error says, in quotes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return repr(lines[0].rstrip("."))
