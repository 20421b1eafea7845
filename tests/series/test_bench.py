"""The benchmarks run; what they measure is recorded in tests/bench/README.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.easy_vqa import known_test_answers
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.presets import preset


def test_the_speed_benchmark_runs_every_variant_at_a_tiny_size(tmp_path):
    command = [
        sys.executable,
        "tests/bench/speed.py",
        "--tiny",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "speed.json"),
    ]
    command += ["--cases", "usual", "stock:1,16,128", "peer", "ours:1,4,16,32,128"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    _, *cases = json.loads((tmp_path / "speed.json").read_text())
    assert {case["variant"] for case in cases} == {"usual", "stock", "ours"} and len(cases) == 9
    for case in cases:
        measured = {mode for mode in ("train", "score") if case.get(mode, {}).get("wall_s")}
        assert measured == {32: {"train"}, 128: {"score"}}.get(case["rows"], {"train", "score"})
    assert "peer: left out: " in found.stdout


def test_the_demos_test_answers_judge_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests/bench")
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    from demo_answers import scores_of

    known = known_test_answers()
    assert len(known) == 300 and known["answer"].value_counts().between(60, 90).all()
    for run_id, wrong in (("good", 3), ("worse", 30)):
        letters = known["answer"].where(
            known.index >= wrong, known["answer"].map(dict(zip("abcd", "bcda", strict=True)))
        )
        probs = pd.DataFrame(
            [[0.85 if letter == given else 0.05 for letter in "abcd"] for given in letters],
            columns=list("abcd"),
        )
        write_probabilities(
            RunPaths(run_id).ensemble / "probs_test.csv", probs.assign(id=known["id"])[::-1]
        )
    table = scores_of(["good", "worse"])
    assert table["accuracy"].tolist() == [0.99, 0.9] and table["mcnemar_p"].tolist() == [
        1.0,
        pytest.approx(2 / 2**27),
    ]


def test_every_question_of_the_demo_has_two_paraphrases(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests/bench")
    from demo_paraphrases import write_paraphrases

    written = pd.read_csv(write_paraphrases(tmp_path))
    questions = pd.read_csv(tmp_path / "train.csv").set_index("id")["question"]
    assert len(written) == 1800 and (written.groupby("id")["question"].nunique() == 2).all()
    own = written["id"].map(questions)
    assert (written["question"] != own).all()
    words = r"\b(black|blue|brown|gray|green|red|teal|yellow|circle|rectangle|triangle)\b"
    pd.testing.assert_series_equal(
        written["question"].str.findall(words), own.str.findall(words), check_names=False
    )
    negation = r"\b(?:no|not|missing)\b"
    asked, said = (text.str.contains(negation) for text in (own, written["question"]))
    assert (asked == said).all()
    config = preset("demo", data=str(tmp_path), paraphrase=True)
    assert load_challenge(config).train["paraphrases"].map(len).eq(2).all()


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests/bench")
    return pytest.importorskip("peer")


def test_the_peer_is_left_out_where_it_is_not_installed(peer, monkeypatch):
    monkeypatch.setitem(sys.modules, "experts4bit_qlora", None)
    assert peer.missing().startswith("not installed")


def compare_with_the_peer():
    import peer

    torch.manual_seed(0)
    stack = nn.Module()
    stack.num_experts, stack.act_fn = 8, nn.functional.silu
    dense = {
        "gate_up_proj": torch.randn(8, 128, 128) / 10,
        "down_proj": torch.randn(8, 128, 64) / 10,
    }
    for name, weight in dense.items():
        stack.register_parameter(name, nn.Parameter(weight.to("meta")))
    experts = NF4Experts(stack, torch.float32, double_quant=True)
    for name, weight in dense.items():
        for prefix, tensor in experts.quantize(weight).items():
            setattr(
                experts,
                prefix + name,
                tensor if prefix else nn.Parameter(tensor, requires_grad=False),
            )
    x, (weights, index) = torch.randn(20, 128), torch.rand(20, 8).topk(3)
    found = {}
    for forward in (NF4Experts.forward, peer.experts):
        inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        y = forward(experts, inputs[0], index, inputs[1])
        with torch.inference_mode():
            assert torch.equal(forward(experts, x, index, weights), y)
        found[forward] = [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]
    for ours, peers in zip(*found.values(), strict=True):
        assert (
            ours.dtype == peers.dtype
            and torch.cosine_similarity(ours.flatten(), peers.flatten(), dim=0) > 0.9999
        )


def test_the_peer_computes_what_ours_does_from_the_same_packed_weights():
    """By its kernels in Triton's interpreter, which has to be asked for first and cuts bf16 off: hence directions are compared."""
    found = pytest.importorskip("experts4bit_qlora")
    path = [
        str(ROOT),
        str(ROOT / "tests"),
        str(ROOT / "tests/bench"),
        str(Path(found.__file__).parents[1]),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "TRITON_INTERPRET": "1",
        "GNF4_TRAIN_GEMM": "decoded",
    }
    command = [sys.executable, "-c", "import test_bench; test_bench.compare_with_the_peer()"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_stages_benchmark_measures_notebooks_without_torch(tmp_path):
    command = [
        sys.executable,
        "tests/bench/stages.py",
        "--rows",
        "60",
        "--stages",
        "02_folds",
        "05_ensemble",
        "--out",
        str(tmp_path / "stages.json"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    cases = json.loads((tmp_path / "stages.json").read_text())
    assert [case["stage"] for case in cases] == ["02_folds", "05_ensemble"]
    assert all(
        case["rows"] == 60 and case["seconds"] > 0 and 50 < case["peak_mib"] < 1000
        for case in cases
    )
