"""Where a text is cut into training, validation and test: before anything is counted, so that no vocabulary knows held-out text.

A split of words or BPE ends with a line, or else before a blank; one of bytes behind a character.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from hvd_lm.config import VALIDATION_SHARE
from hvd_lm.data.blanks import BLANK
from hvd_lm.data.shards import Split
from hvd_lm.data.tokenizer import TokenizerKind

DEFAULT_SHARES: Mapping[Split, float] = {"validation": VALIDATION_SHARE, "test": VALIDATION_SHARE}
"""Of the text, unless they are given."""


@dataclass(frozen=True)
class End:
    """Where a share of the text ends."""

    split: Split
    offset: int | None
    """In the units of `length`; None for the last one."""


def length(text: str, kind: TokenizerKind) -> int:
    """What shares are measured in: characters, or bytes for byte tokens."""
    return len(text.encode()) if kind == "byte" else len(text)


def share_out(total: int, shares: Mapping[Split, float]) -> list[End]:
    """The ends of the training split and of `shares` behind it, in this order, in a text of `total`."""
    shares = {split: share for split, share in shares.items() if share}
    names: list[Split] = ["training", *shares]
    stops = [round(total * share) for share in accumulate([1 - sum(shares.values()), *shares.values()])]
    return [End(name, stop) for name, stop in zip(names[:-1], stops, strict=False)] + [End(names[-1], None)]


def split_blocks(blocks: Iterable[str], ends: list[End], kind: TokenizerKind) -> Iterator[tuple[Split, str]]:
    """Blocks (`corpus.blocks_of`) with the split that they belong to."""
    offset = 0
    remaining = list(ends)
    for block in blocks:
        text = block
        size = length(block, kind)
        while remaining[0].offset is not None and offset + size >= remaining[0].offset:
            cut = _cut(text, max(0, remaining[0].offset - offset), kind)
            if cut is None:
                break  # the line goes on in the next block, and the split with it
            if cut:
                yield remaining[0].split, text[:cut]
            moved = length(text[:cut], kind)
            text, offset, size = text[cut:], offset + moved, size - moved
            remaining.pop(0)
        offset += size
        if text:
            yield remaining[0].split, text


def _cut(text: str, target: int, kind: TokenizerKind) -> int | None:
    """Where to cut at or after `target`; None if not in this text."""
    if kind == "byte":
        # Behind the character that the byte belongs to.
        return len(text.encode()[:target].decode("utf-8", "ignore")) + (0 if _is_boundary(text.encode(), target) else 1)
    if kind == "char":
        return target
    if target == 0 or text[target - 1] == "\n":
        return target
    line_break = text.find("\n", target)
    if line_break >= 0:
        return line_break + 1
    blank = BLANK.search(text, target)
    return blank.start() if blank else None


def _is_boundary(data: bytes, index: int) -> bool:
    """Whether a UTF-8 character begins at `index`."""
    return index >= len(data) or data[index] & 0xC0 != 0x80
