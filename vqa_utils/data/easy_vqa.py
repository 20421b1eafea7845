"""easy-VQA (the PyPI package, MIT licence) as a four-choice challenge of the usual files."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import write_csv, write_json

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
# Each kind's answers, and wrong options from outside them where there are fewer than four
KINDS = {
    "yes/no": (("yes", "no"), ("maybe", "unknown")),
    "shape": (SHAPES, ("star", "line")),
    "colour": (COLOURS, ()),
}
SEED = 7
ROWS = {"train": 900, "test": 300}


def write_challenge(folder: Path) -> Path:
    """Write train.csv, test.csv, sample_submission.csv and the images into `folder`, and return it.

    Does nothing where they are already there. The kinds of question are sampled evenly, and yes and no evenly within
    each form of question, so that a reader of the questions alone gets 0.5, 0.33 and 0.25 of them right. Two rows
    share an image on average; each row has a file of its own, as in the challenge.
    """
    marker = folder / "source.json"
    if marker.exists():
        return folder
    for split in ROWS:
        frame = _with_images(folder, *_rows(split))
        write_csv(
            folder / f"{split}.csv", frame if split == "train" else frame.drop(columns="answer")
        )
        if split == "test":
            write_csv(folder / "sample_submission.csv", frame[["id"]].assign(answer="a"))
    write_json(marker, {"source": "easy-vqa 1.0 (PyPI, MIT)", "seed": SEED, "rows": ROWS})
    return folder


def write_extra(folder: Path, count: int = ROWS["train"]) -> Path:
    """More of easy-VQA's training questions for `--extra-train`: write extra.csv and its images, and return the file.

    They are drawn anew from all, so that some show or ask what the demo's own rows do.
    """
    write_csv(folder / "extra.csv", _with_images(folder, *_rows("extra", count)))
    return folder / "extra.csv"


def known_test_answers() -> pd.DataFrame:
    """`id` and `answer` of the test rows, which test.csv keeps to itself: easy-VQA has them."""
    return _rows("test")[0][["id", "answer"]]


def _rows(split: str, count: int | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A split's rows with their answers, and each one's image in the package."""
    import easy_vqa

    train = easy_vqa.get_train_questions, easy_vqa.get_train_image_paths
    source = {
        "train": train,
        "extra": train,
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    questions, image_paths = (read() for read in source[split])
    rng = random.Random(f"{SEED} {split}")
    picked = _pick(list(zip(*questions, strict=True)), count or ROWS[split], rng)
    rows = [_row(f"{split}_{i + 1:04d}", *question, rng) for i, question in enumerate(picked)]
    return pd.DataFrame(rows), [image_paths[image_id] for _, _, image_id in picked]


def _with_images(folder: Path, frame: pd.DataFrame, images: Sequence[str]) -> pd.DataFrame:
    """The rows, with their images copied to where their paths say."""
    for path, image in zip(frame["path"], images, strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, folder / path)
    return frame


def _pick(
    questions: list[tuple[str, str, int]], count: int, rng: random.Random
) -> list[tuple[str, str, int]]:
    """`count` questions about half as many images: a third of each kind, half of the yes/no ones answered yes."""
    images = set(rng.sample(sorted({image for _, _, image in questions}), count // 2))
    cells: dict[tuple[str, ...], list] = {}
    for question in rng.sample(questions, len(questions)):
        text, answer, image = question
        if image in images:
            kind = _kind(answer)
            cells.setdefault(
                (kind, _form(text), answer) if kind == "yes/no" else (kind,), []
            ).append(question)
    yes_no = [cell for cell in cells if cell[0] == "yes/no"]
    share = {cell: count // 3 // len(yes_no) for cell in yes_no} | {
        ("shape",): count // 3,
        ("colour",): count // 3,
    }
    share[("shape",)] += count - sum(share.values())  # what the division left
    picked = [question for cell, number in share.items() for question in cells[cell][:number]]
    return rng.sample(picked, len(picked))


def _form(text: str) -> str:
    """Asks for a shape or a colour, and whether it is there or not: what the answer yes must not follow from."""
    asks_for = "shape" if any(shape in text for shape in SHAPES) else "colour"
    return f"{asks_for} {'not' if ' not ' in text or ' no ' in text else 'is'}"


def _kind(answer: str) -> str:
    return next(kind for kind, (answers, _) in KINDS.items() if answer in answers)


def _row(
    row_id: str, question: str, answer: str, image_id: int, rng: random.Random
) -> dict[str, str]:
    answers, fill = KINDS[_kind(answer)]
    wrong = _sample([option for option in answers if option != answer], 3, rng)
    options = [answer, *wrong, *_sample(fill, 3 - len(wrong), rng)]
    rng.shuffle(options)
    letters = dict(zip("abcd", options, strict=True))
    path = f"{row_id.split('_')[0]}/{row_id}.png"
    return {
        "id": row_id,
        "path": path,
        "question": question,
        **letters,
        "answer": "abcd"[options.index(answer)],
    }


def _sample(options: Sequence[str], count: int, rng: random.Random) -> list[str]:
    return rng.sample(options, min(count, len(options)))
