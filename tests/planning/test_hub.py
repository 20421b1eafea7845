import importlib
import os
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils._http import default_client_factory
from model_folders import SHARDS, problem, write_model

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.config import QWEN3_30B
from vqa_utils.planning.source.check import SourceError, check_source, config_of

http = importlib.import_module(
    errors.HTTPError.__module__.split(".")[0]
)  # httpx; from hub 2 on, httpx2
NAME, COMMIT = "someone/model", "0123456789" * 4


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Answers for huggingface_hub's own client, so that the library itself makes its errors of them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def answering(files=(), status=200, headers=None, error=None):
        asked = []

        def answer(request):
            if request.url.path != "/api/agent-harnesses":  # the library's own, once per process
                asked.append(f"{request.method} {request.url.path}")
            if error:
                raise error
            if "/tree/" in request.url.path:
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
                return http.Response(status, json=tree, headers=headers)
            whole = {"ETag": '"1"', "X-Repo-Commit": COMMIT, **(headers or {})}
            return http.Response(status, content=b'{"model_type": "qwen3_vl"}', headers=whole)

        huggingface_hub.set_client_factory(
            lambda: http.Client(transport=http.MockTransport(answer))
        )
        return asked

    yield answering
    huggingface_hub.set_client_factory(default_client_factory)


def test_a_folder_may_look_like_a_name_on_the_hub(tmp_path, monkeypatch, hub):
    asked = hub(status=404)
    write_model(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    check_source(NAME)
    assert config_of(NAME) == {"model_type": "qwen3_vl_moe"}
    assert asked == []


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-VL-30B-A3B-Instruct", "qwen/qwen2.5-vl-30b-a3b-instruct"]
)
def test_a_name_that_was_never_published_is_answered_with_the_one_meant(hub, name, check):
    asked = hub()
    assert QWEN3_30B in problem(name, check)
    assert asked == []


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "name", ["/no/such", "./no", "../no/such", "~/no-such", "~no-such-user/model", "no-such", "a/b/c", "a/", "a/b c", "",
             "https://huggingface.co/someone/model"],
)  # fmt: skip
def test_a_folder_that_is_not_there_is_named(hub, name, check):
    asked = hub()
    message = problem(name, check)
    assert f"--model {name!r}: " in message and "OWNER/NAME" in message
    assert asked == []


GATED = (f"https://huggingface.co/{NAME}", "HF_TOKEN")


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "status, headers, kind, found",
    [
        (403, {"X-Error-Code": "GatedRepo"}, errors.GatedRepoError, GATED),
        (401, {"X-Error-Code": "GatedRepo"}, errors.GatedRepoError, GATED),
        (404, {"X-Error-Code": "RepoNotFound"}, errors.RepositoryNotFoundError, ("spelling",)),
        (401, {}, errors.RepositoryNotFoundError, ("spelling",)),
        (404, {"X-Error-Code": "EntryNotFound"}, errors.RemoteEntryNotFoundError, ("config.json",)),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, errors.HfHubHTTPError,
         ("401 Unauthorized",)),
        (503, {}, errors.HfHubHTTPError, ("503 Service Unavailable",)),
    ],
)  # fmt: skip
def test_each_answer_of_the_hub_is_an_error_that_helps(hub, status, headers, kind, found, check):
    asked = hub(status=status, headers=headers)
    with pytest.raises(SourceError) as caught:
        check(NAME)
    assert type(caught.value.__cause__) is kind
    message = str(caught.value)
    assert message.startswith(f"{NAME}: ") and "\n" not in message
    assert [word for word in found if word not in message] == []
    assert asked == [f"HEAD /{NAME}/resolve/main/config.json"]


@pytest.mark.parametrize("check", [check_source, config_of])
@pytest.mark.parametrize(
    "kind", ["ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "RemoteProtocolError"]
)
def test_a_missing_network_is_told_at_once(hub, kind, check):
    asked = hub(error=getattr(http, kind)("[Errno -2] Name or service not known"))
    message = problem(NAME, check)
    assert "[Errno -2] Name or service not known" in message and "Internet on" in message
    assert len(asked) == 1  # a retry would wait


@pytest.mark.parametrize("check", [check_source, config_of])
def test_a_name_that_the_hub_cannot_have_is_refused(hub, check):
    asked = hub()
    assert "repo_id: 'a/b--c'" in problem("a/b--c", check)
    assert asked == []


def test_a_model_of_the_hub_is_looked_at_not_downloaded(hub, tmp_path):
    sharded = write_model(tmp_path / "sharded", SHARDS)
    asked = hub(files=[file.name for file in sharded.iterdir()])
    check_source(NAME)
    assert asked == [f"HEAD /{NAME}/resolve/main/config.json", f"GET /api/models/{NAME}/tree/main"]
    assert not (tmp_path / "cache").exists()


def test_a_model_of_the_hub_that_lacks_files_is_refused_with_all_of_them(hub):
    hub(
        files=[
            "config.json",
            "pytorch_model.bin",
            "fp16/model.safetensors",
            "adapter_model.safetensors",
        ]
    )
    first, weights, processor, tokenizer = problem(NAME).splitlines()
    assert first == f"{NAME}: 3 problems"
    assert "(pytorch_model.bin)" in weights and f"from_pretrained({NAME!r})" in weights
    assert "preprocessor_config.json" in processor and "tokenizer.json" in tokenizer


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
    message = problem(NAME)
    assert [word for word in GATED if word not in message] == []


OFFLINE = """
import sys
from vqa_utils.planning.source.check import SourceError, check_source, config_of
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
    env = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    found = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        check=True,
    )
    lines = found.stdout.splitlines()
    assert [lines[0], *lines[3:5], lines[6]] == [
        "whole/one None", "whole/one {'model_type': 'qwen3_vl_moe'}", "torn/one {'model_type': 'qwen3_vl_moe'}", "[]"
    ]  # fmt: skip
    for line, name in ((lines[1], "torn/one"), (lines[2], "no/copy"), (lines[5], "no/copy")):
        assert line.startswith(f"{name}: ") and "HF_HUB_OFFLINE" in line
