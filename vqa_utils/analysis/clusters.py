"""Cluster questions by their words."""

import re

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

MOST_CLUSTERS = 8  # a table that is read at a glance
ROWS_A_CLUSTER = 50  # enough for an accuracy to 14 points or better
MOST_WORDS = 5_000  # the most frequent ones; rarer words join no questions
NAME_WORDS = 3


def question_clusters(questions: pd.Series, seed: int) -> pd.Series:
    """Name the cluster of each question by the words that set it apart from the others.

    TF-IDF of words and k-means; a cluster for each `ROWS_A_CLUSTER` rows, `MOST_CLUSTERS` at most.
    Questions of the same words alone are one cluster.
    """
    word_sets = [" ".join(sorted(_words(question))) for question in questions]
    count = min(MOST_CLUSTERS, max(1, len(questions) // ROWS_A_CLUSTER), len(set(word_sets)))
    vectorizer = TfidfVectorizer(analyzer=_words, max_features=MOST_WORDS)
    vectors = vectorizer.fit_transform(questions)  # [N, words]
    model = KMeans(count, random_state=seed, n_init=1, max_iter=50).fit(vectors)
    centres = model.cluster_centers_  # [clusters, words]
    if count > 1:
        # A word that is frequent everywhere sets no cluster apart
        centres = centres - np.asarray(vectors.mean(axis=0))
    words = vectorizer.get_feature_names_out()
    names = np.array([_name(centre, words) for centre in centres], dtype=object)
    return pd.Series(names[model.labels_], index=questions.index)


def _name(centre: np.ndarray, words: np.ndarray) -> str:
    """The words with the largest positive weights, the largest first."""
    # Stable: equal weights go by the alphabet, as `words` does
    order = np.argsort(-centre, kind="stable")[:NAME_WORDS]
    return " ".join(words[i] for i in order if centre[i] > 0)


def _words(question: str) -> list[str]:
    """Words in lower case; a question of signs alone is its own word: no vocabulary is empty."""
    return re.findall(r"\w+", question.lower()) or [question.strip()]
