"""Keep pictures' features in a folder: a file a picture, which all runs of one model share."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vqa_utils.artifacts.files import write_atomically
from vqa_utils.data.pictures.files import stamp_of
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.disk import DiskFull, describe_full, is_full

TOKENS, GRIDS = "tokens", "grids"  # names of a file's tensors


class Features(NamedTuple):
    """What the vision tower makes of a picture and its crops."""

    tokens: torch.Tensor
    """[image tokens, 1 + D, H]: those at the images' places, and DeepStack's for D layers"""
    grids: torch.Tensor
    """[images, 3], int64: each image's frames (1), rows and columns of patches"""


class FeatureStore:
    """The features of pictures, each in a file that is whole or not there.

    Picklable, for DataLoader workers.

    Attributes:
        folder: of the files. Its name has all that features depend on besides the picture.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def file_of(self, picture: Path, view: str) -> Path:
        """Return the file for a picture.

        It is named after the picture's place and stamp, so that it is never outdated.

        Args:
            picture: its own file.
            view: how it is shown: `Encoder.view`.
        """
        parts = (str(picture.resolve()), *map(str, stamp_of(picture)), view)
        return self._named("|".join(parts))

    def grey_file_of(self, picture: Path, view: str) -> Path:
        """Return the file for a grey picture of this one's size; that of this one is there."""
        grids = self._tensors(self.file_of(picture, view), picture, GRIDS)[GRIDS]
        return self._named(f"grey {grids.tolist()}")

    def write(self, file: Path, features: Features) -> None:
        """Write a file, at once or not at all.

        Raises:
            DiskFull: its disk is.
        """
        tensors = {TOKENS: features.tokens.contiguous(), GRIDS: features.grids}
        try:
            write_atomically(file, lambda draft: save_file(tensors, draft))
        except (OSError, SafetensorError) as error:
            if not is_full(error):
                raise
            raise DiskFull(
                f"{describe_full(self.folder)}; --set cache_features=false needs no disk"
            ) from error

    def read(self, picture: Path, view: str, *, grey: bool = False) -> Features:
        """Read the features of a picture in a view, or of a grey one of its size.

        Raises:
            RunError: there are none, or they cannot be read.
        """
        file = self.grey_file_of(picture, view) if grey else self.file_of(picture, view)
        tensors = self._tensors(file, picture, TOKENS, GRIDS)
        return Features(tensors[TOKENS], tensors[GRIDS])

    def _tensors(self, file: Path, picture: Path, *names: str) -> dict[str, torch.Tensor]:
        """Read some of the tensors of a picture's file, and nothing of the others."""
        try:
            with safe_open(file, "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{picture}: expected its features in {file}, found none ({error}); either the "
                "picture has changed since the model was loaded, or the file was deleted: "
                "python run_all.py --resume makes it anew"
            ) from error

    def _named(self, text: str) -> Path:
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
