"""Start the process that loads the base, and receive what it lends."""

import contextlib
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe

from vqa_utils.artifacts.files import write_text
from vqa_utils.artifacts.paths import ROOT, RunPaths, shown
from vqa_utils.artifacts.places import without_names
from vqa_utils.artifacts.run import outside_folders
from vqa_utils.errors import RunError
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import receive_descriptors

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
        has_failed: its log has the reason.
    """

    def __init__(self, paths: RunPaths, predict: str = ""):
        """Start it; the run's settings are written.

        Args:
            paths: the run.
            predict: a folder with another test.csv to answer.
        """
        self.is_stopped = self.has_failed = False
        self._paths = paths
        self._log = paths.folder / "lender.log"
        self._ours, theirs = Pipe()
        with self._log.open("w") as output, theirs:
            self._process = subprocess.Popen(
                [*LENDER, paths.run_id, str(theirs.fileno()), predict],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
            )

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
        except EOFError:
            self.has_failed = True
            status = self._process.wait()
            log = self._log.read_text(encoding="utf-8", errors="replace")
            write_text(self._log, without_names(log, outside_folders(self._paths)))
            problem = _last_error(log)
            if status < 0:
                problem = f"the lender was killed by signal {-status}"
            raise LenderError(f"{problem} ({shown(self._log)})") from None

    def stop(self) -> None:
        """End it, if it is still at work; `receive` in another thread ends too."""
        self.is_stopped = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and let go of what it has lent and was not received."""
        self.stop()
        self._ours.close()
        if not self.has_failed:
            self._log.unlink(missing_ok=True)


def _last_error(text: str) -> str:
    """Find the last line that names an error; the last line, if none does."""
    lines = text.strip().splitlines() or ["it ended without a word"]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines)[-1]
