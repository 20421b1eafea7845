import json

import pytest
from model_folders import CONVERT, NO_FILE, SHARDS, problem, write_model

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.config import DEMO_MODEL_NAME
from vqa_utils.planning._source import check_source, config_of


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
    assert problem(folder / "config.json").endswith("found a file; pass the folder that it is in")


def test_a_folder_above_the_model_names_the_models(tmp_path):
    inner = write_model(tmp_path / "transformers" / "30b" / "1")
    for above in (tmp_path, inner.parent):
        assert (
            problem(above)
            == f"{above}: expected config.json, found it in {inner}; pass that folder with --model"
        )


def test_models_below_a_model_do_not_matter(folder):
    write_model(folder / "checkpoint-1")
    assert check_source(str(folder)) is None


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors or model.safetensors.index.json"),
        ("preprocessor_config.json", "preprocessor_config.json or processor_config.json"),
        ("tokenizer.json", "tokenizer.json or vocab.json"),
    ],
)
def test_each_missing_file_is_named(folder, name, wanted):
    (folder / name).unlink()
    assert problem(folder) == f"{folder}: expected {wanted}, {NO_FILE}"


@pytest.mark.parametrize(
    "old, new", [("preprocessor_config", "processor_config"), ("tokenizer", "vocab")]
)
def test_either_of_two_files_is_enough(folder, old, new):
    (folder / f"{old}.json").rename(folder / f"{new}.json")
    assert check_source(str(folder)) is None


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "content, found",
    [
        (
            b"<html>",
            "expected JSON, found something else (Expecting value: line 1 column 1 (char 0)); download it again",
        ),
        (b'{"model_type": "q', "expected JSON, found something else (Unterminated string"),
        (b"\xff\xfe", "expected JSON, found something else ('utf-8' codec can't decode byte 0xff"),
        (b"{}", "expected a JSON object with model_type, found none; download it again"),
        (b'{"model_type": ""}', "expected a JSON object with model_type, found none"),
        (b'["model_type"]', "expected a JSON object with model_type, found none"),
    ],
)
def test_a_config_that_names_no_model(folder, content, found, check):
    (folder / "config.json").write_bytes(content)
    assert problem(folder, check).startswith(f"{folder}: config.json: {found}")


def test_a_config_that_is_not_there(folder):
    (folder / "config.json").unlink()
    assert problem(folder, config_of) == f"{folder}: expected config.json, {NO_FILE}"


def test_pickles_are_refused_with_how_to_convert_them(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "old.pt").touch()
    assert problem(folder) == (
        f"{folder}: expected model.safetensors or model.safetensors.index.json, found only pickles, which are not loaded "
        f"(old.pt, pytorch_model.bin); {CONVERT.format(str(folder))} tokenizer's and the processor's files there"
    )


def test_all_missing_shards_are_named(sharded):
    for shard in (SHARDS[3], SHARDS[1]):
        (sharded / shard).unlink()
    assert problem(sharded) == (
        f"{sharded}: model.safetensors.index.json: expected the 4 shards it lists, found 2 of them missing: "
        f"{SHARDS[1]}, {SHARDS[3]}; download them again"
    )


def test_shards_without_their_index(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert problem(sharded).endswith(f"found only {', '.join(SHARDS)}; get the index too")


def test_an_index_beside_a_whole_file_is_not_read(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"layer": "gone.safetensors"}})
    )
    assert check_source(str(folder)) is None


@pytest.mark.parametrize(
    "content", ['{"metadata": {}}', '{"weight_map": ["a"]}', '{"weight_map": {}}', "torn"]
)
def test_an_index_that_lists_nothing(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    assert problem(sharded).startswith(f"{sharded}: model.safetensors.index.json: expected ")


def tear(file, change):
    file.write_bytes(change(file.read_bytes()))


def test_a_torn_shard_is_named_with_its_bytes(sharded):
    whole = (sharded / SHARDS[2]).stat().st_size
    tear(sharded / SHARDS[2], lambda data: data[:-1])
    assert (
        problem(sharded)
        == f"{sharded}: {SHARDS[2]}: expected {whole} bytes, found {whole - 1}; download it again"
    )


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda data: data + b"\0", "expected {0} bytes, found {1}"),
        (lambda data: data[:50], "expected more than {2} bytes, found 50"),
        (lambda data: data[:8], "expected more than {2} bytes, found 8"),
        (
            lambda data: data[:5],
            "expected a safetensors header, found none in its 5 bytes (a Git LFS pointer has about 130)",
        ),
        (
            lambda data: b"",
            "expected a safetensors header, found none in its 0 bytes (a Git LFS pointer has about 130)",
        ),
        (
            lambda data: bytes(len(data)),
            "expected a safetensors header, found none in its {0} bytes (a Git LFS pointer has about 130)",
        ),
        (
            lambda data: (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
            ),
            "expected a safetensors header, found none in its 70 bytes (a Git LFS pointer has about 130)",
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_weights(folder, change, found):
    file = folder / "model.safetensors"
    whole, header = file.stat().st_size, int.from_bytes(file.read_bytes()[:8], "little")
    tear(file, change)
    found = found.format(whole, whole + 1, 8 + header)
    assert problem(folder) == f"{folder}: model.safetensors: {found}; download it again"


def test_all_problems_of_a_folder_are_one_error(sharded):
    whole = (sharded / SHARDS[0]).stat().st_size
    (sharded / SHARDS[1]).unlink()
    (sharded / "tokenizer.json").unlink()
    (sharded / "preprocessor_config.json").unlink()
    (sharded / "config.json").write_text("{}")
    for shard in (SHARDS[0], SHARDS[3]):
        tear(sharded / shard, lambda data: data[:-2])
    assert problem(sharded).splitlines() == [
        f"{sharded}: 6 problems",
        "  - config.json: expected a JSON object with model_type, found none; download it again",
        f"  - expected preprocessor_config.json or processor_config.json, {NO_FILE}",
        f"  - expected tokenizer.json or vocab.json, {NO_FILE}",
        f"  - model.safetensors.index.json: expected the 4 shards it lists, found 1 of them missing: {SHARDS[1]}; "
        "download them again",
        f"  - {SHARDS[0]}: expected {whole} bytes, found {whole - 2}; download it again",
        f"  - {SHARDS[3]}: expected {whole} bytes, found {whole - 2}; download it again",
    ]
