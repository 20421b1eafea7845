"""Runs over the same rows: checked against each other, aligned, and blended by the executed notebook."""

import dataclasses
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import write_korean_challenge
from scipy.special import softmax

from vqa_utils.artifacts.files import read_json, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.config import to_dict
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.ensembling.ensemble import of_runs
from vqa_utils.ensembling.other_runs import read_runs
from vqa_utils.errors import RunError
from vqa_utils.experiments.blends import blend_runs
from vqa_utils.presets import preset


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    """Writes what a finished run leaves for a blend; `sure` is how sharply it tells the right letter from the others."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    plain = preset("demo", data=str(write_korean_challenge(tmp_path / "data", train=24, test=8)))
    train, test = (
        pd.read_csv(tmp_path / "data" / f"{name}.csv", dtype=str) for name in ("train", "test")
    )

    def write(name, sure=1.0, seed=0, oof_ids=train["id"], data=None, data_folder=None, **changes):
        paths, rng, config = (
            RunPaths(name),
            np.random.default_rng(seed),
            dataclasses.replace(plain, data=str(data_folder or plain.data), **changes),
        )
        write_json(paths.config, to_dict(config))
        write_json(
            paths.stages / "05_ensemble.json",
            {
                "config": config.hash_for("05_ensemble"),
                "data": data or data_hash(config),
                "inputs": {},
                "outputs": {},
            },
        )
        write_csv(
            paths.folds,
            pd.DataFrame({"id": train["id"], "group": train["path"], "fold": np.arange(24) % 3}),
        )
        right = train.set_index("id")["answer"].loc[oof_ids].map("abcd".index).to_numpy()
        for rows, ids in (("oof", oof_ids), ("test", test["id"])):
            logits = rng.normal(size=(len(ids), 4))
            if rows == "oof":
                logits[np.arange(len(ids)), right] += sure
            values = pd.DataFrame(softmax(logits, axis=1), columns=list("abcd"))
            write_probabilities(paths.ensemble / f"probs_{rows}.csv", values.assign(id=list(ids)))
        for (
            fold
        ) in config.adapter_numbers:  # that the blend reads nothing of, but for its being there
            write_probabilities(paths.fold(fold).probs("test"), values.assign(id=list(ids)))
        return paths

    write.train_ids = train["id"]
    return write


def test_rows_are_aligned_by_their_ids(write_run):
    write_run("one")
    write_run("two", seed=1, oof_ids=write_run.train_ids[::-1])
    runs = read_runs(["one", "two"])
    assert (
        list(runs.oof["one"]["id"])
        == list(runs.oof["two"]["id"])
        == list(runs.groups["id"])
        == list(write_run.train_ids)
    )
    written = read_probabilities(RunPaths("two").ensemble / "probs_oof.csv", write_run.train_ids)
    pd.testing.assert_frame_equal(runs.oof["two"][list("abcd")], written[list("abcd")])
    assert runs.groups["group"].iloc[3] == "images/train_0003.png"


def test_all_that_keeps_runs_apart_is_said_at_once(write_run):
    write_run("one")
    write_run("other", data="123")
    write_run("fewer", oof_ids=write_run.train_ids[2:])
    bad = write_run("bad").ensemble / "probs_test.csv"
    bad.write_text("id,a,b,c,d\nx,1,1,0,0\n")
    with pytest.raises(RunError) as error:
        read_runs(["one", "other", "fewer", "absent", "bad", "one"])
    for said in ("one: expected each run once", "runs/absent: expected a run that has its answers", "bad/ensemble/probs_test.csv: ",
                 "runs/other: expected the data that it has seen in",
                 "fewer: expected the 24 oof rows of one, found 22: lacks 2 (such as ['train_0000', 'train_0001']), has 0"):  # fmt: skip
        assert said in str(error.value)


def test_data_that_changed_since_is_refused(write_run, tmp_path):
    write_run("one")
    write_run("two")
    file = tmp_path / "data" / "train.csv"
    file.write_text(file.read_text().replace("빨간색", "자주색"))
    with pytest.raises(RunError) as error:
        read_runs(["one", "two"])
    assert str(error.value).count("expected the data that it has seen in") == 2


def test_runs_that_were_trained_on_more_rows_or_elsewhere_are_members_too(write_run, tmp_path):
    write_run("one")
    extra = pd.read_csv(tmp_path / "data" / "train.csv", dtype=str).head(2)
    write_csv(tmp_path / "extra.csv", extra.assign(id=["x1", "x2"]))
    write_run("more", seed=1, extra_train=str(tmp_path / "extra.csv"))
    copied = shutil.copytree(tmp_path / "data", tmp_path / "copied")
    write_run("copied", seed=2, data_folder=copied)
    assert list(read_runs(["one", "more", "copied"]).oof) == ["one", "more", "copied"]
    (copied / "train.csv").write_text(
        (copied / "train.csv").read_text().replace("빨간색", "자주색")
    )
    write_run("changed", seed=2, data_folder=copied)
    with pytest.raises(
        RunError,
        match=r"(?s)runs/copied: expected the data.*\n  - changed: expected train.csv as of one, found other",
    ):
        read_runs(["one", "more", "copied", "changed"])


def test_a_run_that_was_changed_after_its_answers_is_refused(write_run):
    write_run("one")
    paths = write_run("two")
    write_json(paths.config, read_json(paths.config) | {"lora_r": 4})
    paths.fold(1).probs("test").unlink()
    with pytest.raises(
        RunError,
        match="runs/two: not finished: its settings or files have changed since 05_ensemble; see",
    ):
        read_runs(["one", "two"])
    write_json(paths.config, read_json(RunPaths("one").config))
    with pytest.raises(RunError, match="runs/two: not finished: without scores: fold 1"):
        read_runs(["one", "two"])


def test_other_test_rows_are_refused_and_limited_runs_are_blended(write_run, tmp_path):
    copied = shutil.copytree(tmp_path / "data", tmp_path / "copied")
    (copied / "test.csv").write_text((copied / "test.csv").read_text().replace("빨간색", "자주색"))
    write_run("one")
    write_run("two", data_folder=copied)
    with pytest.raises(RunError, match=r"two: expected test.csv as of one, found other contents"):
        read_runs(["one", "two"])
    for name, seed in (("first", 0), ("second", 1)):
        write_run(name, seed=seed, limit=20, oof_ids=write_run.train_ids[:20])
    assert len(read_runs(["first", "second"]).groups) == 20


def test_a_run_with_a_refit_is_named(write_run):
    write_run("folds")
    write_run("all", seed=1, refit=True)
    assert of_runs("blend", "folds,all").who.endswith(
        "with a refit for the test rows, which no score judges: all"
    )
    write_run("other", seed=2)
    assert of_runs("blend", "folds,other").who.endswith("which no score judges: none")


def test_one_run_is_no_blend(write_run):
    write_run("one")
    with pytest.raises(RunError, match="expected at least two runs, found 1"):
        read_runs(["one"])


def test_a_good_run_outweighs_a_useless_one(write_run):
    write_run("good", sure=6.0)
    write_run("useless", sure=0.0, seed=1)
    blend = of_runs("blend", "good,useless")
    record = blend.record
    assert record["weights_are_fitted"] and record["p"] < 0.05 and record["weights"]["good"] > 0.9
    test = sum(
        blend.members[name][list("abcd")] * weight for name, weight in record["weights"].items()
    )
    pd.testing.assert_frame_equal(blend.test[list("abcd")], test)
    assert (
        list(blend.scores["member"]) == ["good", "useless", "blend"]
        and record["best_member"] == "good"
    )
    different = (blend.compared["best member, good"][list("abcd")].idxmax(axis=1)
                 != read_runs(["good", "useless"]).oof["useless"][list("abcd")].idxmax(axis=1)).mean()  # fmt: skip
    assert f"good and useless {different:.1%}" in blend.decision


def test_the_command_blends_into_a_folder_of_its_own(write_run, console):
    write_run("one", sure=2.0)
    write_run("two", sure=2.0, seed=1)
    blend_runs(["one", "two"], "both", console)
    paths = RunPaths("both")
    found = {
        str(path.relative_to(paths.folder)) for path in paths.folder.rglob("*") if path.is_file()
    }
    assert found == {"notebooks/05_ensemble.ipynb", "ensemble/probs_oof.csv", "ensemble/probs_test.csv", "ensemble/members.json",
                     "submission_ensemble.csv"}  # fmt: skip
    assert (
        read_json(paths.members)["runs"] == ["one", "two"]
        and read_json(paths.members)["decision"] in console.file.getvalue()
    )
    members = [
        read_probabilities(RunPaths(name).ensemble / "probs_test.csv") for name in ("one", "two")
    ]
    weights = read_json(paths.members)["weights"]
    mixed = members[0][list("abcd")] * weights["one"] + members[1][list("abcd")] * weights["two"]
    assert list(pd.read_csv(paths.submission(True))["answer"]) == list(mixed.idxmax(axis=1))
    archived = nbformat.read(paths.notebooks / "05_ensemble.ipynb", 4)
    assert archived.metadata["papermill"]["parameters"] == {"run_id": "both", "members": "one,two"}
    with pytest.raises(RunError, match="runs/both is there already"):
        blend_runs(["one", "two"], "both", console)
    with pytest.raises(RunError, match="--run-id: expected letters"):
        blend_runs(["one", "two"], "../both", console)
