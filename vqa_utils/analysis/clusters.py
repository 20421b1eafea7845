"""Questions that ask for like things, found by their words."""

import re

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

MOST_CLUSTERS = 8  # a table that is read at a glance
ROWS_A_CLUSTER = 50
MOST_WORDS = 5_000
NAME_WORDS = 3


def question_clusters(questions: pd.Series, seed: int) -> pd.Series:
    """The cluster of each question, named by the words that set it apart from the others.

    TF-IDF of words and k-means; a cluster for each `ROWS_A_CLUSTER` rows, `MOST_CLUSTERS` at most. Questions that all
    have the same words are one cluster.
    """
    different = questions.map(lambda question: " ".join(sorted(_words(question)))).nunique()
    count = min(MOST_CLUSTERS, max(1, len(questions) // ROWS_A_CLUSTER), different)
    vectorizer = TfidfVectorizer(analyzer=_words, max_features=MOST_WORDS)
    vectors = vectorizer.fit_transform(questions)
    model = KMeans(count, random_state=seed, n_init=1, max_iter=50).fit(vectors)
    words, mean = vectorizer.get_feature_names_out(), np.asarray(vectors.mean(axis=0)).ravel()
    apart = model.cluster_centers_ - (mean if count > 1 else 0)
    names = [
        " ".join(words[i] for i in np.argsort(-centre, kind="stable")[:NAME_WORDS] if centre[i] > 0)
        for centre in apart
    ]
    return pd.Series(names, dtype=object).loc[model.labels_].set_axis(questions.index)


def _words(question: str) -> list[str]:
    """Words in lower case; a question of signs alone is its own word, so that no vocabulary is empty."""
    return re.findall(r"\w+", question.lower()) or [question.strip()]
