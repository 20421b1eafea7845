import pandas as pd
import pytest

from vqa_utils.analysis.clusters import question_clusters


def test_clusters_are_named_by_the_words_that_set_them_apart():
    cat, street = "what is the colour of the cat?", "how many people are in the street?"
    texts = pd.Series([cat] * 60 + [street] * 60, index=range(5, 125))
    clusters = question_clusters(texts, seed=0)
    assert clusters.index.equals(texts.index) and clusters.nunique() == 2
    first, second = clusters.iloc[0].split(), clusters.iloc[-1].split()
    assert set(first) <= {"what", "is", "colour", "of", "cat"}
    assert set(second) <= {"how", "many", "people", "are", "in", "street"}
    assert clusters.equals(question_clusters(texts, seed=0))


@pytest.mark.parametrize(
    "texts", [["?"] * 200, ["같은 질문"] * 200, ["?", "!"], ["a"], ["a cat?", "Cat: a!"] * 100]
)
def test_questions_that_are_all_the_same_or_say_nothing_are_one_cluster(texts, recwarn):
    clusters = question_clusters(pd.Series(texts), seed=0)
    assert clusters.nunique() == 1 and clusters.iloc[0]
    assert not recwarn.list  # k-means warns of fewer different points than clusters
