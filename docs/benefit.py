"""``python -m docs.benefit``: the README's picture, from the committed results on ACDC."""

import json
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent


class Panel(NamedTuple):
    """Two methods whose fine-tuning has the same deep supervision, beside one another."""

    folder: str  # of `docs/results`
    labelled: int
    arms: dict[str, str]  # the name of a method -> how the picture calls it


PANELS = (
    Panel(
        "acdc-selftrain",
        1,
        {"random_ds": "random\ninitialisation", "random_ds_selftrain": "self-training"},
    ),
    Panel("acdc-long", 3, {"random_ds": "random\ninitialisation", "mmgl_long": "MMGL"}),
    Panel("acdc-long", 7, {"random_ds": "random\ninitialisation", "mmgl_long": "MMGL"}),
)


def scores(panel: Panel) -> list[list[float]]:
    """The test Dice of both methods, for each draw of labelled patients that both have."""
    runs = [
        json.loads(line)
        for line in (ROOT / "results" / panel.folder / "results.jsonl").read_text().splitlines()
    ]
    found = {
        (run["name"], run["seed"]): run["pooled"]["dice"]["mean"]
        for run in runs
        if len(run["labelled"]) == panel.labelled
    }
    seeds = sorted({seed for _, seed in found})
    return [
        [found[name, seed] for name in panel.arms]
        for seed in seeds
        if all((name, seed) in found for name in panel.arms)
    ]


def main() -> None:
    """Draws a line for each draw of labelled patients."""
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(8, 2.8), sharey=True, layout="constrained"
    )
    for axis, panel in zip(axes, PANELS, strict=True):
        pairs = scores(panel)
        for pair in pairs:
            axis.plot(
                pair,
                color="#0b5c96" if pair[1] > pair[0] else "#d55e00",
                marker="o",
                alpha=0.75,
            )
        patients = (
            "1 labelled patient"
            if panel.labelled == 1
            else f"{panel.labelled} labelled patients"
        )
        axis.set_title(f"{patients}, {len(pairs)} draws", fontsize=10)
        axis.set(xlim=(-0.3, 1.3))
        axis.set_xticks([0, 1], panel.arms.values())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test Dice")
    figure.savefig(ROOT / "images" / "benefit.png", dpi=130)


if __name__ == "__main__":
    main()
