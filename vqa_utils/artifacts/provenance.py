"""Where a result comes from: packages, Python, machine and commit."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

from vqa_utils.artifacts.paths import ROOT

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "bitsandbytes", "qwen-vl-utils",
    "papermill", "jupytext", "pandas", "scikit-learn",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Where a result comes from: package versions, Python, machine and the git commit (None outside a checkout)."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_changed": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": versions,
    }


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    found = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()
