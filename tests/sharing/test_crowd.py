from vqa_utils.sharing.crowd import Crowd
from vqa_utils.sharing.shared_base import ALONE, Sharing


def test_a_fold_that_ran_out_beside_one_that_has_left_keeps_its_settings():
    crowd = Crowd(Sharing([{}, {}], lambda: None))
    assert crowd.leave(2) is True
    assert crowd.leave(2) is False, "the other has gone since: the same again, alone"
    assert crowd.leave(1) is None, "now the ladder"


def test_folds_without_a_shared_base_are_no_crowd():
    crowd = Crowd(ALONE)
    assert crowd.leave(crowd.size) is None
