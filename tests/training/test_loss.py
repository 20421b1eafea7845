"""The loss on the answer's letter, and the scores of held-out rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from vqa_utils.model.encoder import IGNORED
from vqa_utils.training._loss import answer_loss, held_out_scores, letter_logits


def test_the_loss_is_the_mean_over_the_answers_of_all_micro_batches():
    torch.manual_seed(0)
    logits = torch.randn(6, 3, 11)  # [B, K, V]
    labels = torch.full((6, 9), IGNORED)  # [B, L]
    labels[:, -2] = torch.randint(11, (6,))  # predicted by the first of the three kept places
    whole = torch.nn.functional.cross_entropy(logits[:, 0], labels[:, -2])
    parts = []
    for rows in (slice(0, 1), slice(1, 6)):
        parts.append(answer_loss(SimpleNamespace(logits=logits[rows]), labels[rows], 6))
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(answer_loss(SimpleNamespace(logits=logits), labels), whole)


def test_letters_are_read_at_the_first_kept_place_whatever_comes_behind_the_logits():
    logits = torch.arange(2 * 3 * 5).view(2, 3, 5)  # [B, K, V]
    expected = [[1, 2, 3, 4], [16, 17, 18, 19]]
    assert letter_logits(logits, [1, 2, 3, 4]).tolist() == expected
    assert letter_logits((logits, "another output"), [1, 2, 3, 4]).tolist() == expected


def test_held_out_scores_of_known_logits():
    labels = np.full((2, 5), IGNORED)
    labels[:, 2] = [21, 20]  # the letters b and a
    logits = np.log(np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    scores = held_out_scores(EvalPrediction(logits, labels), [20, 21, 22, 23])
    assert scores == {"accuracy": 0.5, "log_loss": pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)}
