"""Probabilities of known overconfidence."""

import numpy as np
import pandas as pd
from scipy.special import softmax

LETTERS = list("abcd")


def drawn(rows, temperature, seed=0):
    """Probabilities, and answers drawn from them after scaling by `temperature`."""
    rng = np.random.default_rng(seed)
    true = softmax(rng.normal(scale=2, size=(rows, 4)), axis=1)
    answers = pd.Series([LETTERS[rng.choice(4, p=p)] for p in true])
    probs = pd.DataFrame(softmax(np.log(true) * temperature, axis=1), columns=LETTERS)
    return probs.assign(id=[f"r{i}" for i in range(rows)], fold=np.arange(rows) % 2), answers
