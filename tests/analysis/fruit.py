"""Korean questions that need no image."""

import numpy as np
import pandas as pd

FRUIT = {"바나나": "노란색", "딸기": "빨간색", "포도": "보라색", "오이": "초록색"}


def fruit_rows(count):
    """Questions with an answer that follows from their fruit, at any letter."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        fruit, colours = rng.choice(list(FRUIT)), list(rng.permutation(list(FRUIT.values())))
        ending = rng.choice(["는", "의 색은", "가"])
        rows.append({
            "id": str(i),
            "path": "x.png",
            "question": f"{fruit}{ending} 무슨 색인가요?",
            **dict(zip("abcd", colours, strict=True)),
            "answer": "abcd"[colours.index(FRUIT[fruit])],
        })  # fmt: skip
    return pd.DataFrame(rows)


def folds_of(train, n_folds=3):
    return pd.DataFrame({"id": train["id"], "fold": np.arange(len(train)) % n_folds})
