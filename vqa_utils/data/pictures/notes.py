"""Say which rows show an odd picture: of one colour, deeper than 8 bits, or with more frames."""

import pandas as pd

from vqa_utils.data.challenge import Challenge

SHOWN = 6  # ids named


def describe_notes(challenge: Challenge) -> str:
    """Name the rows of each note on pictures, one line a note (see `images.ImageFile`).

    Args:
        challenge: loaded with its images checked.
    """
    rows = pd.concat([challenge.train, challenge.test], ignore_index=True)
    notes = challenge.images_of(rows)["note"].str.split("; ").explode()
    lines = []
    for note, noted in notes[notes != ""].groupby(notes):
        ids = rows["id"][noted.index]
        more = "" if len(ids) <= SHOWN else " ..."
        lines.append(f"{note}: {len(ids)} rows ({', '.join(ids.head(SHOWN))}{more})")
    if not lines:
        return "No picture is of one colour, deeper than 8 bits or has several frames."
    return "\n".join(lines)
