"""The end of a run on a GPU in at most 60 lines, from the rows that its phases left."""

from collections.abc import Iterable
from typing import Any

from benchmarks.case import Case
from benchmarks.gpu_measure import floor_seconds
from benchmarks.roofline import CEILINGS

MOST = 60
AIM = 0.55  # of the floor, at 6,400 points and more, on a device whose products reach CLASS
CLASS = 500.0  # TFLOP/s in bfloat16, measured: an H100, or better
FASTER = {"flex_attention": 1.5, "plain, compiled": 10.0, "plain": 40.0}  # times, at 6,400 points
GRAPH = 80e-6  # seconds of the module's call in a graph at 1,600 points
LEAST = 6400
GRADIENT = 3e-3  # relative error of the gradient in bfloat16
MANY, MEMORY = 110_592, 1024.0  # MiB above the inputs for so many points of an image

Row = dict[str, Any]


def summary(rows: list[Row]) -> tuple[list[str], bool]:
    """The lines, and whether everything that was checked was right."""
    done = [row for row in rows if row["state"] == "done"]
    wrong = [row for row in rows if row["state"] == "failed" or row.get("passed") is False]
    left_out = sum(row["state"] == "left out" for row in rows)
    checks = [row for row in done if "passed" in row]
    ceilings = next((row for row in done if row["item"] == "ceilings"), None)
    lines = ["SUMMARY", *machine(done)]
    if ceilings is None and any(not row.get("device", "none").startswith("none") for row in done):
        ceilings = CEILINGS
        lines.append("the device's own ceilings are missing: an H100's stand in for them")
    if ceilings is None:
        lines.append("no CUDA figure was measured")
    lines.append(f"checks: {sum(row['passed'] for row in checks)} of {len(checks)} right; left out: {left_out}")
    lines += [f"FAILED {row['phase']}, {row['item']}: {said(row)}"[:200] for row in wrong[:12]]
    if len(wrong) > 12:
        lines.append(f"... and {len(wrong) - 12} more: see gpu.jsonl")
    if ceilings is not None:
        lines += [*tiles(done, ceilings), *calls(done), *counted(done), *aims(done, ceilings)]
    # Tiles that do not fit are results, not faults.
    bad = [row for row in wrong if row["phase"] != "kernels" or "usual" in row["item"]]
    if len(lines) > MOST:
        lines = [*lines[: MOST - 1], f"... {len(lines) - MOST + 1} more lines: see gpu.jsonl"]
    return lines, not bad


def said(row: Row) -> str:
    """Why a row is a failure."""
    if "why" in row:
        return row["why"]
    return f"{row['error']:.3g} times the allowed error" if "error" in row else str(row.get("said", row.get("worst")))


def machine(done: Iterable[Row]) -> list[str]:
    """What was at hand."""
    hidden = ("phase", "index", "item", "state")
    lines = []
    for row in done:
        if row["phase"] == "machine":
            values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if k not in hidden}
            lines.append(f"{row['item']}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    return lines


def tiles(done: Iterable[Row], ceilings: Row) -> list[str]:
    """Each kernel at each size: with the usual tile and with the best, in ms and beside its floor."""
    found: dict[tuple, list[Row]] = {}
    for row in done:
        if row["phase"] == "kernels" and row.get("seconds"):
            found.setdefault((row["n"], row["d"], row["kernel"]), []).append(row)
    lines = []
    for (n, d, kernel), timed in sorted(found.items()):
        floor = floor_seconds(ceilings, Case("local", 8, n, d, "cuda", "bfloat16"), kernel)
        best = min(timed, key=lambda row: row["seconds"])
        usual = [row["seconds"] for row in timed if row["tile"] == "usual"]
        now = f"{1e3 * usual[0]:.4f} ms ({floor / usual[0]:.0%} of the floor)" if usual else "not timed"
        other = f"best {best['tile']} {1e3 * best['seconds']:.4f} ms ({floor / best['seconds']:.0%})"
        lines.append(f"{kernel} {n} x {d}: {now}; {other}")
    return lines


def calls(done: Iterable[Row]) -> list[str]:
    """Whole calls: eager, in a graph, the host alone; the number of launches."""
    lines = []
    for row in done:
        if row["phase"] == "module" and "launches" in row:
            lines.append(f"launches of a call at {row['n']}: {row['launches']}")
        elif row["phase"] == "module" and "eager" in row:
            times = [f"{key} {1e6 * row[key]:.0f} us" for key in ("eager", "graph", "host") if key in row]
            lines.append(f"{row['formula']} {row['n']} x {row['d']}: {', '.join(times)}{row.get('graph_failed', '')}")
    return lines


def counted(done: Iterable[Row]) -> list[str]:
    """What the profiler counted."""
    hidden = ("phase", "index", "item", "state", "kernel")
    return [
        f"{row['item']}: " + ", ".join(f"{k} {v}" for k, v in row.items() if k not in hidden)
        for row in done
        if row["phase"] == "counters"
    ]


def aims(done: Iterable[Row], ceilings: Row) -> list[str]:
    """What was aimed at and what was measured."""
    able, lines = ceilings["bf16_tflop_s"] >= CLASS, []
    timed = [row for found in done for row in found.get("rows", ()) if row["seconds"]]
    seconds = {(row["n"], row["d"], row["dtype"], row["contestant"]): row["seconds"] for row in timed}
    for (n, d, dtype, name), took in seconds.items():
        at = f"{n} x {d} {dtype}"
        if name == "fused, kernels alone" and n >= LEAST:
            share = floor_seconds(ceilings, Case("local", 8, n, d, "cuda", dtype)) / took
            met = "" if dtype == "float32" or not able else f": {verdict(share >= AIM)} (aim {AIM:.0%})"
            lines.append(f"kernels alone {at}: {1e3 * took:.4f} ms, {share:.0%} of the floor{met}")
        fused = seconds.get((n, d, dtype, "fused"))
        if name in FASTER and fused:
            met = f": {verdict(took / fused >= FASTER[name])} (aim {FASTER[name]:.3g})" if n == LEAST and able else ""
            lines.append(f"{at}: {took / fused:.3g} times as fast as {name}{met}")
    ours = [row for row in timed if row["contestant"] == "fused" and row["dtype"] == "bfloat16"]
    if errors := [row["gradient_error"] for row in ours if row.get("gradient_error") is not None]:
        lines.append(
            f"gradient in bfloat16 off by {max(errors):.2g}: {verdict(max(errors) <= GRADIENT)} (aim {GRADIENT})"
        )
    for row in ours:
        if row["n"] == MANY and row.get("peak_mib") is not None:
            each = row["peak_mib"] / row["batch"]
            lines.append(f"{MANY} x {row['d']}: {each:.0f} MiB an image: {verdict(each < MEMORY)} (aim {MEMORY:.0f})")
    for row in done:
        if row.get("n") == 1600 and "graph" in row and able:
            met = verdict(row["graph"] <= GRAPH)
            lines.append(
                f"{row['formula']} 1600 x {row['d']} in a graph: {1e6 * row['graph']:.0f} us: {met} (aim 80 us)"
            )
    return lines


def verdict(met: bool) -> str:
    """In a word."""
    return "met" if met else "MISSED"
