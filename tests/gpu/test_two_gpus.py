"""What only a GPU shows. `python -m pytest -m gpu` on a machine that has one."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_of, base_with_lora

from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import ROOT, FoldPaths, RunPaths
from vqa_utils.model.adapter import add_lora, load_adapter
from vqa_utils.model.fp16 import START_SCALE, grad_scaler
from vqa_utils.model.loading import load_base
from vqa_utils.planning.plan import memory_plan
from vqa_utils.presets import preset
from vqa_utils.prompts import LETTERS
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.training import _trainer
from vqa_utils.training.fold import train_fold

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ONE_GPU = ("10GB",)  # of one that is there, whatever else is
OFFLOADED = tuple(f"model.language_model.layers.{number}" for number in (0, 2, 3))


def run(tuned, batch):
    """Logits, and the gradients of all LoRA layers, in fp16."""
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    inputs = {name: value for name, value in batch.to("cuda").items() if name != "labels"}
    with torch.autocast("cuda", torch.float16):
        logits = tuned(**inputs).logits.float()
    logits.square().mean().backward()
    return logits, {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}


def test_offloaded_experts_compute_the_same(config, encoder, challenge):
    config = dataclasses.replace(config, lora_dropout=0.0, max_memory=ONE_GPU)
    batch = encoder.examples(challenge.train.head(8).to_dict("records"))
    wanted = run(base_with_lora(config).train(), batch)
    plan = memory_plan(config)
    offloading = dataclasses.replace(
        plan, gpus=(dataclasses.replace(plan.gpus[0], offloaded_layers=OFFLOADED),)
    )
    base = load_base(config, offloading)
    experts = base.model.language_model.layers[2].mlp.experts
    assert (
        all(tensor.is_pinned() for tensor in experts.host.values())
        and experts.gate_up_proj.numel() == 0
    )
    tuned = add_lora(base, config, offloading).train()
    for _ in range(3):  # a copy that came too late would show sooner or later
        tuned.zero_grad()
        found = run(tuned, batch)
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
        for name in wanted[1]:
            torch.testing.assert_close(found[1][name], wanted[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("recomputes", [True, False])
def test_a_fast_layer_computes_the_same_as_transformers_own(config, encoder, challenge, recomputes):
    config = dataclasses.replace(
        config, lora_dropout=0.0, use_gradient_checkpointing=recomputes, max_memory=ONE_GPU
    )
    batch = encoder.examples(challenge.train.head(8).to_dict("records"))
    tuned = base_with_lora(config).train()
    found = run(tuned, batch)
    for layer in tuned.get_decoder().layers:
        del layer.forward
    tuned.zero_grad()
    wanted = run(tuned, batch)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-2, atol=1e-2)
    assert found[1].keys() == wanted[1].keys() and len(found[1]) > 8
    for name in wanted[1]:
        assert (
            torch.cosine_similarity(found[1][name].flatten(), wanted[1][name].flatten(), dim=0)
            > 0.999
        )


def test_the_copy_is_the_same_model_bit_by_bit(config, encoder, challenge, tmp_path):
    config = dataclasses.replace(config, cache_dir=str(tmp_path / "kept"))
    batch = encoder.questions(challenge.test.head(4).to_dict("records")).to("cuda")
    with torch.autocast("cuda", torch.float16), torch.no_grad():
        first, again = (base_of(config)(**batch).logits for _ in range(2))
    assert torch.equal(first, again) and len(list((tmp_path / "kept").iterdir())) == 1


def test_the_trainer_scales_its_loss_with_the_scaler_that_starts_low(
    config, encoder, challenge, tmp_path, monkeypatch
):
    scaler = grad_scaler()
    monkeypatch.setattr(_trainer, "grad_scaler", lambda: scaler)
    config = dataclasses.replace(config, use_amp=True, micro_batch=2, accumulation=2)
    rows = challenge.train
    model = base_with_lora(config)
    meta = train_fold(
        model, config, encoder, rows.head(16), rows.tail(4), FoldPaths(tmp_path / "fold")
    )
    state = scaler.state_dict()
    assert meta["skipped_steps"] == 0 and state["scale"] == START_SCALE
    assert (
        state["_growth_tracker"] == meta["steps"] == 4
    )  # it was asked once per step, not once per micro-batch


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_and_answer_as_one_does(config, encoder, challenge, tmp_path):
    one, two = (dataclasses.replace(config, max_memory=("4GB",) * count) for count in (1, 2))
    assert set(memory_plan(two).device_map.values()) == {0, 1} and set(
        memory_plan(one).device_map.values()
    ) == {0}
    rows, answers = challenge.train, {}
    for name, trained_on in (("one", one), ("two", two)):
        paths = FoldPaths(tmp_path / name)
        train_fold(
            base_with_lora(trained_on),
            trained_on,
            encoder,
            rows.head(16),
            rows.tail(8),
            paths,
        )
        for scored_on in (one, two):
            tuned, *_ = load_adapter(paths.adapter, scored_on, memory_plan(scored_on))
            for orders in (1, 4):
                settings = ScoringSettings(batch_size=4, orders=orders)
                probs = score_options(tuned, encoder, challenge.test, settings)
                answers[name, len(scored_on.max_memory), orders] = probs[list(LETTERS)].to_numpy()
    assert all(
        np.abs(found - answers["one", 1, key[-1]]).max() < 5e-3 for key, found in answers.items()
    )


LIMIT = """
import torch
torch.cuda.set_per_process_memory_fraction(0.25 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
"""


def test_memory_that_runs_out_for_real(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-limit.py").write_text(LIMIT)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    settings = {"micro_batch": 512, "accumulation": 1, "epochs": 1, "max_memory": "10GB"}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    for stage in ("02_folds", "03_train_fold"):
        command = [
            sys.executable,
            "run_all.py",
            "--run-id",
            "small",
            "--only",
            stage,
            "--folds",
            "0",
            "--resume",
        ]
        command = [*command, *options] if stage == "03_train_fold" else [*command[:-1], *options]
        found = subprocess.run(
            command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout + found.stderr
    print(found.stdout)
    paths = RunPaths("small")
    rungs = read_rungs(paths.fold(0))
    assert [rung.name for rung in rungs][:2] == [
        "activation checkpointing in every layer",
        "micro-batch 512 -> 256",
    ]
    assert {rung.phase for rung in rungs} == {"training"}
    assert pd.read_csv(paths.fold(0).train_log)["memory_gib"].max() <= 0.25


def test_every_preset_is_planned_for_this_machine_or_refused():
    for name in ("single_gpu", "dense_8b"):
        plan = memory_plan(preset(name))
        assert plan.fits and set(plan.device_map.values()) == {0}
