"""A home folder of somebody with secrets, and the search for them in files."""

import contextlib
import re
import socket

import matplotlib
import pytest

from vqa_utils.artifacts.paths import ROOT

USER = "jiwoo.kim"
SECRETS = {
    "HF_TOKEN": "hf_plantedtoken",
    "KAGGLE_KEY": "planted0key1",
    "WANDB_API_KEY": "planted2key3",
}
IN_FILES = "planted4key5"
BASE64 = re.compile(r"[A-Za-z0-9+/]{100,}")


@contextlib.contextmanager
def home_with_secrets(folder):
    """The environment names the home folder, the user and the secrets meanwhile."""
    home = folder / USER
    for file in (".kaggle/kaggle.json", ".netrc", ".cache/huggingface/token"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(f'{{"username": "{USER}", "key": "{IN_FILES}"}}')
    environment = {
        **SECRETS,
        **dict.fromkeys(("USER", "LOGNAME"), USER),
        "HOSTNAME": socket.gethostname(),
        "HOME": str(home),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # to list the fonts takes seconds
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield home


def named_in(files, home):
    """The files with a secret, a folder, a person or a host in them, and which."""
    planted = [*SECRETS.values(), IN_FILES, USER, str(home), str(home.parent), str(ROOT)]
    host = re.compile(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w-])")
    found = []
    for path in files:
        contents = path.read_bytes()
        text = BASE64.sub("", contents.decode(errors="replace"))
        names = [name for name in planted if name.encode() in contents]
        if path.suffix not in (".png", ".safetensors") and host.search(text):
            names.append("the host")
        found += [f"{path}: {name}" for name in names]
    return found
