import importlib
import json
import os
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils._http import default_client_factory
from safetensors.numpy import save_file

from vqa_utils.config import DEMO_MODEL_NAME, QWEN3_30B
from vqa_utils.paths import DEMO_MODEL, ROOT
from vqa_utils.source import SourceError, check_source, config_of

http = importlib.import_module(errors.HTTPError.__module__.split(".")[0])  # httpx; from hub 2 on, httpx2
NAME, COMMIT = "someone/model", "0123456789" * 4
SHARDS = [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
NO_FILE = "found no such file; get a whole model in the format of transformers"
CONVERT = "convert them: AutoModelForImageTextToText.from_pretrained({!r}).save_pretrained(NEW_DIR), and copy the"


def write_model(folder, shards=("model.safetensors",)):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    for i, shard in enumerate(shards):
        save_file({f"layer{i}": np.ones((4, 4), np.float16), f"bias{i}": np.ones(4, np.float16)}, folder / shard)
    if len(shards) > 1:
        weight_map = {f"{kind}{i}": shard for i, shard in enumerate(shards) for kind in ("layer", "bias")}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return write_model(tmp_path / "sharded", SHARDS)


def problem(model, check=check_source):
    with pytest.raises(SourceError) as caught:
        check(str(model))
    return str(caught.value)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Answers for huggingface_hub's own client, so that the library itself makes its errors of them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def answering(files=(), status=200, headers=None, error=None):
        asked = []

        def answer(request):
            if request.url.path != "/api/agent-harnesses":  # the library's own, once a process
                asked.append(f"{request.method} {request.url.path}")
            if error:
                raise error
            if "/tree/" in request.url.path:
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
                return http.Response(status, json=tree, headers=headers)
            whole = {"ETag": '"1"', "X-Repo-Commit": COMMIT, **(headers or {})}
            return http.Response(status, content=b'{"model_type": "qwen3_vl"}', headers=whole)

        huggingface_hub.set_client_factory(lambda: http.Client(transport=http.MockTransport(answer)))
        return asked

    yield answering
    huggingface_hub.set_client_factory(default_client_factory)


def test_whole_folders_pass(folder, sharded):
    check_source(DEMO_MODEL_NAME)
    for model in (folder, sharded, DEMO_MODEL):
        check_source(str(model))
    assert config_of(str(folder)) == {"model_type": "qwen3_vl_moe"}
    assert config_of(DEMO_MODEL_NAME)["text_config"]["num_local_experts"] == 8


def test_a_folder_may_look_like_a_name_on_the_hub(tmp_path, monkeypatch, hub):
    asked = hub(status=404)
    write_model(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    check_source(NAME)
    assert config_of(NAME) == {"model_type": "qwen3_vl_moe"}
    assert asked == []


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-30B-A3B-Instruct", "qwen/qwen2.5-vl-30b-a3b-instruct"])
def test_the_name_that_does_not_exist_names_the_one_that_is_meant(hub, name, check):
    asked = hub()
    assert problem(name, check) == (
        f"{name}: expected a published model, found a name that circulates in guides and does not exist "
        f"(Qwen2.5-VL has 3B, 7B, 32B and 72B); {QWEN3_30B} is the one that is meant"
    )
    assert asked == []


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "name", ["/no/such", "./no", "../no/such", "~/no-such", "~no-such-user/model", "no-such", "a/b/c", "a/", "a/b c", "",
             "https://huggingface.co/someone/model"],
)  # fmt: skip
def test_a_folder_that_is_not_there(hub, name, check):
    asked = hub()
    wanted = "expected a model's folder, or OWNER/NAME on the hub"
    assert problem(name, check) == f"--model {name!r}: {wanted}, found no such folder; check the name"
    assert asked == []


def test_a_file_is_no_folder(folder):
    assert problem(folder / "config.json").endswith("found a file; pass the folder that it is in")


def test_a_folder_above_the_model_names_the_models(tmp_path):
    inner = write_model(tmp_path / "transformers" / "30b" / "1")
    for above in (tmp_path, inner.parent):
        assert problem(above) == f"{above}: expected config.json, found it in {inner}; pass that folder with --model"


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


@pytest.mark.parametrize("old, new", [("preprocessor_config", "processor_config"), ("tokenizer", "vocab")])
def test_either_of_two_files_is_enough(folder, old, new):
    (folder / f"{old}.json").rename(folder / f"{new}.json")
    assert check_source(str(folder)) is None


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "content, found",
    [
        (b"<html>", "expected JSON, found something else (Expecting value: line 1 column 1 (char 0)); download it again"),
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
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"layer": "gone.safetensors"}}))
    assert check_source(str(folder)) is None


@pytest.mark.parametrize("content", ['{"metadata": {}}', '{"weight_map": ["a"]}', '{"weight_map": {}}', "torn"])
def test_an_index_that_lists_nothing(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    assert problem(sharded).startswith(f"{sharded}: model.safetensors.index.json: expected ")


def tear(file, change):
    file.write_bytes(change(file.read_bytes()))


def test_a_torn_shard_is_named_with_its_bytes(sharded):
    whole = (sharded / SHARDS[2]).stat().st_size
    tear(sharded / SHARDS[2], lambda data: data[:-1])
    assert problem(sharded) == f"{sharded}: {SHARDS[2]}: expected {whole} bytes, found {whole - 1}; download it again"


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda data: data + b"\0", "expected {0} bytes, found {1}"),
        (lambda data: data[:50], "expected more than {2} bytes, found 50"),
        (lambda data: data[:8], "expected more than {2} bytes, found 8"),
        (lambda data: data[:5], "expected a safetensors header, found none in its 5 bytes (a Git LFS pointer has about 130)"),
        (lambda data: b"", "expected a safetensors header, found none in its 0 bytes (a Git LFS pointer has about 130)"),
        (
            lambda data: bytes(len(data)),
            "expected a safetensors header, found none in its {0} bytes (a Git LFS pointer has about 130)",
        ),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
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


