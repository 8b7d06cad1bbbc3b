"""What is said of a stage while it trains: how far it is, and which structures it does not find or loses."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from examples.mmwhs import files
from examples.mmwhs.train.fit import curves, is_first


class Watch(Callback):
    """Says how far a stage is, a line every half minute and a bar on a terminal, and which structures are in trouble.

    A structure has fallen when its Dice on validation slices is below half of the highest that it has had since the
    stage began, and .2 below it at least.

    Args:
        name: Of method and stage, in words.
        steps: Of the stage.
        say: Takes the lines.
        console: Where a bar is drawn; nowhere if it is None or no terminal.
        structures: Label value -> name, in the order of the classes.
        began: Label value -> Dice on validation slices of the weights that the stage begins with, where it is known.

    Attributes:
        fell: Label value -> of a structure that has fallen, the highest Dice before (``from``), the lowest since
            (``to``) and its ``step``. Saved with the stage's last state, so that a resumed stage knows it.
    """

    PAUSE = 30.0

    def __init__(
        self,
        name: str,
        steps: int,
        *,
        say: Callable[[str], None],
        console: Console | None = None,
        structures: Mapping[str, str] | None = None,
        began: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.steps, self.say, self.structures = name, steps, say, structures or {}
        self.highest: dict[str, float] = {**(began or {})}
        self.fell: dict[str, dict[str, float]] = {}
        self.bar = None
        if console is not None and console.is_terminal and is_first():
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(name, total=steps)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to count."""
        self.started = self.said = time.monotonic()
        self.first_step: int | None = None
        if self.bar is not None:
            self.bar.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Says it, if it is time."""
        step, now = trainer.global_step, time.monotonic()
        self.first_step = step - 1 if self.first_step is None else self.first_step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
        if now - self.said >= self.PAUSE and is_first():
            self.said = now
            left = (now - self.started) / (step - self.first_step) * (self.steps - step)
            known = trainer.callback_metrics
            scored = f", validation Dice {known['validation_dice']:.3f}" if "validation_dice" in known else ""
            loss = f"{float(outputs['loss']):.3f}"
            self.say(f"{self.name}: step {step} of {self.steps}, loss {loss}{scored}, about {in_words(left)} left")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Says which structures the network does not find, and which have fallen."""
        step, known = trainer.global_step, trainer.callback_metrics
        names = {value: f"validation_dice_{index}" for index, value in enumerate(self.structures, start=1)}
        dice = {value: float(known[name]) for value, name in names.items() if name in known}
        dead = [self.structures[value] for value, now in dice.items() if now == 0]
        if dead and is_first():
            cure = "" if pl_module.schedule.balanced else "; `balanced` in the schedule draws slices that show it"
            self.say(f"{self.name}: step {step}: {', '.join(dead)} not found on any validation slice{cure}")
        fallen = []
        for value, now in dice.items():
            highest = self.highest[value] = max(now, self.highest.get(value, now))
            if has_fallen(highest, now):
                fallen.append(f"{self.structures[value]} from {highest:.3f} to {now:.3f}")
                if value not in self.fell or now < self.fell[value]["to"]:
                    self.fell[value] = {"from": highest, "to": now, "step": step}
        if fallen and is_first():
            self.say(f"{self.name}: step {step}: validation Dice has fallen: {', '.join(fallen)}")

    def state_dict(self) -> dict[str, Any]:
        """The highest Dice of each structure, and what has fallen."""
        return {"highest": self.highest, "fell": self.fell}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.highest, self.fell = state_dict["highest"], state_dict["fell"]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Takes the bar away, however the stage ended."""
        if self.bar is not None:
            self.bar.stop()


def in_words(value: float) -> str:
    """``95`` seconds as ``1 min 35 s``."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def has_fallen(highest: float, now: float) -> bool:
    """Whether a Dice is below half of another, and .2 below it at least; one below 0 stands for none."""
    return 0 <= now < highest / 2 and highest - now >= 0.2


def dice_left(folder: Path, structures: Mapping[str, str]) -> dict[str, float]:
    """Label value -> Dice on validation slices of the weights that a finished stage left; nothing if it has no such."""
    logged, facts = curves(folder), files.read_json(folder / "done.json")
    each = {value: logged.get(f"validation_dice_{index}", []) for index, value in enumerate(structures, start=1)}
    return {value: dict(points)[facts["best_step"]] for value, points in each.items() if points}
