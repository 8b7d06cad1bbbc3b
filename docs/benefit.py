"""``python -m docs.benefit``: the README's picture, from the committed results on ACDC."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "acdc-selftrain" / "results.jsonl"
LABELLED = (1, 3, 7)  # patients
START = "random_ds"
# Where each method stands, what the picture calls it, and the colour of the lines that lead to it.
METHODS = {
    "random_ds_long": (-1, "labels alone,\n4,400 steps", "#8a8a8a"),
    START: (0, "labels alone,\n800 steps", ""),
    "random_ds_selftrain": (1, "then self-training,\n600 steps", "#0b5c96"),
}


def scores() -> dict[tuple[int, str, int], float]:
    """The test Dice by the number of labelled patients, the method and the draw."""
    runs = map(json.loads, RESULTS.read_text().splitlines())
    return {
        (len(run["labelled"]), run["name"], run["seed"]): run["pooled"]["dice"]["mean"]
        for run in runs
    }


def lines(
    found: Mapping[tuple[int, str, int], float], labelled: int
) -> Iterator[tuple[str, float, float]]:
    """Of each draw of labelled patients: a method, the Dice that it starts from, and its own."""
    for (number, name, seed), dice in found.items():
        if number == labelled and name in METHODS and name != START:
            yield name, found[labelled, START, seed], dice


def main() -> None:
    """Draws two lines for each draw of labelled patients: from the start to longer training, and to self-training."""
    found = scores()
    figure, axes = plt.subplots(
        1, len(LABELLED), figsize=(9, 3), sharey=True, layout="constrained"
    )
    for axis, labelled in zip(axes, LABELLED, strict=True):
        for name, start, dice in lines(found, labelled):
            place, _, colour = METHODS[name]
            axis.plot([0, place], [start, dice], color=colour, marker="o", alpha=0.75)
        axis.set_title(f"{labelled} labelled patient{'s' * (labelled > 1)}", fontsize=10)
        axis.set(xlim=(-1.3, 1.3))
        places, names, _ = zip(*METHODS.values(), strict=True)
        axis.set_xticks(places, names, fontsize=7.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test Dice")
    figure.savefig(ROOT / "images" / "benefit.png", dpi=130)


if __name__ == "__main__":
    main()
