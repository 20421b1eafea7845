import dataclasses

from vqa_utils.training._checkpoints import last_whole_checkpoint, training_key


def test_checkpoints_of_other_settings_or_rows_are_not_resumed(config, challenge):
    train = challenge.train
    key = training_key(config, train)
    assert key == training_key(config, train.copy())
    assert key != training_key(dataclasses.replace(config, seed=1), train)
    assert key != training_key(config, train.head(3))
    assert key != training_key(config, train.assign(answer="a"))
    used_later = dataclasses.replace(config, score_batch=3, baselines=False)
    assert key == training_key(used_later, train)


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for name, whole in (("checkpoint-4", True), ("checkpoint-12", True), ("checkpoint-20", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "trainer_state.json").touch()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert not (tmp_path / "checkpoint-20").exists()


def test_a_training_without_checkpoints_starts_anew(tmp_path):
    assert last_whole_checkpoint(tmp_path / "none") is None
