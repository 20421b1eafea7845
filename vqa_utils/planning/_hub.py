"""What the hub says of a model, and its errors in words that help. Free of torch; the network is asked only in here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqa_utils.errors import VqaError

CONFIG = "config.json"


class SourceError(VqaError):
    """A model that cannot be loaded, with all its problems."""


def hub_files(model: str) -> set[str]:
    """The names of the model's files on the hub.

    Raises:
        SourceError: the hub does not give them: gated, not there, offline.
    """
    from huggingface_hub import list_repo_files

    with _errors(model):
        _ask(model)
        return set(list_repo_files(model))


def downloaded(model: str) -> Path:
    """The folder of the hub's cache that holds the model's config.json, brought there where it is not yet.

    Raises:
        SourceError: the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    if folder := cached(model):
        return folder
    with _errors(model):
        _ask(model)
        return Path(hf_hub_download(model, CONFIG)).parent


def cached(model: str) -> Path | None:
    """The folder of the hub's cache that holds the model's config.json."""
    from huggingface_hub import try_to_load_from_cache

    with _errors(model):
        file = try_to_load_from_cache(model, CONFIG)
    return Path(file).parent if isinstance(file, str) else None


def _ask(model: str) -> None:
    """Get the hub's error at once: without a network, its listing and its download go on trying for 23 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(model, CONFIG))


@contextmanager
def _errors(model: str) -> Iterator[None]:
    from huggingface_hub import errors

    offline = (
        "no answer ({}) and no whole copy in the cache; turn the network on (on Kaggle: Settings, Internet on), "
        "or attach the model as a Kaggle input and pass its folder with --model"
    )
    found = {  # the first that fits
        errors.GatedRepoError: f"a gated one; accept its licence on https://huggingface.co/{model} and set HF_TOKEN",
        errors.RepositoryNotFoundError: "none; check the spelling, and set HF_TOKEN if it is private",
        errors.RemoteEntryNotFoundError: f"no {CONFIG} there; take a model in the format of transformers",
        errors.HFValidationError: "no valid name ({}); check the spelling",
        errors.HfHubHTTPError: "an error ({}); correct HF_TOKEN if it is 401, otherwise try again later",
        errors.OfflineModeIsEnabled: offline.format(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
        ),
        errors.LocalEntryNotFoundError: offline,
        errors.HTTPError: offline,  # httpx's, or that of httpx2 from hub 2 on: no connection, a time-out, a proxy's error
    }
    try:
        yield
    except tuple(found) as error:
        text = next(text for kind, text in found.items() if isinstance(error, kind)).format(
            str(error).partition("\n")[0]
        )
        raise SourceError(f"{model}: expected a model on the hub, found {text}") from error
