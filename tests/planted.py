"""A home folder with secrets, and a search for them, for the user and for the host in files."""

import re
import socket

import matplotlib

from vqa_utils.artifacts.paths import ROOT

USER = "jiwoo.kim"
OF_VARIABLES = {
    "HF_TOKEN": "hf_plantedtoken",
    "KAGGLE_KEY": "planted0key1",
    "WANDB_API_KEY": "planted2key3",
}
OF_FILES = "planted4key5"
BASE64 = re.compile(r"[A-Za-z0-9+/]{100,}")  # of pictures in a page: any short word is in there


def write_home(home):
    """Write the files; return the environment variables of the person."""
    for file in (".kaggle/kaggle.json", ".netrc", ".cache/huggingface/token"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(f'{{"username": "{USER}", "key": "{OF_FILES}"}}')
    return {
        **OF_VARIABLES,
        **dict.fromkeys(("USER", "LOGNAME"), USER),
        "HOSTNAME": socket.gethostname(),
        "HOME": str(home),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # to list the fonts takes seconds
    }


def names_below(folder, home):
    """List the files below a folder with a secret, the user's or the host's name, or a place."""
    places = [str(home), str(home.parent), str(ROOT)]
    names = [*OF_VARIABLES.values(), OF_FILES, USER, *places]
    host = re.compile(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w-])")
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        contents = path.read_bytes()
        there = [name for name in names if name.encode() in contents]
        text = BASE64.sub("", contents.decode(errors="replace"))
        if path.suffix not in (".png", ".safetensors") and host.search(text):
            there.append("the host")
        found += [f"{path.relative_to(folder)}: {name}" for name in there]
    return found
