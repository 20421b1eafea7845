"""Speak the language of a run: English, or the sentences of `korean`.

Standard library only: a launcher speaks before any package is there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from vqa_utils.korean import SENTENCES

ENGLISH = "en"
# By the English sentences; languages are named as HTML names them
TRANSLATIONS: Mapping[str, Mapping[str, str]] = {ENGLISH: {}, "ko": SENTENCES}

_own_language = ENGLISH  # of this process
_language: ContextVar[str] = ContextVar("language")


def speak(language: str) -> None:
    """Speak a language in this process from now on."""
    global _own_language
    _own_language = language


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Speak a language meanwhile."""
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def spoken() -> str:
    """Return the language that is spoken."""
    return _language.get(_own_language)


def said(sentence: str, **fields: object) -> str:
    """Say a sentence in the language that is spoken.

    Args:
        sentence: in English, with the names of fields in braces.
        fields: what stands for them.
    """
    return called(sentence).format(**fields)


def called(name: str) -> str:
    """Return the name of something in the language that is spoken; its own, if that has none."""
    return TRANSLATIONS.get(spoken(), {}).get(name, name)
