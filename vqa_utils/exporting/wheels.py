"""Download what an installation without network needs, without torch."""

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.version import Version

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.errors import RunError

REQUIREMENTS = ROOT / "requirements.txt"
LAST_LINES = 5  # of pip
OF_THE_IMAGE = ("torch", "torchvision")  # gigabytes with CUDA, and those there fit the driver
GLIBC = 35  # of Ubuntu 22.04, which Kaggle's and Colab's images build on
OLDEST_GLIBC = 17
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, OLDEST_GLIBC - 1, -1)),
    *(f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")),
    "linux_x86_64",
]


def download_wheels(folder: Path, python: str) -> None:
    """Download the packages of requirements.txt with all that they need, for another machine.

    A stub stands for each package that is the image's own, so that nothing of it is downloaded.

    Args:
        folder: takes the wheels.
        python: the version there, such as "3.12".

    Raises:
        RunError: pip's last lines.
    """
    with tempfile.TemporaryDirectory() as name:
        stubs = Path(name)
        pins = [_write_stub(stubs, package) for package in OF_THE_IMAGE]
        constraints = stubs / "constraints.txt"
        constraints.write_text("\n".join(pins))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
        command += ["--only-binary=:all:", "--python-version", python]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        command += ["--find-links", str(stubs), "--constraint", str(constraints)]
        command += ["--requirement", str(REQUIREMENTS)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            last = "\n".join(found.stderr.strip().splitlines()[-LAST_LINES:])
            raise RunError(f"pip download for Python {python} failed:\n{last}")
        for stub in stubs.glob("*.whl"):
            (folder / stub.name).unlink()  # pip copies it too


def _write_stub(folder: Path, package: str) -> str:
    """Write a wheel without contents in place of a package, as new as the installed one.

    Returns:
        Its requirement, which no other wheel satisfies.
    """
    version = f"{Version(importlib.metadata.version(package)).public}+image"
    about = f"{package}-{version}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(f"{about}/{name}", text)
    return f"{package}=={version}"
