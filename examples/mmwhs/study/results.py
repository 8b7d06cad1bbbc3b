"""The results of a table: one file of JSON lines, a line for each finished run, which only ever grows."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from examples.mmwhs import files
from examples.mmwhs.messages import message
from examples.mmwhs.train.setup import FORMAT

NAME = "results.jsonl"


def read(folder: Path) -> list[dict[str, Any]]:
    """All results in the file of a folder; a last line that a killed process has left half-written is none.

    Raises:
        ValueError: Another line is damaged, or of another version of the program.
    """
    path, found = folder / NAME, []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n") and number == len(lines):
            break
        try:
            result = json.loads(line)
        except ValueError as error:
            got = f"{files.first_line(error)} in line {number}"
            raise ValueError(message(f"whole JSON in every line of {path}", got, "Remove that line.")) from error
        if not isinstance(result, dict) or result.get("format") != FORMAT:
            got = f"format {result.get('format') if isinstance(result, dict) else None} in line {number}"
            raise ValueError(message(f"results of format {FORMAT} in {path}", got, "Choose another --results."))
        found.append(result)
    return found


def append(folder: Path, result: dict[str, Any]) -> None:
    """Adds a line, whole or not at all, also beside other processes."""
    path = folder / NAME
    line = (json.dumps(result, allow_nan=False) + "\n").encode()
    with files.room(path):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{NAME}.lock"), path.open("ab+") as file:
            end = file.seek(0, 2)
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole < end:  # what a killed process has left
                file.truncate(whole)
            file.write(line)


def chosen(
    results: Iterable[dict[str, Any]], *, names: Sequence[str], labelled: Sequence[float | int], seeds: Sequence[int],
    scored: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """The results of some methods, numbers of labelled patients and seeds; all, where none are named.

    Raises:
        ValueError: There are two of one run.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for result in results:
        run = (result["name"], str(result["asked"]), result["seed"])
        own = result["settings"]["method"]["labelled"] is not None  # a method with labels of its own
        if (names and result["name"] not in names) or result["scored"] != scored:
            continue
        if (labelled and not own and run[1] not in map(str, labelled)) or (seeds and result["seed"] not in seeds):
            continue
        if run in found and found[run]["key"] != result["key"]:
            got = f"{'-'.join(map(str, run))} with the keys {found[run]['key']} and {result['key']}"
            cure = "They are of other data or settings: keep them in another --results."
            raise ValueError(message("one result of every run", got, cure))
        found[run] = result
    return list(found.values())
