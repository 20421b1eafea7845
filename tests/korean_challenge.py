"""A small challenge in Korean: colour questions over drawn scenes."""

import random

import pandas as pd
from PIL import Image

from vqa_utils.tiny_base.scenes import draw_scene

COLOURS = {"red": "빨간색", "blue": "파란색", "green": "초록색", "yellow": "노란색", "black": "검은색", "gray": "회색",
           "teal": "청록색", "brown": "갈색", "orange": "주황색", "purple": "보라색", "pink": "분홍색", "white": "흰색"}  # fmt: skip


def write_korean_challenge(folder, train=24, test=8):
    """Colour questions in Korean over drawn scenes; the letters of the answers go round."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(train + test):
        pixels, items = draw_scene(1_000_000 + i)
        split = "train" if i < train else "test"
        path = f"images/{split}_{i:04d}.png"
        Image.fromarray(pixels).save(folder / path)
        rng, answer = random.Random(i), "abcd"[i % 4]
        wrong = iter(
            rng.sample(
                [
                    word
                    for name, word in COLOURS.items()
                    if name not in {item.colour for item in items}
                ],
                3,
            )
        )
        options = {
            letter: COLOURS[items[0].colour] if letter == answer else next(wrong)
            for letter in "abcd"
        }
        rows.append({"id": f"{split}_{i:04d}", "path": path, "question": "이 그림에 있는 도형은 무슨 색인가요?", **options,
                     "answer": answer})  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.head(train).to_csv(folder / "train.csv", index=False)
    frame.tail(test).drop(columns="answer").to_csv(folder / "test.csv", index=False)
    frame.tail(test)[["id"]].assign(answer="a").to_csv(
        folder / "sample_submission.csv", index=False
    )
    return folder
