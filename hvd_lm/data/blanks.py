"""What separates words: the blanks of the tokenizers library, Unicode's White_Space; `str.split` of Python has four more."""

from __future__ import annotations

import re

_BLANK = r"[^\S\x1c-\x1f]"
_OTHER = r"[\S\x1c-\x1f]"

BLANK = re.compile(_BLANK)
"""A blank."""
_BLANKS = re.compile(f"{_BLANK}+")
_ODD = re.compile(r"[\x1c-\x1f]")
"""Blanks to Python, and letters to the library."""
_BETWEEN_WORDS = re.compile(f"(?<={_OTHER}){_BLANK}(?={_OTHER})")


def words(text: str) -> list[str]:
    """The words of `text` as a word-level tokenizer splits it."""
    return [word for word in _BLANKS.split(text) if word] if _ODD.search(text) else text.split()


def last_place_between_words(text: str) -> int:
    """Index of the last single blank between two words: no tokenizer has a token across its left side. 0 if there is none."""
    size = 1 << 8
    while True:
        places = [match.start() for match in _BETWEEN_WORDS.finditer(text, max(0, len(text) - size))]
        if places or size >= len(text):
            return places[-1] if places else 0
        size <<= 4
