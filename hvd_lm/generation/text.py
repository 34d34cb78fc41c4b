"""Text from a model: one token at a time, the LSTM state carried, so that a token costs one step whatever came before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvd_lm import adapters
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.config import Framework
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import require
from hvd_lm.generation.beam_search import Hypothesis, beam_search
from hvd_lm.generation.prompt import read_prompt
from hvd_lm.generation.sampling import SamplingConfig, draw, predict
from hvd_lm.job.messages import warn
from hvd_lm.model.cost import multiply_adds
from hvd_lm.paths import make_paths, one_path


@dataclass(frozen=True)
class GenerateConfig:
    """Write text with a checkpoint."""

    checkpoint: Path
    """Folder of a training run (its newest checkpoint), or of one checkpoint."""
    prompt: str = ""
    """Text to go on from. Words that the vocabulary lacks count as <unk>, which is never written."""
    length: int = 100
    """Tokens to write."""
    samples: int = 1
    """Texts to write; one is shown as it comes. With --beams: how many of the best to show."""
    interactive: bool = False
    """Ask for one prompt after the other, until the end of the input (Ctrl-D); an empty one goes on with the text so far."""
    stop: tuple[str, ...] = ()
    r"""Strings before which a text ends; \n stands for a line break."""
    beams: int = 0
    """Search for the likeliest text with so many beams, instead of drawing; 0 for drawing."""
    length_penalty: float = 1.0
    """Beams: texts are ranked by log-probability / tokens ** this."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    threads: int | None = None
    """Compute threads. Unless given: the cores of the machine."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        make_paths(self, "checkpoint")
        for name in ("length", "samples", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name} must be at least 1, not {value}")
        require(self.beams >= 0, f"--beams must not be negative, not {self.beams}")
        require(not self.beams or self.samples <= self.beams, f"--samples {self.samples} needs as many --beams, not {self.beams}")
        require(
            not self.interactive or (self.samples == 1 and not self.beams),
            "--interactive writes one text for each prompt: use it without --samples and --beams",
        )
        object.__setattr__(self, "stop", tuple(stop.replace("\\n", "\n") for stop in stops(self.stop)))


class Writer:
    """A model that writes, whoever built it."""

    def __init__(self, adapter: Adapter, tokenizer: Tokenizer) -> None:
        self._adapter, self.tokenizer = adapter, tokenizer

    def stream(
        self, prompt: str = "", *, length: int = 100, sampling: SamplingConfig | None = None, stop: str | Sequence[str] = ()
    ) -> Iterator[str]:
        """Pieces of the text that follows `prompt`, as they are made; each brings the blank or line break before it."""
        for pieces in self._write(prompt, 1, length, sampling, stop):
            yield from pieces

    def samples(
        self,
        prompt: str = "",
        count: int = 1,
        *,
        length: int = 100,
        sampling: SamplingConfig | None = None,
        stop: str | Sequence[str] = (),
    ) -> list[str]:
        """`count` texts that follow `prompt`, made side by side. The first ones are the same for any `count`."""
        texts = [""] * count
        for pieces in self._write(prompt, count, length, sampling, stop):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts

    def beam_search(
        self, prompt: str = "", beams: int = 4, *, length: int = 100, length_penalty: float = 1.0, stop: str | Sequence[str] = ()
    ) -> list[Hypothesis]:
        """The likeliest texts of `length` tokens, or up to a stop string, that a search of this width finds; the best first."""
        ids, ends = self._read(prompt), stops(stop)
        return beam_search(
            self._adapter, self.tokenizer, ids, beams=beams, length=length, length_penalty=length_penalty, stop=ends, after=prompt
        )

    def _read(self, prompt: str) -> NDArray[np.int32]:
        """The inputs of the first step."""
        read = read_prompt(self.tokenizer, prompt)
        if read.unknown:
            warn(f"not in the vocabulary, read as <unk>: {' '.join(read.unknown)}")
        return np.concatenate(([self.tokenizer.end_of_line_id], read.ids)).astype(np.int32)

    def _write(
        self, prompt: str, count: int, length: int, sampling: SamplingConfig | None, stop: str | Sequence[str]
    ) -> Iterator[list[str]]:
        """What each of `count` texts gains, token by token."""
        sampling, stop = sampling or SamplingConfig(), stops(stop)
        generators = [np.random.default_rng([sampling.seed, index]) for index in range(count)]
        texts = [_GrowingText(self.tokenizer, prompt, stop) for _ in range(count)]
        # The prompt is read once, whatever is drawn after it.
        logits_BV, state = predict(self._adapter, self.tokenizer, self._read(prompt)[:, None], self._adapter.zero_state(1))
        if count > 1:
            logits_BV, state = logits_BV.repeat(count, axis=0), self._adapter.select_state(state, [0] * count)
        for step in range(length):
            tokens = [draw(logits_V, sampling, generator) for logits_V, generator in zip(logits_BV, generators, strict=True)]
            last = step == length - 1
            yield [text.add(token, last=last) for text, token in zip(texts, tokens, strict=True)]
            if last or all(text.ended for text in texts):
                return
            logits_BV, state = predict(self._adapter, self.tokenizer, np.array([tokens], np.int32), state)


class TextGenerator(Writer):
    """A model of a checkpoint that writes.

    writer = TextGenerator("runs/two")
    print("".join(writer.stream("The value of", length=40)))
    for text in writer.samples("The value of", count=3, sampling=SamplingConfig(temperature=0.8)):
        ...
    """

    def __init__(self, checkpoint: Path | str, *, framework: Framework = "torch", threads: int | None = None) -> None:
        """Raises CheckpointError or FrameworkError, each with what to do."""
        path = one_path(checkpoint, "--checkpoint")
        loaded = checkpoints.language_model(checkpoints.load_model(path), path)
        adapter = adapters.adapter(framework, threads=threads, multiply_adds=multiply_adds(loaded.model))
        adapter.build(loaded.model)
        adapter.load_weights(loaded.weights)
        super().__init__(adapter, loaded.tokenizer)


def stops(given: str | Sequence[str]) -> tuple[str, ...]:
    """What ends a text; one string is one, and not its letters. Raises ConfigError for an empty one, before which all ends."""
    several = (given,) if isinstance(given, str) else tuple(given)
    require(all(several), "--stop needs a string that is not empty")
    return several


class _GrowingText:
    """A text that ends before the first stop string; what could be the beginning of one is held back."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, stop: Sequence[str]) -> None:
        self._pieces = tokenizer.detokenizer(after=prompt)
        self._stop = stop
        self._held = ""
        self.ended = False

    def add(self, token: int, *, last: bool) -> str:
        """What can be shown now."""
        if self.ended:
            return ""
        self._held += self._pieces.add(token)
        if last:
            self._held += self._pieces.end()
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            return self._held[: min(found)]
        safe = len(self._held) if last else len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def generate(
    checkpoint: Path | str,
    prompt: str = "",
    *,
    length: int = 100,
    sampling: SamplingConfig | None = None,
    stop: str | Sequence[str] = (),
    framework: Framework = "torch",
    threads: int | None = None,
) -> Iterator[str]:
    """Pieces of text that follow `prompt`, as they are made. For more than one text use a TextGenerator.

    Raises CheckpointError or FrameworkError, each with what to do.
    """
    writer = TextGenerator(checkpoint, framework=framework, threads=threads)
    yield from writer.stream(prompt, length=length, sampling=sampling, stop=stop)
