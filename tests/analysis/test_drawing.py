"""Figures of Korean data: Hangul is drawn, no legend covers data, no text is cut off."""

import inspect
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from vqa_utils.analysis import figures

ANSWERS = pd.Series(list("abcd") * 10)
ROWS = pd.DataFrame({
    "id": [f"행 {i}" for i in range(40)],
    "question": [f"이 그림에 있는 도형은 무슨 색인가요{'?' * (i % 9)}" for i in range(40)],
    "a": "빨간색", "b": "파란색", "c": "초록색", "d": "노란색", "answer": ANSWERS,
})  # fmt: skip
PROBS = pd.DataFrame(np.random.default_rng(0).dirichlet([0.5] * 4, 40), columns=list("abcd"))
SCORES = pd.DataFrame({"accuracy": [0.9, 0.5], "rows": [30, 10], "low": 0.4, "high": 0.95})
FOLDS = pd.DataFrame({"id": ROWS["id"], "fold": [i % 3 for i in range(40)]})
SIZES = pd.DataFrame({"split": ["훈련", "시험"], "width": [640, 480], "height": [480, 640]})
LOG = pd.DataFrame({"epoch": np.linspace(0, 3, 30), "loss": np.linspace(2, 0.1, 30)})
EPOCHS = pd.DataFrame({"epoch": [1.0, 2.0, 3.0], "accuracy": [0.5, 0.6, 0.7], "log_loss": 1.0})
SHARES = {"low": [-0.03, -0.01], "high": [0.02, 0.05]}
POSITIONS = pd.DataFrame({"position": ["가", "나"], "excess": [-0.01, 0.02], **SHARES})
ORDERS = pd.DataFrame(
    {"order": ["쓰인 순서", "한 칸 밀림"], "against_mean": [0.01, 0.02], **SHARES}
)
RUNS = ["20261129-142559-안전", "20261129-152559-low_memory"]
TOKENS = ["<|im_start|>", "이", " 그림", "에", "\n", "무슨", " 색", "인가요", "?", "a"]

DRAWINGS = {
    "answer_balance": lambda: figures.answer_balance(ROWS),
    "text_lengths": lambda: figures.text_lengths(ROWS, ROWS),
    "image_sizes": lambda: figures.image_sizes(SIZES),
    "fold_balance": lambda: figures.fold_balance(FOLDS, ROWS),
    "label_mask": lambda: figures.label_mask(TOKENS, [False] * 9 + [True]),
    "training_curves": lambda: figures.training_curves(LOG, EPOCHS),
    "confidences": lambda: figures.confidences({"폴드 밖": PROBS, "시험": PROBS}),
    "agreement": lambda: figures.agreement(pd.DataFrame(0.9, index=RUNS, columns=RUNS)),
    "confusion": lambda: figures.confusion(PROBS, ANSWERS),
    "accuracy_by": lambda: figures.accuracy_by(
        SCORES.assign(group=["색깔을 묻는 질문: 무슨 색인가요", "예/아니요"]), "문제 유형별 정확도"
    ),
    "position_bias": lambda: figures.position_bias(POSITIONS, ORDERS, "위치별 초과 확률"),
    "reliability_diagrams": lambda: figures.reliability_diagrams(
        {"보정 전": PROBS, "보정 후": PROBS}, ANSWERS
    ),
}


def pixels(text):
    """A text as a picture, [height, width]."""
    figure = plt.figure(figsize=(1, 1))
    figure.text(0.1, 0.1, text, fontsize=30)
    figure.canvas.draw()
    grey = np.array(figure.canvas.buffer_rgba())[..., 0]
    plt.close(figure)
    return grey


def draw(figure):
    """Draw a figure whole; a closed one has no canvas that does."""
    figure.savefig(io.BytesIO(), format="png")


def test_all_figures_are_drawn_here():
    functions = inspect.getmembers(figures, inspect.isfunction)
    own = {name for name, function in functions if function.__module__ == figures.__name__}
    assert {name for name in own if not name.startswith("_")} == set(DRAWINGS)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_syllable_is_drawn_as_itself():
    missing = "\U000f0000"  # for private use: in no font
    pictures = [pixels(text).tobytes() for text in ("가", "각", "뷁", "ㄱ", "か", missing)]
    assert len(set(pictures)) == len(pictures)


def test_latin_letters_are_those_of_matplotlibs_own_font():
    letters = pixels("Ag 0.5")
    with plt.rc_context({"font.family": "DejaVu Sans"}):
        assert (pixels("Ag 0.5") == letters).all()


@pytest.mark.filterwarnings("error")  # such as that a glyph is missing
@pytest.mark.parametrize("name", DRAWINGS)
def test_hangul_is_in_the_fonts(name):
    figure = DRAWINGS[name]()
    draw(figure)
    assert figure.axes


@pytest.mark.filterwarnings("ignore:Glyph")
def test_other_scripts_are_drawn_as_far_as_fonts_have_them():
    tokens = ["日本語", "中文", "العربية", "हिन्दी", "ไทย", "😀", "\ufffd", "\u0301", "\x00", ""]
    figure = figures.label_mask(tokens, [False] * len(tokens))
    draw(figure)
    assert len(figure.axes[0].texts) == len(tokens)


@pytest.mark.parametrize("name", DRAWINGS)
def test_legends_are_beside_the_data_and_no_text_is_cut_off(name):
    figure = DRAWINGS[name]()
    draw(figure)
    drawn = figure.get_tightbbox().padded(-0.02)  # inches; antialiasing
    assert drawn.x0 >= 0 and drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight()
    for legend in filter(None, (ax.get_legend() for ax in figure.axes)):
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes)


@pytest.mark.parametrize("name", ["text_lengths", "image_sizes", "fold_balance", "confidences"])
def test_colours_have_one_legend(name):
    assert sum(ax.get_legend() is not None for ax in DRAWINGS[name]().axes) == 1
