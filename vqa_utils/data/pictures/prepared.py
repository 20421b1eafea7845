"""Keep pictures as a model is shown them, decoded and resized ahead, in the folder of its base.

A session with GPUs then reads small files. The folder may be attached anywhere, read-only.
"""

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

    def read(self, picture: Path) -> Image.Image | None:
        """Read a picture as it is shown; None if it is not there, or torn.

        Raises:
            PictureError: the picture's own file cannot be read.
        """
        if not self.is_there:
            return None
        file = self._file_of(picture)
        try:
            with reading(file) as contents, opened(contents, file) as image:
                image.load()
                return image
        except PictureError:
            return None

    def write(self, picture: Path, image: Image.Image) -> None:
        """Keep a picture as it is shown."""
        file = self._file_of(picture)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda draft: image.save(draft, "PNG", compress_level=QUICKLY))

    def _file_of(self, picture: Path) -> Path:
        with reading(picture):
            return self.folder / f"{sha256(picture)[:32]}.png"
