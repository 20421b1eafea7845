"""Start kernels before their notebooks, which find there what they import.

Imports take longer than to attach a lent base. A kernel that waits has taken nothing of a GPU.
"""

import itertools
import os
import re
from pathlib import Path
from signal import Signals

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.util import run_sync

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.stop import SIGNALS, STEP
from vqa_utils.running.notebooks.forked_kernels import forked, parent_of_kernels

KERNEL = "python3"
# Of kernel specs. None: one of this name in a user's folders may be of another Python, and without
# one ipykernel takes this Python
SPEC_FOLDERS: list[str] = []
# A kernel warns of its unencrypted port as it starts, and may report as an error that it is
# interrupted as it is shut down
QUIET = "--log-level=CRITICAL"
NO_HISTORY = "--HistoryManager.hist_file=:memory:"  # as nbclient starts them
# Of torchrun, MPI, Slurm's and accelerate's launchers, for processes that work together: a kernel
# would wait for the others. And of matplotlib: a notebook shows its figures
NOT_FOR_KERNELS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(OMPI_COMM_|PMI_|MV2_COMM_).*"
    r"|TORCHELASTIC_.*|ACCELERATE_.*|MPLBACKEND"
)
START_TIMEOUT = 600  # seconds, imports included

_waiting: list[AsyncKernelManager] = []  # in this process, the oldest first


# A driver's signals may go to all of its processes; only the driver acts on them. And ipykernel
# looks for its parent from its first request on, which is after the imports
FIRST_CODE = """
import os, signal, threading, time
for number in {signals}:
    signal.signal(number, signal.SIG_IGN)
def end_with_parent():
    while os.getppid() == {parent}:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
"""


def first_line() -> str:
    """Return the argument for what a kernel of this process does first."""
    code = FIRST_CODE.format(signals=list(map(int, SIGNALS)), parent=parent_of_kernels())
    return f"--IPKernelApp.exec_lines=exec({code!r}, {{}})"


def clean_environment() -> None:
    """Drop variables from this process's environment that are not meant for kernels."""
    for name in list(os.environ):
        if NOT_FOR_KERNELS.fullmatch(name):
            del os.environ[name]


def start_kernels(source: Path, count: int) -> None:
    """Start kernels in this process until so many wait; each imports what a notebook imports.

    Args:
        source: the notebook.
        count: of kernels.
    """
    # In a namespace of its own: the notebook, or another one, begins with an empty one
    imports = f"--IPKernelApp.exec_lines=exec({import_code(source)!r}, {{}})"
    arguments = [QUIET, NO_HISTORY, first_line(), imports]
    while len(_waiting) < count:
        kernel = new_kernel()
        run_sync(kernel.start_kernel)(cwd=str(source.parent), extra_arguments=arguments)
        _waiting.append(kernel)


def new_kernel() -> AsyncKernelManager:
    """Prepare a kernel of this Python; it starts with its notebook."""
    specs = KernelSpecManager(kernel_dirs=SPEC_FOLDERS)
    return forked(AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs))


def take_kernel(name: str) -> AsyncKernelManager:
    """Take the kernel that has waited longest, once it has imported; if none waits, a new one.

    A new one starts with its notebook.

    Args:
        name: of the step, which the kernel is told, as it started without it.

    Raises:
        RuntimeError: it has died as it started.
    """
    if not _waiting:
        return new_kernel()
    kernel = _waiting.pop(0)
    client = kernel.client()
    client.start_channels()
    try:
        run_sync(client.wait_for_ready)(timeout=START_TIMEOUT)
        client.execute(f"__import__('os').environ[{STEP!r}] = {name!r}", silent=True)
    except RuntimeError:
        end_kernel(kernel)
        raise
    finally:
        client.stop_channels()
    return kernel


def end_kernel(kernel: AsyncKernelManager) -> None:
    """Kill a kernel, if it has started."""
    if kernel.has_kernel:
        run_sync(kernel.shutdown_kernel)(now=True)


def end_of(kernel: AsyncKernelManager) -> str:
    """Say how a kernel that nobody ended has ended: "signal 9 (SIGKILL)", or "exit status 1"."""
    process = getattr(kernel.provisioner, "process", None)  # a Popen
    status = process.poll() if process else None
    if status is None:
        return "it answers no more"
    if status >= 0:
        return f"exit status {status}"
    known = {int(number): f" ({number.name})" for number in Signals}
    return f"signal {-status}{known.get(-status, '')}"


def end_kernels() -> None:
    """Kill the kernels that wait."""
    while _waiting:
        end_kernel(_waiting.pop())


def import_code(source: Path) -> str:
    """Return the code of a notebook's cells before its parameters."""
    cells = [cell for cell in read_json(source)["cells"] if cell["cell_type"] == "code"]
    before = itertools.takewhile(
        lambda cell: "parameters" not in cell["metadata"].get("tags", ()), cells
    )
    return "\n".join("".join(cell["source"]) for cell in before)
