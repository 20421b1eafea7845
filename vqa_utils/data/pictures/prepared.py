"""Keep pictures as a model is shown them, decoded and resized ahead, in the folder of its base.

A session with GPUs then reads small files. The folder may be attached anywhere, read-only.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image

from vqa_utils.artifacts.files import sha256, write_atomically
from vqa_utils.data.pictures.decoding import opened
from vqa_utils.data.pictures.files import PictureError, reading

FOLDER = "pictures"  # of a base's folder
QUICKLY = 1  # of PNG's levels of compression


@dataclass(frozen=True)
class PreparedPictures:
    """Pictures of one size in PNG, each named after the contents of its own file."""

    folder: Path
    is_there: bool
    """Looked at once: without it, no picture is hashed."""

    @staticmethod
    def of(base: str | Path, side: int, factor: int) -> "PreparedPictures":
        """Find the pictures beside a base, as this Pillow resizes them.

        Args:
            base: the base's folder; a name on the hub has none.
            side: they are shown with at most this number's square in pixels.
            factor: their sides are multiples of it, in px.
        """
        folder = Path(base) / FOLDER / f"{side}px-{factor}-pillow-{PIL.__version__}"
        return PreparedPictures(folder, folder.is_dir())

    def read(self, picture: Path, crops: int = 0) -> list[Image.Image] | None:
        """Read a picture as it is shown, and its crops; None if one is not there, or torn.

        Args:
            picture: its own file.
            crops: parts a side that are shown after it.

        Raises:
            PictureError: the picture's own file cannot be read.
        """
        if not self.is_there:
            return None
        files = self._files_of(picture, 1 + crops**2)
        images: list[Image.Image] = []
        try:
            for file in files:
                with reading(file) as contents, opened(contents, file) as image:
                    image.load()
                    images.append(image)
        except PictureError:
            return None
        return images

    def write(self, picture: Path, images: Sequence[Image.Image]) -> None:
        """Keep a picture as it is shown, and its crops."""
        for file, image in zip(self._files_of(picture, len(images)), images, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            save = functools.partial(image.save, format="PNG", compress_level=QUICKLY)
            write_atomically(file, save)

    def _files_of(self, picture: Path, images: int) -> list[Path]:
        """Name the files of a picture, HASH.png, and of its crops, such as HASH-4-0.png of four."""
        with reading(picture):
            stem = sha256(picture)[:32]
        crops = [f"{stem}-{images - 1}-{number}.png" for number in range(images - 1)]
        return [self.folder / name for name in (f"{stem}.png", *crops)]
