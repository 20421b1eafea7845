import dataclasses

import numpy as np
import pandas as pd
import pytest
from drawn_answers import drawn

from vqa_utils.ensembling.calibration import calibrate
from vqa_utils.ensembling.temperature import scaled
from vqa_utils.metrics import log_loss

GROUPS = pd.Series([f"g{i // 3}" for i in range(3000)])


def test_each_fold_gets_its_own_temperature_and_the_rows_keep_their_order():
    probs, answers = drawn(3000, 1.0)
    sharp = probs["fold"] == 1
    probs = pd.concat([probs[~sharp], scaled(probs[sharp], 1 / 3)]).sort_index()
    found = calibrate("auto", probs, answers, GROUPS, seed=0)
    assert found.on and found.temperatures == pytest.approx({0: 1.0, 1: 3.0}, rel=0.15)
    assert found.oof["id"].tolist() == probs["id"].tolist()
    assert found.oof["fold"].tolist() == probs["fold"].tolist()
    table = found.table().set_index("fold")
    assert list(table.index) == [0, 1, "all"] and table["rows"].tolist() == [1500, 1500, 3000]
    assert table.loc["all", "log_loss_after"] < table.loc["all", "log_loss"] - 0.1
    assert table.loc[1, "calibration_error_after"] < 0.05 < table.loc[1, "calibration_error"]
    assert np.isnan(table.loc["all", "temperature"])


def test_auto_leaves_alone_what_a_fit_would_not_improve():
    probs, answers = drawn(40, 1.0, seed=3)
    found = calibrate("auto", probs, answers, GROUPS[:40], seed=0)
    assert log_loss(found.after, answers) > log_loss(found.before, answers)
    assert not found.on and found.in_use == {} and found.oof is found.before
    forced = dataclasses.replace(found, setting=True)
    assert forced.on and forced.oof is found.after and set(forced.in_use) == {0, 1}


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_the_words_give_the_setting_and_both_log_losses(setting):
    probs, answers = drawn(300, 2.5)
    found = calibrate(setting, probs, answers, GROUPS[:300], seed=0)
    said = found.describe()
    assert f"calibrate={str(setting).lower()}" in said
    assert f"is {'on' if found.on else 'off'}" in said
    for probs in (found.before, found.after):
        assert f"{log_loss(probs, answers):.3f}" in said


def test_false_is_never_on():
    probs, answers = drawn(3000, 2.5)
    assert not calibrate(False, probs, answers, GROUPS, seed=0).on


def test_a_fold_of_one_picture_stays_as_it_is():
    probs, answers = drawn(6, 2.5)
    alone = calibrate(True, probs, answers, pd.Series(["g"] * 6), seed=0)
    assert alone.temperatures == {0: 1.0, 1: 1.0}
    pd.testing.assert_frame_equal(alone.after, probs)
