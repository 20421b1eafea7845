"""Start the process that loads the base, and receive what it lends."""

import contextlib
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Pipe

from vqa_utils.artifacts.files import write_text
from vqa_utils.artifacts.paths import ROOT, RunPaths, shown
from vqa_utils.artifacts.places import without_names
from vqa_utils.artifacts.run import outside_folders
from vqa_utils.errors import RunError
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import STOPPED, receive_descriptors

LENDER = (sys.executable, "-m", "vqa_utils.model.lending.lender")
SELF_TEST = (sys.executable, "-m", "vqa_utils.sharing.gpu_memory")
ERROR = re.compile(r"[\w.]+(Error|Exception): ")  # the line of a traceback with its message


class LenderError(RunError):
    """The base was not loaded, or cannot be lent."""


@functools.cache
def sharing_problem(gpus: int) -> str:
    """Tell why this machine cannot lend a base on its first GPUs; "" if it can.

    A process of its own shares a page on each GPU, so that this one takes no GPU memory.
    """
    answer = subprocess.run(
        [*SELF_TEST, str(gpus)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return "" if answer.returncode == 0 else _last_error(answer.stderr)


class Lender:
    """A process that loads and packs a run's base, lends it, and ends.

    It ends with this process too.

    Attributes:
        is_stopped: nobody waits for its base any more.
    """

    def __init__(self) -> None:
        """Start it: it imports, and waits for `load`."""
        self.is_stopped = False
        self._paths: RunPaths | None = None  # before `load`
        # What it prints, which names folders and users: of no name, so that nothing is left of it
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (`close` closes it)
        self._ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*LENDER, str(theirs.fileno())],
                cwd=ROOT,
                stdout=self._words,
                stderr=self._words,
                pass_fds=[theirs.fileno()],
            )

    def load(self, paths: RunPaths, predict: str = "") -> None:
        """Let it load the base of a run, whose settings are written.

        Args:
            paths: the run.
            predict: a folder with another test.csv to answer.
        """
        self._paths = paths
        paths.lender_log.unlink(missing_ok=True)  # of an earlier one, which has failed
        with contextlib.suppress(OSError):  # it has ended: who waits for its base will be told
            self._ours.send_bytes(json.dumps([paths.run_id, predict]).encode())

    def wait_until_loaded(self) -> None:
        """Wait until the model is loaded, which is what goes wrong, if anything does.

        Raises:
            LenderError: with the last words of the lender, and its log.
        """
        with self._explained():
            self._ours.recv_bytes()

    def receive(self) -> tuple[LentBase, list[int]]:
        """Wait for the base, once it is loaded: its description, and its blocks' descriptors.

        Raises:
            LenderError: with the last words of the lender, and its log.
        """
        with self._explained():
            base = LentBase.from_json(self._ours.recv_bytes().decode())
            descriptors = receive_descriptors(self._ours, len(base.blocks))
        self._process.wait()
        return base, descriptors

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell why the lender has ended early, if it has."""
        try:
            yield
        except (EOFError, ConnectionResetError):  # the latter, if it has not read what it was sent
            status = self._process.wait()
            self.is_stopped |= status == STOPPED
            assert self._paths  # of `load`
            log = self._paths.lender_log
            self._words.seek(0)
            words = self._words.read().decode(errors="replace")
            if not self.is_stopped:
                write_text(log, without_names(words, outside_folders(self._paths)))
            problem = _last_error(words)
            if status < 0:
                problem = f"the lender was killed by signal {-status}"
            raise LenderError(f"{problem} ({shown(log)})") from None

    def stop(self) -> None:
        """End it, if it is still at work; `receive` in another thread ends too."""
        self.is_stopped = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and let go of what it has lent and was not received."""
        self.stop()
        self._ours.close()
        self._words.close()

    @property
    def is_there(self) -> bool:
        """True until it has ended."""
        return self._process.poll() is None


_ahead: list[Lender] = []  # started before it was known what to load; one at most


@contextlib.contextmanager
def lender_ahead(wanted: bool) -> Iterator[None]:
    """Keep a lender that imports while this is open, for the first `new_lender`, if it is wanted."""
    if wanted:
        _ahead.append(Lender())
    try:
        yield
    finally:
        end_lender_ahead()


def end_lender_ahead() -> None:
    """End a lender that nobody needs."""
    while _ahead:
        _ahead.pop().close()


def new_lender(paths: RunPaths, predict: str = "") -> Lender:
    """Let a lender load the base of a run; the arguments are those of `Lender.load`."""
    lender = _ahead.pop() if _ahead and _ahead[-1].is_there else Lender()
    lender.load(paths, predict)
    return lender


def _last_error(text: str) -> str:
    """Find the last line that names an error; the last line, if none does."""
    lines = text.strip().splitlines() or ["it ended without a word"]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines)[-1]
