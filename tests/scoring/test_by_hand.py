"""A notebook that is opened by hand shows how far its scoring is."""

import pytest

from vqa_utils.scoring.options import ScoringSettings, score_options

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("by_hand", [True, False])
def test_scoring_by_hand_shows_how_far_it_is(
    base, encoder, challenge, capsys, monkeypatch, by_hand
):
    monkeypatch.setenv("VQA_STEP", "04_infer-fold0")
    if by_hand:
        monkeypatch.delenv("VQA_STEP")
    score_options(base, encoder, challenge.test.head(4), ScoringSettings(batch_size=2))
    shown = capsys.readouterr().out.splitlines()
    assert shown == (["scored batch 1/2", "scored batch 2/2"] if by_hand else [])
