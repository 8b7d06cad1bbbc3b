"""The view of a table in the making: what runs, and the table as it fills."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.mmwhs import files
from examples.mmwhs.study.compare import labelled_text
from examples.mmwhs.study.plan import Folders, Job
from examples.mmwhs.study.report import seconds
from examples.mmwhs.study.table import State


class View:
    """Draws the state of a table on a terminal, and says a line for every finished run elsewhere.

    Args:
        planned: The jobs.
        folders: Where their results are.
        console: Where to draw.
    """

    def __init__(self, planned: Sequence[Job], folders: Folders, console: Console) -> None:
        self.planned, self.folders, self.console = planned, folders, console
        self.began = time.monotonic()
        self.results: dict[str, dict[str, Any]] = {}
        self.told: set[str] = set()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        self._read(quiet=True)
        if self.results:
            self.console.print(f"{len(self.results)} of {len(self.planned)} runs are done already.")
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
        if kind is KeyboardInterrupt:
            self.console.print("Stopped. The same command goes on from here.")

    def show(self, state: State) -> None:
        """Draws, and says what has finished since the last time."""
        self._read(quiet=False)
        for _, (task, error) in [item for item in state.failed.items() if item[0] not in self.told]:
            self.told.add(task.id)
            self.console.print(f"[red]failed[/] {task.text}: {_first_line(error)}")
        if self.live is not None:
            self.live.update(Group(self._workers(state), self.table()), refresh=True)

    def _read(self, *, quiet: bool) -> None:
        """Reads the results that are new."""
        for job in self.planned:
            path = self.folders.result(job)
            if job.label not in self.results and path.is_file():
                result = self.results[job.label] = files.read_json(path)
                if not quiet:
                    dice = result["pooled"]["dice"]["mean"]
                    took = seconds(time.monotonic() - self.began)
                    count = f"{len(self.results)} of {len(self.planned)}"
                    self.console.print(f"{job.label}: Dice {_score(dice)}  ({count}, after {took})", highlight=False)

    def _workers(self, state: State) -> Table:
        took = time.monotonic() - self.began
        grid = Table.grid(padding=(0, 2))
        ended = state.done + len(state.failed) + len(state.skipped)
        head = f"[bold]{ended} of {state.total} steps[/]"
        left = (
            f"{seconds(took)}, about {seconds(took / ended * (state.total - ended))} left" if ended else seconds(took)
        )
        grid.add_row(head, ProgressBar(total=max(state.total, 1), completed=ended, width=30), left)
        for slot, task in sorted(state.running.items()):
            done = state.progress[slot]
            grid.add_row(f"  {task.text}", ProgressBar(completed=100 * done, width=30), f"{done:4.0%}")
        return grid

    def table(self) -> Table:
        """Dice so far: mean and standard deviation over the runs that are done."""
        part = self.planned[0].settings.scored if self.planned else "test"
        shown = Table(title=f"{part.capitalize()} Dice", title_justify="left")
        counts = list(dict.fromkeys(str(job.settings.labels) for job in self.planned))
        shown.add_column("method")
        for count in counts:
            shown.add_column(labelled_text(count), justify="right")
        for name in dict.fromkeys(job.name for job in self.planned):
            cells, title = [], name
            for count in counts:
                mine = [job for job in self.planned if job.name == name and str(job.settings.labels) == count]
                title = mine[0].settings.method.title if mine else title
                cells.append(_cell([self.results.get(job.label) for job in mine]))
            shown.add_row(title, *cells)
        return shown

    def conclude(self, state: State) -> None:
        """The table, and what failed."""
        self._read(quiet=True)
        self.console.print(self.table())
        took = seconds(time.monotonic() - self.began)
        self.console.print(f"{state.made} of {state.total} steps done here in {took}.", highlight=False)
        for task, error in state.failed.values():
            self.console.print(f"[red]failed[/] {task.text}: {_first_line(error)}")
        if state.failed:
            where = self.folders.out / "failed"
            missing = len(self.planned) - len(self.results)
            self.console.print(
                f"{missing} runs are missing; what went wrong is in {where}. The same command tries again."
            )


def _first_line(error: str) -> str:
    return escape(error.partition("\n")[0])


def _cell(results: Sequence[dict[str, Any] | None]) -> str:
    there = [each["pooled"]["dice"]["mean"] for each in results if each is not None]
    scores = [score for score in there if score is not None]
    if not results:
        return ""
    count = "" if len(there) == len(results) else f" [dim]{len(there)}/{len(results)}[/]"
    if not scores:
        return f"[dim]–[/]{count}"
    spread = f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{spread}{count}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