GATED = f"a gated one; accept its licence on https://huggingface.co/{NAME} and set HF_TOKEN"
NONE = "none; check the spelling, and set HF_TOKEN if it is private"


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "status, headers, kind, found",
    [
        (403, {"X-Error-Code": "GatedRepo"}, errors.GatedRepoError, GATED),
        (401, {"X-Error-Code": "GatedRepo"}, errors.GatedRepoError, GATED),
        (404, {"X-Error-Code": "RepoNotFound"}, errors.RepositoryNotFoundError, NONE),
        (401, {}, errors.RepositoryNotFoundError, NONE),
        (404, {"X-Error-Code": "EntryNotFound"}, errors.RemoteEntryNotFoundError, "no config.json there; take a model"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, errors.HfHubHTTPError,
         "an error (Client error '401 Unauthorized' for url 'https://huggingface.co/someone/model/resolve/main/config.json'"),
        (503, {}, errors.HfHubHTTPError, "an error (Server error '503 Service Unavailable' for url"),
    ],
)  # fmt: skip
def test_what_the_hub_answers(hub, status, headers, kind, found, check):
    asked = hub(status=status, headers=headers)
    with pytest.raises(SourceError) as caught:
        check(NAME)
    assert type(caught.value.__cause__) is kind
    assert str(caught.value).startswith(f"{NAME}: expected a model on the hub, found {found}")
    assert "\n" not in str(caught.value)
    assert asked == [f"HEAD /{NAME}/resolve/main/config.json"]


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize("kind", ["ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "RemoteProtocolError"])
def test_without_a_network_it_says_so_at_once(hub, kind, check):
    asked = hub(error=getattr(http, kind)("[Errno -2] Name or service not known"))
    assert problem(NAME, check) == (
        f"{NAME}: expected a model on the hub, found no answer ([Errno -2] Name or service not known) and no whole copy in "
        "the cache; turn the network on (on Kaggle: Settings, Internet on), or attach the model as a Kaggle input and pass "
        "its folder with --model"
    )
    assert len(asked) == 1  # a retry would wait


@pytest.mark.parametrize("check", [check_source, config_of])
def test_a_name_that_the_hub_cannot_have(hub, check):
    asked = hub()
    found = "found no valid name (Cannot have -- or .. in repo_id: 'a/b--c'.); check the spelling"
    assert problem("a/b--c", check) == f"a/b--c: expected a model on the hub, {found}"
    assert asked == []


def test_a_model_of_the_hub_is_looked_at_not_downloaded(hub, sharded, tmp_path):
    asked = hub(files=[file.name for file in sharded.iterdir()])
    check_source(NAME)
    assert asked == [f"HEAD /{NAME}/resolve/main/config.json", f"GET /api/models/{NAME}/tree/main"]
    assert not (tmp_path / "cache").exists()


def test_a_model_of_the_hub_without_what_is_needed(hub):
    hub(files=["config.json", "pytorch_model.bin", "fp16/model.safetensors", "adapter_model.safetensors"])
    first, weights, processor, tokenizer = problem(NAME).splitlines()
    assert first == f"{NAME}: 3 problems"
    assert f"(pytorch_model.bin); {CONVERT.format(NAME)}" in weights
    assert processor == f"  - expected preprocessor_config.json or processor_config.json, {NO_FILE}"
    assert tokenizer == f"  - expected tokenizer.json or vocab.json, {NO_FILE}"


def test_the_config_of_a_model_of_the_hub_is_downloaded_once(hub):
    hub()
    assert config_of(NAME) == {"model_type": "qwen3_vl"}
    asked = hub(status=404)
    assert config_of(NAME) == {"model_type": "qwen3_vl"}
    assert asked == []


def write_cache(cache, name):
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return write_model(folder / "snapshots" / COMMIT, SHARDS)


@pytest.mark.parametrize("missing", [SHARDS[1], "model.safetensors.index.json", "tokenizer.json"])
def test_a_copy_in_the_cache_that_is_not_whole_needs_the_hub(hub, tmp_path, missing):
    snapshot = write_cache(tmp_path / "cache", NAME)
    asked = hub(status=403, headers={"X-Error-Code": "GatedRepo"})
    check_source(NAME)
    assert asked == []
    (snapshot / missing).unlink()
    assert problem(NAME) == f"{NAME}: expected a model on the hub, found {GATED}"


OFFLINE = """
import sys
from vqa_utils.source import SourceError, check_source, config_of
assert "huggingface_hub" not in sys.modules
for check in (check_source, config_of):
    for name in ("whole/one", "torn/one", "no/copy"):
        try:
            print(name, check(name))
        except SourceError as error:
            print(error)
print([module for module in ("torch", "transformers") if module in sys.modules])
"""


def test_hf_hub_offline_leaves_what_is_cached(tmp_path):
    write_cache(tmp_path / "hub", "whole/one")
    (write_cache(tmp_path / "hub", "torn/one") / SHARDS[0]).unlink()
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    offline = "expected a model on the hub, found no answer (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set) and no whole copy"
    lines = found.stdout.splitlines()
    assert [lines[0], *lines[3:5], lines[6]] == [
        "whole/one None", "whole/one {'model_type': 'qwen3_vl_moe'}", "torn/one {'model_type': 'qwen3_vl_moe'}", "[]"
    ]  # fmt: skip
    for line, name in ((lines[1], "torn/one"), (lines[2], "no/copy"), (lines[5], "no/copy")):
        assert line.startswith(f"{name}: {offline}")
