"""Ask the hub for a model's files, and explain its errors.

The only module of the room with network access. Its functions import `huggingface_hub` themselves:
a model in a folder needs none of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqa_utils.errors import VqaError

CONFIG = "config.json"


class SourceError(VqaError):
    """A model has problems and cannot be loaded; the message has them all."""


def hub_files(model: str) -> set[str]:
    """List the names of the model's files on the hub.

    Raises:
        SourceError: the hub does not give them: gated, not there, offline.
    """
    from huggingface_hub import list_repo_files

    with _errors(model):
        _ask(model)
        return set(list_repo_files(model))


def downloaded(model: str, name: str = CONFIG) -> Path:
    """Return a file of the model in the hub's cache; download it if needed.

    Raises:
        SourceError: the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    file = cached(model, name)
    if file:
        return file
    with _errors(model):
        _ask(model)
        return Path(hf_hub_download(model, name))


def cached(model: str, name: str = CONFIG) -> Path | None:
    """Return a file of the model in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    with _errors(model):
        file = try_to_load_from_cache(model, name)
    return Path(file) if isinstance(file, str) else None


def _ask(model: str) -> None:
    """Get the hub's error at once: without a network, listing and download retry for 23 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(model, CONFIG))


@contextmanager
def _errors(model: str) -> Iterator[None]:
    """Raise a SourceError in place of the library's errors."""
    from huggingface_hub import errors

    offline = (
        "no answer ({}) and no complete copy in the cache; "
        "turn the network on (on Kaggle: Settings, Internet on), "
        "or attach the model as a Kaggle input and pass its folder with --model"
    )
    switched_off = offline.format("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set")
    # The first kind that fits counts: some are subclasses of later ones. "{}" is the error's text
    found: dict[type[Exception], str] = {
        errors.GatedRepoError: (
            f"a gated one; accept its licence on https://huggingface.co/{model} and set HF_TOKEN"
        ),
        errors.RepositoryNotFoundError: (
            "none; check the spelling, and set HF_TOKEN if it is private"
        ),
        errors.RemoteEntryNotFoundError: (
            f"no {CONFIG} there; take a model in the format of transformers"
        ),
        errors.HFValidationError: "no valid name ({}); check the spelling",
        errors.HfHubHTTPError: (
            "an error ({}); correct HF_TOKEN if it is 401, otherwise try again later"
        ),
        errors.OfflineModeIsEnabled: switched_off,
        errors.LocalEntryNotFoundError: offline,
        # httpx's own, or httpx2's from hub 2 on: no connection, a time-out, a proxy's error
        errors.HTTPError: offline,
    }
    try:
        yield
    except tuple(found) as error:
        text = next(text for kind, text in found.items() if isinstance(error, kind))
        first_line = str(error).partition("\n")[0]
        raise SourceError(
            f"{model}: expected a model on the hub, found {text.format(first_line)}"
        ) from error
