"""Prompts that a person types, one after the other, each with what the model goes on with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from hvd_lm.generation.text import GenerateConfig, Writer

_ASK = "> "


def converse(writer: Writer, config: GenerateConfig) -> None:
    """Read lines from standard input until it ends, and print the text that follows each; an empty line goes on with that text.

    Every text is drawn anew: the n-th with seed --seed + n. Ctrl-C ends a text, and the conversation where none is written.
    """
    text = config.prompt
    with suppress(ImportError):
        import readline  # noqa: F401  (line editing, where Python has it)
    for turn, line in enumerate(_lines()):
        text = line or text
        print(text, end="", flush=True)
        sampling = replace(config.sampling, seed=config.sampling.seed + turn)
        try:
            for piece in writer.stream(text, length=config.length, sampling=sampling, stop=config.stop):
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" ...", end="")
        print()


def _lines() -> Iterator[str]:
    """Asked for, where a person is there to be asked."""
    ask = _ASK if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while True:
            yield input(ask)
