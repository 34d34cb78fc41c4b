"""A plain PyTorch encoder-decoder LSTM that translates, as tutorials write it: the decoder begins with the encoder's last state.

    python -m benchmarks.peers.seq2seq TOKENIZER SOURCE TARGET TEST_SOURCE TEST_TARGET [--epochs 10] [--hidden-size 256] ...

Tokens are those of `tokenizer.json` of a run of hvd-lm translate; batch, optimizer and clipping are as there. It prints BLEU of
translations that take the likeliest token each time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from hvd_lm.data import tokenizer as tokenizers

PAD = -100


class EncoderDecoder(nn.Module):
    """Two embeddings, two LSTMs, one output."""

    def __init__(self, vocabulary: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embed_source, self.embed_target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.encoder, self.decoder = nn.LSTM(width, hidden, batch_first=True), nn.LSTM(width, hidden, batch_first=True)
        self.drop, self.output = nn.Dropout(dropout), nn.Linear(hidden, vocabulary)

    def encode(self, sources: list[Tensor]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(ids) for ids in sources])
        padded = self.drop(self.embed_source(pad_sequence(sources, batch_first=True)))
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
        state: tuple[Tensor, Tensor] = self.encoder(packed)[1]
        return state

    def decode(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, state = self.decoder(self.drop(self.embed_target(inputs)), state)
        return self.output(self.drop(outputs)), state


@torch.no_grad()
def translate(model: EncoderDecoder, sources: list[Tensor], end: int) -> list[list[int]]:
    """The likeliest token each time."""
    state, inputs = model.encode(sources), torch.full((len(sources), 1), end)
    found: list[list[int]] = [[] for _ in sources]
    open_ = set(range(len(sources)))
    for _ in range(2 * max(map(len, sources)) + 10):
        logits, state = model.decode(inputs, state)
        inputs = logits[:, -1].argmax(1, keepdim=True)
        for index in list(open_):
            token = int(inputs[index])
            open_.remove(index) if token == end else found[index].append(token)
        if not open_:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("tokenizer", "source", "target", "test_source", "test_target"):
        parser.add_argument(name, type=Path)
    for name, value in {"epochs": 10, "batch-size": 64, "embedding-size": 256, "hidden-size": 256, "threads": 1, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, rate in {"learning-rate": 1e-3, "dropout": 0.3, "clip": 1.0}.items():
        parser.add_argument(f"--{name}", type=float, default=rate)
    its = parser.parse_args()
    torch.manual_seed(its.seed)
    torch.set_num_threads(its.threads)
    tokenizer = tokenizers.load(its.tokenizer)
    end = tokenizer.end_of_line_id

    def read(path: Path) -> list[Tensor]:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [torch.tensor([*tokenizer.encode_block(line.strip()).tolist(), end]) for line in lines]

    sources, targets = read(its.source), read(its.target)
    model = EncoderDecoder(tokenizer.vocabulary_size, its.embedding_size, its.hidden_size, its.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=its.learning_rate)
    began = time.perf_counter()
    for epoch in range(its.epochs):
        drawn = torch.randperm(len(sources)).tolist()
        # Of about one length, drawn anew.
        pools = [sorted(drawn[at : at + 4096], key=lambda index: len(sources[index])) for at in range(0, len(drawn), 4096)]
        batches = [pool[at : at + its.batch_size] for pool in pools for at in range(0, len(pool), its.batch_size)]
        total, count = 0.0, 0
        for place in torch.randperm(len(batches)).tolist():
            batch = batches[place]
            labels = pad_sequence([targets[index] for index in batch], batch_first=True, padding_value=PAD)
            inputs = torch.cat([torch.full((len(batch), 1), end), labels[:, :-1].clamp(min=0)], dim=1)
            logits, _ = model.decode(inputs, model.encode([sources[index] for index in batch]))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), its.clip)
            optimizer.step()
            tokens = int((labels != PAD).sum())
            total, count = total + float(loss.detach()) * tokens, count + tokens
        print(f"epoch {epoch + 1}: loss {total / count:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    model.eval()
    test = read(its.test_source)
    found = [ids for at in range(0, len(test), 64) for ids in translate(model, test[at : at + 64], end)]
    references = [line.strip() for line in its.test_target.read_text(encoding="utf-8").splitlines()]
    bleu = BLEU()
    print(
        f"BLEU {bleu.corpus_score([tokenizer.decode(ids).strip() for ids in found], [references]).score:.2f} {bleu.get_signature()}"
    )


if __name__ == "__main__":
    main()
