"""Write easy-VQA (the PyPI package, MIT licence) as a four-choice challenge of the usual files."""

import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.prompts import LETTERS

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO, SHAPE, COLOUR = "yes/no", "shape", "colour"
ANSWERS = {YES_NO: ("yes", "no"), SHAPE: SHAPES, COLOUR: COLOURS}
FILLERS = {  # wrong options from outside a kind's answers, if those are fewer than four
    YES_NO: ("maybe", "unknown"),
    SHAPE: ("star", "line"),
    COLOUR: (),
}
SEED = 7
ROWS = {"train": 900, "test": 300}


class Question(NamedTuple):
    """A question of the package."""

    text: str
    answer: str
    image: int
    """The image's number in the package."""


class Sample(NamedTuple):
    """Some of the package's questions as rows of a challenge."""

    rows: pd.DataFrame
    """The columns of train.csv."""
    images: list[str]
    """The file of each row's image in the package."""


def write_challenge(folder: Path) -> Path:
    """Write train.csv, test.csv, sample_submission.csv and the images, unless they are there.

    The kinds of question are sampled evenly, and yes and no evenly within each form of question:
    a reader of the questions alone gets 0.5, 0.33 and 0.25 of them right. Two rows share an image
    on average; each row has a file of its own, as in the challenge.

    Returns:
        The folder.
    """
    marker = folder / "source.json"  # written last
    if marker.exists():
        return folder
    train = sample_rows("train", ROWS["train"])
    test = sample_rows("test", ROWS["test"])
    copy_images(train, folder)
    copy_images(test, folder)
    write_csv(folder / "train.csv", train.rows)
    write_csv(folder / "test.csv", test.rows.drop(columns="answer"))
    write_csv(folder / "sample_submission.csv", test.rows[["id"]].assign(answer="a"))
    write_json(marker, {"source": "easy-vqa 1.0 (PyPI, MIT)", "seed": SEED, "rows": ROWS})
    return folder


def all_questions() -> list[str]:
    """Every question of the package, of its training and test split."""
    import easy_vqa

    return [*easy_vqa.get_train_questions()[0], *easy_vqa.get_test_questions()[0]]


def sample_rows(split: str, count: int) -> Sample:
    """Draw `count` rows from the package's test split, or from its training split by any name.

    Args:
        split: begins the rows' ids, and seeds the draw.
        count: divisible by three, for as many questions of each kind.
    """
    import easy_vqa

    if split == "test":
        columns, files = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    else:
        columns, files = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    questions = [Question(*values) for values in zip(*columns, strict=True)]
    # Seeded by the text's SHA-512, not by its hash(), which differs between processes
    rng = random.Random(f"{SEED} {split}")
    picked = _pick(questions, count, rng)
    rows = []
    for number, question in enumerate(picked, 1):
        row_id = f"{split}_{number:04d}"
        path = f"{split}/{row_id}.png"
        rows.append({"id": row_id, "path": path, **_question_columns(question, rng)})
    return Sample(pd.DataFrame(rows), [files[question.image] for question in picked])


def _pick(questions: list[Question], count: int, rng: random.Random) -> list[Question]:
    """Draw questions about half as many images: a third of each kind, half of yes/no ones yes."""
    all_images = sorted({question.image for question in questions})
    images = set(rng.sample(all_images, count // 2))
    cells: dict[tuple[str, ...], list[Question]] = {}  # questions that can stand for each other
    for question in rng.sample(questions, len(questions)):
        if question.image in images:
            cells.setdefault(_cell(question), []).append(question)
    yes_no_cells = [cell for cell in cells if cell[0] == YES_NO]
    share = dict.fromkeys(yes_no_cells, count // 3 // len(yes_no_cells))
    share[(SHAPE,)] = count // 3
    share[(COLOUR,)] = count // 3
    share[(SHAPE,)] += count - sum(share.values())  # the rest of the divisions
    picked = []
    for cell, number in share.items():
        picked += cells[cell][:number]
    return rng.sample(picked, len(picked))


def _cell(question: Question) -> tuple[str, ...]:
    """The kind of a question; of a yes/no one its form and answer too."""
    kind = _kind(question.answer)
    if kind == YES_NO:
        return kind, _form(question.text), question.answer
    return (kind,)


def _form(text: str) -> str:
    """A yes/no question's form, which must not give its answer away: "shape is", "colour not"."""
    asks_for_shape = any(shape in text for shape in SHAPES)
    is_negated = " not " in text or " no " in text
    return f"{SHAPE if asks_for_shape else COLOUR} {'not' if is_negated else 'is'}"


def _kind(answer: str) -> str:
    return next(kind for kind, answers in ANSWERS.items() if answer in answers)


def _question_columns(question: Question, rng: random.Random) -> dict[str, str]:
    """`question`, four options in random order as `a` to `d`, and the letter of the `answer`."""
    kind = _kind(question.answer)
    others = [option for option in ANSWERS[kind] if option != question.answer]
    wrong = rng.sample(others, min(3, len(others)))
    missing = 3 - len(wrong)  # yes/no 2, shape 1, colour 0
    wrong += rng.sample(FILLERS[kind], missing)
    options = [question.answer, *wrong]
    rng.shuffle(options)
    letters = dict(zip(LETTERS, options, strict=True))
    answer = LETTERS[options.index(question.answer)]
    return {"question": question.text, **letters, "answer": answer}


def copy_images(sample: Sample, folder: Path) -> None:
    """Copy each row's image to its path."""
    for path, image in zip(sample.rows["path"], sample.images, strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, folder / path)
