"""The command line: ``python -m examples.mmwhs demo | phantom | check | run | table | ablation | probe | predict``.

Nothing is imported above but what is there at once, so that a signal finds its handler from the start.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from examples.mmwhs.messages import message


class StoppedError(BaseException):
    """A signal asked the program to end."""


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work where it is, and not, as Lightning has it, with success."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise StoppedError(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Runs a command. What goes wrong becomes a sentence here, and nowhere else: status 2; 128 + n after signal n."""
    status, said, command = 2, "", ""
    try:
        with ending_by_signals():
            from rich.console import Console

            from examples.mmwhs.commands import COMMANDS, parsed

            command, args = parsed(sys.argv[1:] if argv is None else argv)
            console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
            return COMMANDS[command](args, console) or 0
    except StoppedError as error:
        number = int(error.args[0])
        goes_on = " The same command goes on from here." if command in ("run", "demo", "table", "ablation") else ""
        status, said = 128 + number, f"stopped by {signal.Signals(number).name}.{goes_on}"
    except (ValueError, TypeError) as error:
        said = str(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error):
            raise  # a fault of the program: its place is worth knowing
        said = message("enough memory", "none left", "Make batches, slices or the network smaller with --set.")
    except OSError as error:
        said = message("files that can be read and written", str(error))
    print(f"error: {said}", file=sys.stderr)
    return status


if __name__ == "__main__":
    code = main()
    if code > 128:  # nothing that still runs may hold up the end or change its status
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
