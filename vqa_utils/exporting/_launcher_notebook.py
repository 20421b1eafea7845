"""Make the launcher notebook."""

from collections.abc import Sequence

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ABOUT = {
    "en": """# {preset}, on Kaggle or Colab

Finds the code, the challenge, the model and an earlier run among what is attached, checks the
GPUs, installs what is missing, and runs the series. The answers are in `submission.csv`, all else
in `runs/`. If a session is too short, attach this notebook's output and run it again: it goes on.""",
    "ko": """# Kaggle 또는 Colab에서 {preset} 실행

추가된 입력에서 코드, 챌린지, 모델과 이전 실행을 찾고, GPU를 확인하고, 없는 패키지를 설치한 뒤 시리즈를
실행합니다. 답은 `submission.csv`에, 나머지는 모두 `runs/`에 있습니다. 세션이 모자라면 이 노트북의 출력을
추가하고 다시 실행하십시오. 이어서 진행합니다.""",
}
SETTINGS = """PRESET = {preset!r}  # "auto" takes the one with the largest model that the GPUs hold
ARGUMENTS = {arguments!r}  # more of run_all.py's, such as ["--limit", "40"]
HOURS = {hours!r}  # of the session; None sets no limit
T4 = {t4!r}  # how many are needed; 0 asks for none"""
FIND_CODE = """import sys
import zipfile
from pathlib import Path

try:  # Colab's drive keeps what is written when the machine goes
    from google.colab import drive

    drive.mount("/content/drive")
except ImportError:
    pass

PLACES = ["/kaggle/input", "/content/drive/MyDrive", "/content", "."]


def find_code():
    for depth in range(5):
        for place in map(Path, PLACES):
            for file in place.glob("*/" * depth + "run_all.py"):
                if (file.parent / "vqa_utils" / "exporting").is_dir():
                    return file.parent.resolve()


def unpack_code():
    for place in map(Path, PLACES):
        for file in place.glob("*.zip"):
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("vqa_utils/exporting/launcher.py") for name in archive.namelist()):
                    archive.extractall(f"code-of-{file.stem}")


if find_code() is None:
    unpack_code()
code = find_code()
assert code, f"expected the exported code (run_all.py, vqa_utils) below {PLACES}: attach its dataset"
sys.path.insert(0, str(code))
print("code:", code)"""
LAUNCH = """from vqa_utils.exporting.launcher import launch

submission = launch(PRESET, ARGUMENTS, HOURS, T4)"""
RESULT = """import pandas as pd

print(submission)
pd.read_csv(submission).head()"""


def launcher_notebook(
    preset: str, arguments: Sequence[str], hours: float | None, t4: int, lang: str
) -> NotebookNode:
    """Make the notebook that starts a run where it is.

    Args:
        preset, arguments, hours, t4: of `launcher.launch`.
        lang: the language of its words.
    """
    settings = SETTINGS.format(preset=preset, arguments=list(arguments), hours=hours, t4=t4)
    cells = [new_markdown_cell(ABOUT[lang].format(preset=preset))]
    cells += [new_code_cell(source) for source in (settings, FIND_CODE, LAUNCH, RESULT)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})
