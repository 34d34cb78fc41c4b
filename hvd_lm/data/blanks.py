"""What separates words: the blanks of the tokenizers library, Unicode's White_Space; `str.split` of Python has four more."""

from __future__ import annotations

import re

_SEPARATORS = dict.fromkeys(range(0x1C, 0x20), "x")
"""U+001C to U+001F are blanks to Python, and letters to the library."""
_BLANK = r"[^\S\x1c-\x1f]"
_OTHER = r"[\S\x1c-\x1f]"

BLANK = re.compile(_BLANK)
"""A blank."""
_BETWEEN_WORDS = re.compile(f"(?<={_OTHER}){_BLANK}(?={_OTHER})")


def count_words(text: str) -> int:
    """Words of `text` as a word-level tokenizer splits it."""
    if any(map(text.__contains__, map(chr, _SEPARATORS))):
        text = text.translate(_SEPARATORS)
    return len(text.split())


def last_place_between_words(text: str) -> int:
    """Index of the last single blank between two words: no tokenizer has a token across its left side. 0 if there is none."""
    size = 1 << 8
    while True:
        places = [match.start() for match in _BETWEEN_WORDS.finditer(text, max(0, len(text) - size))]
        if places or size >= len(text):
            return places[-1] if places else 0
        size <<= 4
