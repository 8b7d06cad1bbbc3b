"""``python -m docs.benefit``: the README's picture, from the committed results on ACDC."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "acdc-long" / "results.jsonl"
ARMS = {"random_ds": "random\ninitialisation", "mmgl_long": "MMGL"}


def scores(labelled: int) -> dict[int, list[float]]:
    """Seed -> test Dice of both arms, which have the same deep supervision and the same labelled patients."""
    runs = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    found = {
        (run["name"], run["seed"]): run["pooled"]["dice"]["mean"]
        for run in runs
        if len(run["labelled"]) == labelled
    }
    seeds = sorted({seed for name, seed in found if name == "mmgl_long"})
    return {seed: [found[name, seed] for name in ARMS] for seed in seeds}


def main() -> None:
    """Draws a line for each draw of labelled patients."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True, layout="constrained")
    for axis, labelled in zip(axes, (3, 7), strict=True):
        pairs = scores(labelled)
        for pair in pairs.values():
            axis.plot(
                pair,
                color="#0b5c96" if pair[1] > pair[0] else "#d55e00",
                marker="o",
                alpha=0.75,
            )
        axis.set(title=f"{labelled} labelled patients, {len(pairs)} draws", xlim=(-0.3, 1.3))
        axis.set_xticks([0, 1], ARMS.values())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test Dice")
    figure.savefig(ROOT / "images" / "benefit.png", dpi=130)


if __name__ == "__main__":
    main()
