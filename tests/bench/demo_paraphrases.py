"""The demo's challenge with two paraphrases of each training question, to measure `paraphrase`.

    python tests/bench/demo_paraphrases.py FOLDER
    python run_all.py --preset demo --data FOLDER --set paraphrase=true

easy-VQA asks in 24 patterns; each has two wordings here, written by hand.
"""

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vqa_utils.artifacts.files import write_csv
from vqa_utils.data.known.easy_vqa import write_challenge

THING = r"(\w+(?: shape)?)"
RULES = {
    r"what shape does the image contain": (
        "which shape is in the picture",
        "what shape can be seen",
    ),
    r"what shape is in the image": (
        "which shape does the picture show",
        "what shape can be seen in the image",
    ),
    r"what shape is present": ("which shape is there", "what shape can be seen"),
    r"what color is the (\w+)": (r"which color does the \1 have", r"the \1 has what color"),
    r"what is the color of the (\w+)": (r"which color is the \1", r"what color does the \1 have"),
    r"what is the (\w+) shape": (r"which shape is \1", r"what shape has the color \1"),
    rf"is a {THING} present": (r"can a \1 be seen", r"is a \1 in the picture"),
    rf"is no {THING} present": (r"is a \1 missing", r"can no \1 be seen"),
    rf"is there a {THING}": (r"can a \1 be seen", r"is a \1 present"),
    rf"is there not a {THING}": (r"is a \1 missing", r"is there no \1 to be seen"),
    rf"is there a {THING} in the image": (
        r"does the picture show a \1",
        r"can a \1 be seen in the image",
    ),
    rf"is there not a {THING} in the image": (
        r"is a \1 missing in the image",
        r"does the picture show no \1",
    ),
    rf"does the image contain a {THING}": (r"does the image show a \1", r"is a \1 in the image"),
    rf"does the image not contain a {THING}": (
        r"does the image show no \1",
        r"is a \1 missing in the image",
    ),
}


def paraphrased(question: str) -> list[str]:
    """Put the question in two other wordings.

    Raises:
        ValueError: no rule has its pattern.
    """
    for pattern, versions in RULES.items():
        found = re.fullmatch(rf"{pattern}\?", question)
        if found:
            return [f"{found.expand(version)}?" for version in versions]
    raise ValueError(f"expected a question of easy-VQA, found {question!r}")


def write_paraphrases(folder: Path) -> Path:
    """Write the demo's challenge and its paraphrases.csv, and return the file."""
    train_csv = write_challenge(folder) / "train.csv"
    train = pd.read_csv(train_csv, dtype=str, keep_default_na=False)
    questions = train["question"].map(paraphrased)  # two a row
    rows = train.assign(question=questions).explode("question", ignore_index=True)
    file = folder / "paraphrases.csv"
    write_csv(file, rows[["id", "question"]])
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    print(write_paraphrases(parser.parse_args().folder))
