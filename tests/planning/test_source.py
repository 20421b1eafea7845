"""A model's folder: complete, or each problem by the file's name."""

import json

import pytest
from model_folders import SHARDS, problem, write_model

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.config import DEMO_MODEL_NAME
from vqa_utils.planning.source.check import check_source, config_of

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return write_model(tmp_path / "sharded", SHARDS)


def test_whole_folders_pass(folder, sharded):
    check_source(DEMO_MODEL_NAME)
    for model in (folder, sharded, DEMO_MODEL):
        check_source(str(model))
    assert config_of(str(folder)) == {"model_type": "qwen3_vl_moe"}
    assert config_of(DEMO_MODEL_NAME)["text_config"]["num_local_experts"] == 8


def test_a_file_is_no_folder(folder):
    assert "found a file" in problem(folder / "config.json")


def test_a_folder_above_the_model_names_the_models(tmp_path):
    inner = write_model(tmp_path / "transformers" / "30b" / "1")
    for above in (tmp_path, inner.parent):
        assert f"config.json, found it in {inner};" in problem(above)


def test_models_below_a_model_do_not_matter(folder):
    write_model(folder / "checkpoint-1")
    assert check_source(str(folder)) is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", f"model.safetensors or {INDEX}"),
        ("preprocessor_config.json", "preprocessor_config.json or processor_config.json"),
        ("tokenizer.json", "tokenizer.json or vocab.json"),
    ],
)
def test_each_missing_file_is_named(folder, name, wanted):
    (folder / name).unlink()
    assert problem(folder).startswith(f"{folder}: expected {wanted}, found no such file")


@pytest.mark.parametrize(
    ("old", "new"), [("preprocessor_config", "processor_config"), ("tokenizer", "vocab")]
)
def test_either_of_two_files_is_enough(folder, old, new):
    (folder / f"{old}.json").rename(folder / f"{new}.json")
    assert check_source(str(folder)) is None


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "line 1 column 1"),
        (b'{"model_type": "q', "Unterminated string"),
        (b"\xff\xfe", "0xff"),
        (b"{}", "model_type"),
        (b'{"model_type": ""}', "model_type"),
        (b'["model_type"]', "model_type"),
    ],
)
def test_a_config_that_names_no_model_is_refused(folder, content, reason, check):
    (folder / "config.json").write_bytes(content)
    message = problem(folder, check)
    assert message.startswith(f"{folder}: config.json: ") and reason in message


def test_a_config_that_is_not_there_is_named(folder):
    (folder / "config.json").unlink()
    assert problem(folder, config_of).startswith(f"{folder}: expected config.json, found")


def test_pickles_are_refused_with_how_to_convert_them(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "old.pt").touch()
    message = problem(folder)
    assert "(old.pt, pytorch_model.bin)" in message
    assert f"from_pretrained({str(folder)!r}).save_pretrained(" in message


def test_all_missing_shards_are_named(sharded):
    for shard in (SHARDS[3], SHARDS[1]):
        (sharded / shard).unlink()
    message = problem(sharded)
    assert message.startswith(f"{sharded}: {INDEX}: expected the 4 shards")
    assert f"found 2 of them missing: {SHARDS[1]}, {SHARDS[3]};" in message


def test_shards_without_their_index_are_named(sharded):
    (sharded / INDEX).unlink()
    assert f"found only {', '.join(SHARDS)};" in problem(sharded)


def test_an_index_beside_a_whole_file_is_not_read(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"layer": "gone.safetensors"}}))
    assert check_source(str(folder)) is None


@pytest.mark.parametrize(
    "content", ['{"metadata": {}}', '{"weight_map": ["a"]}', '{"weight_map": {}}', "torn"]
)
def test_an_index_that_lists_nothing_is_refused(sharded, content):
    (sharded / INDEX).write_text(content)
    assert problem(sharded).startswith(f"{sharded}: {INDEX}: expected ")


def tear(file, change):
    file.write_bytes(change(file.read_bytes()))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:50],
        lambda data: data[:8],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: LFS_POINTER,
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
    ],
    ids=["short", "long", "in header", "no header", "in length", "empty", "zeros", "pointer",
         "endless header", "no JSON"],
)  # fmt: skip
def test_a_torn_file_of_weights_is_named_with_its_bytes(folder, sharded, change):
    for file in (folder / "model.safetensors", sharded / SHARDS[2]):
        tear(file, change)
        message = problem(file.parent)
        assert message.startswith(f"{file.parent}: {file.name}: ")
        assert f"found {file.stat().st_size} bytes" in message


def test_a_file_that_was_cut_off_is_named_with_the_bytes_that_it_should_have(folder):
    file = folder / "model.safetensors"
    size = file.stat().st_size
    tear(file, lambda data: data[:-1])
    message = problem(folder)
    assert f"expected {size} bytes, found {size - 1} bytes" in message and "LFS" not in message


def test_a_git_lfs_pointer_is_called_one(folder):
    tear(folder / "model.safetensors", lambda data: LFS_POINTER)
    assert "Git LFS" in problem(folder)


def test_all_problems_of_a_folder_are_one_error(sharded):
    (sharded / SHARDS[1]).unlink()
    (sharded / "tokenizer.json").unlink()
    (sharded / "preprocessor_config.json").unlink()
    (sharded / "config.json").write_text("{}")
    for shard in (SHARDS[0], SHARDS[3]):
        tear(sharded / shard, lambda data: data[:-2])
    first, *problems = problem(sharded).splitlines()
    assert first == f"{sharded}: 6 problems"
    names = [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        INDEX,
        SHARDS[0],
        SHARDS[3],
    ]
    for name, line in zip(names, problems, strict=True):
        assert name in line
