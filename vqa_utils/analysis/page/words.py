"""Say the words of a page, of its tables' columns and of yes and no, in the language that is spoken."""

from collections.abc import Iterator, Mapping
from typing import Any

from vqa_utils.analysis.page.languages import en, ko
from vqa_utils.language import spoken

LANGUAGES = {"en": en, "ko": ko}  # as HTML names them


class _Spoken(Mapping[Any, str]):
    """A mapping of each language's module, read in the one that is spoken."""

    def __init__(self, name: str):
        self._by_language = {key: getattr(module, name) for key, module in LANGUAGES.items()}

    @property
    def _words(self) -> Mapping[Any, str]:
        return self._by_language[spoken()]

    def __getitem__(self, key: Any) -> str:
        return self._words[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


WORDS = _Spoken("WORDS")
COLUMNS = _Spoken("COLUMNS")
FLAGS = _Spoken("FLAGS")
# The kinds of columns' numbers (see `numbers.KINDS`)
COLUMN_KINDS = {
    "accuracy": "percent",
    "not_yes_no": "percent",
    "log_loss": "decimals",
    "calibration_error": "percent",
    "mcnemar_p": "p_value",
    "minutes": "minutes",
    "peak_gib": "gib",
    "excess": "points",
    "against_mean": "points",
    "changed": "percent",
    "rest": "percent",
    "p_worse": "p_value",
    "confidence": "percent",
    "right in train": "percent",
    "chosen in train": "percent",
    "chosen in test": "percent",
}
