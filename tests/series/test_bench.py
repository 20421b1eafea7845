"""The benchmarks run; what they measure is recorded in tests/bench/README.md."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from more_easy_vqa import known_test_answers
from torch import nn

from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.data.challenge import load_challenge
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.presets import preset
from vqa_utils.prompts import LETTERS

pytestmark = pytest.mark.bench


def run_script(script, *options):
    """Run a benchmark in a fresh process and return what it printed."""
    found = subprocess.run(
        [sys.executable, f"tests/bench/{script}", *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_the_speed_benchmark_runs_every_variant_at_a_tiny_size(tmp_path):
    out = tmp_path / "speed.json"
    cases = ("usual", "stock:1,128", "peer", "ours:1,32,128")
    printed = run_script("speed.py", "--tiny", "--steps", 1, "--out", out, "--cases", *cases)
    assert "peer: left out: " in printed
    _, *found = json.loads(out.read_text())
    assert [(case["variant"], case["rows"]) for case in found] == [
        ("usual", 1),
        ("stock", 1),
        ("stock", 128),
        ("ours", 1),
        ("ours", 32),
        ("ours", 128),
    ]
    modes = {32: {"train"}, 128: {"score"}}  # 128 rows are too many to train on, 32 not scored
    for case in found:
        timed = {mode for mode in ("train", "score") if mode in case}
        assert timed == modes.get(case["rows"], {"train", "score"})
        assert all(case[mode]["wall_s"] > 0 for mode in timed)
    assert {"score_2", "score_4"} < found[3].keys()  # option orders, of ours alone


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["ours:32,1", "usual"], [("usual", 1), ("ours", 32), ("ours", 1)]),
        (["peer"], [("peer", 1), ("peer", 16)]),
    ],
)
def test_cases_are_timed_in_the_order_of_the_variants(named, expected):
    from speed import chosen_cases

    assert chosen_cases(named) == expected


def test_an_unknown_case_is_refused():
    from speed import chosen_cases

    with pytest.raises(SystemExit, match="theirs"):
        chosen_cases(["theirs:16"])


def test_cases_that_load_the_same_base_share_it():
    from real_shape import groups

    cases = ["safe", "single_gpu", "safe:lora_r=4", "safe:max_memory=7.5GB+7.5GB"]
    named = [[name for name, _ in of_base] for of_base in groups(cases)]
    assert named == [["safe", "safe:lora_r=4"], ["single_gpu"], ["safe:max_memory=7.5GB+7.5GB"]]


def test_the_demos_test_answers_judge_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    from demo_answers import scores_of

    known = known_test_answers()
    assert len(known) == 300
    assert known["answer"].value_counts().between(60, 90).all()
    next_letter = known["answer"].map(dict(zip("abcd", "bcda", strict=True)))
    for run_id, wrong in (("good", 3), ("worse", 30)):
        given = known["answer"].where(known.index >= wrong, next_letter)
        probs = pd.DataFrame({letter: (given == letter) * 0.8 + 0.05 for letter in LETTERS})
        reversed_rows = probs.assign(id=known["id"])[::-1]
        write_probabilities(RunPaths(run_id).ensemble / "probs_test.csv", reversed_rows)
    table = scores_of(["good", "worse"])
    assert table["accuracy"].tolist() == [0.99, 0.9]
    # McNemar's over the 27 rows on which one alone is right
    assert table["mcnemar_p"].tolist() == [1.0, pytest.approx(2 / 2**27)]


def test_every_question_of_the_demo_has_two_paraphrases(tmp_path):
    from demo_paraphrases import write_paraphrases

    written = pd.read_csv(write_paraphrases(tmp_path))
    questions = pd.read_csv(tmp_path / "train.csv").set_index("id")["question"]
    assert len(written) == 2 * len(questions)
    assert (written.groupby("id")["question"].nunique() == 2).all()
    own = written["id"].map(questions)
    assert (written["question"] != own).all()

    words = r"\b(black|blue|brown|gray|green|red|teal|yellow|circle|rectangle|triangle)\b"
    found = written["question"].str.findall(words)
    pd.testing.assert_series_equal(found, own.str.findall(words), check_names=False)
    negation = r"\b(?:no|not|missing)\b"
    assert (own.str.contains(negation) == written["question"].str.contains(negation)).all()
    config = preset("demo", data=str(tmp_path), paraphrase=True)
    assert load_challenge(config).train["paraphrases"].map(len).eq(2).all()


def test_the_peer_is_left_out_where_it_is_not_installed(monkeypatch):
    import peer

    monkeypatch.setitem(sys.modules, "experts4bit_qlora", None)
    assert peer.missing().startswith("not installed")


def compare_with_the_peer():
    """Run in a process of its own by the test below."""
    import peer

    torch.manual_seed(0)
    stack = nn.Module()
    stack.num_experts, stack.act_fn = 8, nn.functional.silu
    dense = {
        "gate_up_proj": torch.randn(8, 128, 128) / 10,  # [experts, 2 * inner, hidden]
        "down_proj": torch.randn(8, 128, 64) / 10,  # [experts, hidden, inner]
    }
    for name, weight in dense.items():
        stack.register_parameter(name, nn.Parameter(weight.to("meta")))
    experts = NF4Experts(stack, torch.float32, double_quant=True)
    for name, weight in dense.items():
        for prefix, tensor in experts.quantize(weight).items():
            packed = tensor if prefix else nn.Parameter(tensor, requires_grad=False)
            setattr(experts, prefix + name, packed)

    x = torch.randn(20, 128)  # [tokens, hidden]
    weights, index = torch.rand(20, 8).topk(3)  # [tokens, experts of each]
    results = []
    for forward in (NF4Experts.forward, peer.experts):
        x_in, weights_in = x.clone().requires_grad_(), weights.clone().requires_grad_()
        y = forward(experts, x_in, index, weights_in)
        with torch.inference_mode():
            assert torch.equal(forward(experts, x, index, weights), y)
        gradients = torch.autograd.grad(y.square().sum(), (x_in, weights_in))
        results.append([y.detach(), *gradients])
    for ours, peers in zip(*results, strict=True):
        assert ours.dtype == peers.dtype
        assert torch.cosine_similarity(ours.flatten(), peers.flatten(), dim=0) > 0.9999


def test_the_peer_computes_what_ours_does_from_the_same_packed_weights():
    """By its kernels in Triton's interpreter.

    The interpreter has to be asked for before the import, and cuts bf16 off instead of rounding:
    hence directions are compared.
    """
    found = pytest.importorskip("experts4bit_qlora")
    kernels = Path(found.__file__).parents[1]
    path = [ROOT, Path(__file__).parent, ROOT / "tests/bench", kernels]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "TRITON_INTERPRET": "1",
        "GNF4_TRAIN_GEMM": "decoded",
    }
    command = [sys.executable, "-c", "import test_bench; test_bench.compare_with_the_peer()"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_the_stages_benchmark_measures_notebooks_without_torch(tmp_path):
    out = tmp_path / "stages.json"
    stages = ["02_folds", "05_ensemble"]
    run_script("stages.py", "--rows", 60, "--stages", *stages, "--out", out)
    cases = json.loads(out.read_text())
    assert [case["stage"] for case in cases] == stages
    for case in cases:
        assert case["rows"] == 60
        assert case["seconds"] > 0
        assert 50 < case["peak_mib"] < 1000  # torch alone takes a few hundred


@pytest.mark.slow
def test_the_large_pictures_benchmark_measures_stages(tmp_path):
    out = tmp_path / "large.json"
    run_script("large_pictures.py", "--side", 700, "--stages", "01_eda", "--out", out)
    cases = json.loads(out.read_text())
    assert [case["pictures"] for case in cases] == ["small", "large", "copies-kept"]
    assert all(case["seconds"] > 0 and 0.1 < case["peak_gb"] < 1 for case in cases)


SCRIPTS = sorted((ROOT / "tests/bench").glob("*.py"))
ITS_NEIGHBOURS = {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_imports_what_there_is(script):
    """Some need GPUs, and run seldom."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        package = str(node.module).partition(".")[0]
        if package == "vqa_utils" or package in ITS_NEIGHBOURS:
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name), f"{node.module} has no {name}"
