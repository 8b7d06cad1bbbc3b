"""``python -m docs.benefit``: the README's picture, from the committed results on ACDC."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "acdc-selftrain" / "results.jsonl"
LABELLED = (1, 3, 7)  # patients
# From where to where each line goes: labels alone, and self-training behind that.
PAIRS = (
    ("random_ds", "random_ds_selftrain"),
    ("random_ds_long", "random_ds_long_selftrain"),
)
NAMES = ("800 steps", "then self-\ntraining, 600", "4,400 steps", "then self-\ntraining, 2,400")
PLACES = (0.0, 1.0, 2.2, 3.2)  # of the names, the two pairs apart


def scores() -> dict[tuple[int, str, int], float]:
    """The test Dice by the number of labelled patients, the method and the draw."""
    runs = map(json.loads, RESULTS.read_text().splitlines())
    return {
        (len(run["labelled"]), run["name"], run["seed"]): run["pooled"]["dice"]["mean"]
        for run in runs
    }


def main() -> None:
    """Draws a line for each draw of labelled patients, and a point where one of its ends was not run."""
    found = scores()
    figure, axes = plt.subplots(
        1, len(LABELLED), figsize=(10, 3.2), sharey=True, layout="constrained"
    )
    for axis, labelled in zip(axes, LABELLED, strict=True):
        for pair, places in zip(PAIRS, (PLACES[:2], PLACES[2:]), strict=True):
            draws = {
                seed for number, name, seed in found if number == labelled and name in pair
            }
            for draw in sorted(draws):
                ends = [found.get((labelled, name, draw), math.nan) for name in pair]
                axis.plot(places, ends, color="#0b5c96", marker="o", alpha=0.75)
        axis.set_title(f"{labelled} labelled patient{'s' * (labelled > 1)}", fontsize=10)
        axis.set(xlim=(-0.4, 3.6))
        axis.set_xticks(PLACES, NAMES, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test Dice")
    figure.savefig(ROOT / "images" / "benefit.png", dpi=130)


if __name__ == "__main__":
    main()
