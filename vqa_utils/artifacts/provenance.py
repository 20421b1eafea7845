"""Record the origin of a result: packages, Python, machine and commit."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

from vqa_utils.artifacts.paths import ROOT

# those that can change a result
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "qwen-vl-utils",
    "papermill",
    "jupytext",
    "pandas",
    "scikit-learn",
)


def provenance() -> dict[str, Any]:
    """Describe the code and the machine: git commit (None outside a checkout), Python, packages."""
    return {
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_changed": bool(_git("status", "--porcelain")),  # untracked files count too
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """The output of a git command; "" without git or outside a checkout."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(ROOT), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()
