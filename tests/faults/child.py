"""A forked process whose end can be planned: killed after some seconds or at a change to a file, or its disk full."""

import errno
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
TAKES_ROOM = {"open", "os.mkdir"}


@dataclass(frozen=True)
class Plan:
    """When a child ends before its end.

    Attributes:
        seconds: It is killed after so many.
        change: It kills itself at this change to a file below its folder, from 0.
        full: From this change on the disk is full: nothing new can be opened for writing.
        largest: No file can have more bytes: the disk is full in the middle of a write.
    """

    seconds: float | None = None
    change: int | None = None
    full: int | None = None
    largest: int | None = None

    def __str__(self) -> str:
        return ", ".join(f"{key} {value:.4g}" for key, value in vars(self).items() if value is not None) or "to its end"


TO_ITS_END = Plan()


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status (-9: killed), its changes to files, and what it said."""

    code: int
    changes: int
    log: str

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL


class Child:
    """A fork of this process that runs `do`; what that returns is its exit status, and an exception makes it 1.

    Args:
        do: What to run.
        folder: Changes to files in and below it are counted.
        planned: How it ends.
    """

    def __init__(self, do: Callable[[], int], folder: Path, planned: Plan = TO_ITS_END) -> None:
        self.log, self.count = (folder.with_name(f"{folder.name}-{id(self)}.{kind}") for kind in ("log", "count"))
        self.pid = os.fork()
        if self.pid == 0:
            self._run(do, folder, planned)
        self.timer = None
        if planned.seconds is not None:
            self.timer = threading.Timer(planned.seconds, os.kill, (self.pid, signal.SIGKILL))
            self.timer.start()

    def wait(self) -> Ended:
        """Waits for its end."""
        _, status = os.waitpid(self.pid, 0)
        if self.timer is not None:
            self.timer.cancel()
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, int(self.count.read_text()) if code >= 0 else -1, self.log.read_text())

    def _run(self, do: Callable[[], int], folder: Path, planned: Plan) -> NoReturn:
        made, code = 0, 1

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal made
            if event not in CHANGES or not any(str(each).startswith(str(folder)) for each in arguments[:2]):
                return
            if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
                return
            if made == planned.change:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1
            if planned.full is not None and made > planned.full and event in TAKES_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

        try:
            written = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(written, 1)
            os.dup2(written, 2)
            if planned.largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (planned.largest, planned.largest))
            sys.addaudithook(watch)
            code = do()
        except BaseException:
            traceback.print_exc()
        finally:
            planned = TO_ITS_END
            sys.stdout.flush()
            sys.stderr.flush()
            self.count.write_text(str(made))
            os._exit(code)
