"""Sample the GPUs while the cases of two_gpus.py are measured."""

import subprocess
import threading
import time
from pathlib import Path


class Sampler(threading.Thread):
    """Samples the GPUs' use, in percent, and memory, in MiB, while all folds of a case are at it."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder = folder
        self.samples: dict[str, list[list[float]]] = {}  # by case: use and memory of each GPU

    def run(self) -> None:
        """Sample until the process ends."""
        query = "--query-gpu=utilization.gpu,memory.used"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        while True:
            time.sleep(0.1)
            warm = {path.name.split(" warm")[0] for path in self.folder.glob("* warm *")}
            done = {path.name.split(" done")[0] for path in self.folder.glob("* done *")}
            for case in warm - done:
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                numbers = [float(part) for part in answer.stdout.replace(",", " ").split()]
                self.samples.setdefault(case, []).append(numbers)

    def of(self, case: str, gpus: int) -> dict[str, list[float]]:
        """Return the mean use and the highest memory of each GPU."""
        columns = list(zip(*self.samples.get(case, [[0.0, 0.0] * gpus]), strict=True))
        use = [sum(column) / len(column) for column in columns[0 : 2 * gpus : 2]]
        memory = [max(column) / 1024 for column in columns[1 : 2 * gpus : 2]]
        return {
            "use_percent": [round(value, 1) for value in use],
            "used_gib": [round(value, 2) for value in memory],
        }
