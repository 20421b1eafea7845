"""Stop a run where nothing is lost: on a signal, or a part of it when its time is up.

    driver     SIGTERM, SIGHUP  -->  writes a file       runs/.locks/stop/<run_id>
               the time budget  -->  writes beside it    runs/.locks/stop/<run_id>@time
    kernels    look for them after each step, or each batch of scoring, and end with StopRequested;
               a training saves a checkpoint first, scoring begins anew the next time
               as a sign of life, they touch             runs/.locks/stop/<run_id>@<step>

Kaggle, Slurm and Docker send SIGTERM some seconds before they kill; a terminal that is closed sends
SIGHUP. The time budget ends training first, and scoring later.
"""

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.errors import Stopped, VqaError

VARIABLE = "VQA_STOP_FILE"  # names the file to the processes of the run
STEP = "VQA_STEP"  # names the step to the process that executes it
TIME_UP = "time"
TENTHS = 10  # lines of a long cell that is run by hand
TRAINING, SCORING = "training", "scoring"
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP


class StopRequested(VqaError):
    """A notebook ends early, as its run was asked to stop."""


@contextlib.contextmanager
def stoppable(paths: RunPaths) -> Iterator[None]:
    """Let the signals ask the notebooks of a run to stop; a second signal ends this process at once."""
    file = file_to_stop(paths)
    file.parent.mkdir(parents=True, exist_ok=True)
    _forget(file)  # of a driver that was killed

    def ask(number: int, frame: FrameType | None) -> None:
        for other in caught:
            signal.signal(other, signal.SIG_DFL)
        if number != signal.SIGTERM:
            _let_go_of_the_terminal()
        with contextlib.suppress(OSError):  # on a full disk, the second signal ends all
            file.write_text(str(number))

    # Not those that are ignored, as nohup has it
    caught = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in caught:
        signal.signal(number, ask)
    os.environ[VARIABLE] = str(file)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        _forget(file)


def last_seen(paths: RunPaths, step: str) -> float:
    """Return when a step of any driver's run was last seen to go on; 0 if it was not."""
    return _modified(Path(f"{file_to_stop(paths)}@{step}"))


def file_to_stop(paths: RunPaths) -> Path:
    """Return the file that asks a run to stop."""
    return paths.lock.parent / "stop" / paths.run_id.replace("/", "-")


def _forget(file: Path) -> None:
    for other in (file, *file.parent.glob(f"{file.name}@*")):
        other.unlink(missing_ok=True)


def leave_signals_to_the_driver() -> None:
    """Ignore the signals in this process of a run: they may go to all of its processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def quiet_worker(before: Callable[[int], None] | None, number: int) -> None:
    """Begin a DataLoader's worker, which torch lets die of SIGTERM; its kernel needs it to save.

    Args:
        before: the loader's own beginning.
        number: the worker's.
    """
    leave_signals_to_the_driver()
    if before is not None:
        before(number)


def ask_to_stop(number: int) -> None:
    """Ask the notebooks of this driver's run to stop, as a signal does."""
    Path(os.environ[VARIABLE]).write_text(str(number))


def asked_by() -> int | None:
    """Return the signal that asked this process's run to stop; None if none did."""
    file = os.environ.get(VARIABLE)
    if file is None:
        return None
    try:
        return int(Path(file).read_text() or signal.SIGTERM)  # "" while it is written
    except FileNotFoundError:
        return None


def end_phase(phase: str) -> None:
    """Ask the notebooks of this driver's run that train, or that score, to stop: their time is up."""
    file = _beside(TIME_UP)
    if file is not None:
        with file.open("a") as lines:
            lines.write(f"{phase}\n")


def is_by_hand() -> bool:
    """Tell whether this process's notebook was opened by hand, so that nobody else shows its steps."""
    return STEP not in os.environ


def tell_by_hand(done: int, steps: int, text: str) -> None:
    """Print how far a notebook that is opened by hand is, at each tenth of its steps."""
    if is_by_hand() and done % max(1, steps // TENTHS) == 0:
        print(f"{text} {done}/{steps}", flush=True)


def must_stop(phase: str) -> bool:
    """Tell a notebook that trains, or that scores, if it was asked to stop; it shows that it lives."""
    _show_life()
    return asked_by() is not None or _is_time_up(phase)


def stop_if_asked(phase: str) -> None:
    """Go on, but in a notebook that was asked to stop.

    Args:
        phase: "training" or "scoring".

    Raises:
        StopRequested: it was.
    """
    if not must_stop(phase):
        return
    reason = "the run was asked to stop" if asked_by() else f"the time for {phase} is up"
    raise StopRequested(f"{reason}; python run_all.py --resume goes on from here")


def last_life(step: str) -> float:
    """Return when a step of this driver's run was last seen to go on; 0 if it was not."""
    file = _beside(step)
    return _modified(file) if file is not None else 0.0


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _show_life() -> None:
    step = os.environ.get(STEP)
    file = _beside(step) if step else None  # a notebook by hand is no step
    if file is not None:
        with contextlib.suppress(OSError):
            file.touch()


def _beside(name: str) -> Path | None:
    """Return a file of that name of this process's run; None without a run."""
    file = os.environ.get(VARIABLE)
    return Path(f"{file}@{name}") if file is not None else None


def _is_time_up(phase: str) -> bool:
    file = _beside(TIME_UP)
    try:
        return file is not None and phase in file.read_text().splitlines()
    except FileNotFoundError:
        return False


def end_if_asked() -> None:
    """Go on, but in the driver of a run that was asked to stop.

    Raises:
        Stopped: it was.
    """
    number = asked_by()
    if number:
        raise Stopped(number)


def _let_go_of_the_terminal() -> None:
    """Write to nothing in place of a terminal that is gone, where to write is an error."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        # isatty() says no of a terminal that is gone; a file or a pipe is no character device
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nothing, descriptor)
