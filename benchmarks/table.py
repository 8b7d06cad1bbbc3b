"""Results as CSV, with the machine on every line, and as a table to read."""

import csv
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Row

PEERS = ("triton", "monai", "pytorch-metric-learning")
NUMBERS = {"batch": int, "n": int, "d": int, "samples": int, "rejected": int}
NUMBERS |= dict.fromkeys(
    ("seconds", "first_quartile", "third_quartile", "peak_mib", "value_error", "gradient_error"), float
)


def machine(device: str) -> dict[str, str]:
    """Device, threads and versions."""
    versions = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in PEERS:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"device": name, "threads": str(torch.get_num_threads()), "versions": ", ".join(versions)}


def processor() -> str:
    """The kind of CPU."""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def write(path: Path, rows: Sequence[Row], where: Mapping[str, str]) -> None:
    """Write all rows; the file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Row)] + list(where))
        writer.writeheader()
        for row in rows:
            values = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow({**values, **where})
    aside.replace(path)


def read(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Rows and machine of a file that `write` wrote."""
    known = {field.name for field in fields(Row)}
    rows, where = [], {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            values: dict[str, Any] = {k: v for k, v in line.items() if k in known}
            for name, kind in NUMBERS.items():
                values[name] = kind(values[name]) if values[name] else None
            rows.append(Row(**values))
            where = {k: v for k, v in line.items() if k not in known}
    return rows, where


def our_seconds(row: Row, rows: Sequence[Row]) -> float | None:
    """The best time of ours with a row's formula, at its size."""
    same = [r for r in rows if (r.kind, r.batch, r.n, r.d, r.dtype) == (row.kind, row.batch, row.n, row.d, row.dtype)]
    ours = [r.seconds for r in same if is_ours(r) and r.seconds and r.formula == (row.formula or r.formula)]
    return min(ours, default=None)


def is_ours(row: Row) -> bool:
    """Whether this library computed it."""
    from benchmarks.kinds import KINDS

    return row.contestant in KINDS[row.kind].contestants and KINDS[row.kind].contestants[row.contestant].ours


def lines(rows: Sequence[Row]) -> list[str]:
    """A table: `ratio` is the time beside the best of ours with the same formula."""
    form = "{:<11} {:<24} {:<12} {:>5} {:>7} {:>4} {:>11} {:>17} {:>7} {:>9} {:>8} {:>8}  {}"
    head = ("kind", "contestant", "formula", "b", "n", "d", "ms", "quartiles", "ratio", "peak MiB", "value", "grad")
    table = [form.format(*head, "")]
    for row in rows:
        reference = our_seconds(row, rows)
        ratio = f"{row.seconds / reference:.2f}" if row.seconds and reference else ""
        quartiles = ""
        if row.first_quartile and row.third_quartile:
            quartiles = f"{row.first_quartile * 1e3:.4g}-{row.third_quartile * 1e3:.4g}"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f}"
        error = ["" if e is None else f"{e:.1e}" for e in (row.value_error, row.gradient_error)]
        time = "" if row.seconds is None else f"{row.seconds * 1e3:.4g}"
        sizes = row.batch, row.n, row.d
        table.append(
            form.format(
                row.kind, row.contestant, row.formula, *sizes, time, quartiles, ratio, peak, *error, row.note
            ).rstrip()
        )
    return table


def markdown(rows: Sequence[Row], where: Mapping[str, str]) -> str:
    """All rows as Markdown, a table for each case, for the documentation."""
    parts = [", ".join(f"{key} {value}" if key == "threads" else value for key, value in where.items())]
    for case in dict.fromkeys((row.kind, row.batch, row.n, row.d, row.dtype) for row in rows):
        kind, batch, n, d, dtype = case
        parts.append(f"**{kind}**, n = {n:,}, d = {d}, {batch} at once, {dtype}")
        lines = [
            "| | formula | ms (quartiles) | times ours | peak, MiB | gradient error |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            if (row.kind, row.batch, row.n, row.d, row.dtype) == case:
                lines.append(_markdown_line(row, our_seconds(row, rows)))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _markdown_line(row: Row, reference: float | None) -> str:
    milliseconds, times = row.note, ""
    if row.seconds and row.first_quartile and row.third_quartile:
        quartiles = f"{row.first_quartile * 1e3:.3g} to {row.third_quartile * 1e3:.3g}"
        milliseconds = f"{row.seconds * 1e3:.3g} ({quartiles})" + (f", {row.note}" if row.note else "")
        times = f"{row.seconds / reference:.2f}" if reference else ""
    name = f"**{row.contestant}**" if is_ours(row) else row.contestant
    peak = "" if row.peak_mib is None else f"{row.peak_mib:,.0f}"
    error = "" if row.gradient_error is None else f"{row.gradient_error:.0e}"
    return "| " + " | ".join([name, row.formula, milliseconds, times, peak, error]) + " |"
