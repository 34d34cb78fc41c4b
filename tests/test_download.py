"""Downloading corpora from a web server on this machine: resumed, checked, unpacked, or told how to do it by hand."""

from __future__ import annotations

import hashlib
import io
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hvd_lm.data import download
from hvd_lm.data.download import CORPORA, PUBLIC_CORPORA, PublicCorpus, RemoteFile, fetch
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.errors import DataError

TEXT = "".join(f"line {i} of a corpus\n" for i in range(3000))


class Server:
    """Serves a folder; knows ranges, and can break connections off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges: list[str | None] = []
        """The Range header of every request so far."""
        self.break_after: int | None = None
        """Bytes after which a connection is broken off."""
        self.knows_ranges = True
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.ranges.append(self.headers.get("Range"))
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                start = int(begin[1]) if begin and server.knows_ranges else 0
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][: server.break_after])

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.stop()


def begin_of(header: str | None) -> int:
    return int(str(header).removeprefix("bytes=").rstrip("-"))


def corpus_of(server: Server, name: str, data: bytes, pattern: str) -> PublicCorpus:
    """A corpus of one file, on the server."""
    (server.folder / name).write_bytes(data)
    file = RemoteFile((f"{server.address}/{name}",), f"sha256:{hashlib.sha256(data).hexdigest()}")
    return PublicCorpus((file,), {"training": pattern})


def zipped(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, TEXT)
    return buffer.getvalue()


def tarred(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(TEXT)
            archive.addfile(info, io.BytesIO(TEXT.encode()))
    return buffer.getvalue()


def test_plain_file(server: Server, tmp_path: Path) -> None:
    corpus = corpus_of(server, "text.txt", TEXT.encode(), "text.txt")
    assert fetch(corpus, tmp_path / "here") == {"training": [tmp_path / "here" / "text.txt"]}
    assert (tmp_path / "here" / "text.txt").read_text() == TEXT
    fetch(corpus, tmp_path / "here")
    assert len(server.ranges) == 1, "what is there is not downloaded again"


@pytest.mark.parametrize(("name", "pack"), [("a.zip", zipped), ("a.tar.gz", tarred)])
def test_archive(server: Server, tmp_path: Path, name: str, pack: Any) -> None:
    corpus = corpus_of(server, name, pack(["c/part-2", "c/part-1", "c/README"]), "**/part-*")
    files = fetch(corpus, tmp_path)["training"]
    assert [file.name for file in files] == ["part-1", "part-2"]
    assert files[0].read_text() == TEXT


@pytest.mark.parametrize(("name", "pack"), [("a.zip", zipped), ("a.tar.gz", tarred)])
@pytest.mark.parametrize("place", ["../outside", "/outside", "c/../../outside"])
def test_archive_that_reaches_outside(server: Server, tmp_path: Path, name: str, pack: Any, place: str) -> None:
    place = place.replace("/outside", f"{tmp_path}/outside") if place.startswith("/") else place
    corpus = corpus_of(server, name, pack(["c/part-1", place]), "**/part-*")
    with pytest.raises(DataError, match="would be written outside"):
        fetch(corpus, tmp_path / "here")
    assert not list(tmp_path.rglob("outside"))


def test_links_and_devices_of_an_archive_are_left(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for kind, name in ((tarfile.SYMTYPE, "part-1"), (tarfile.FIFOTYPE, "part-2"), (tarfile.LNKTYPE, "part-3")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
        info = tarfile.TarInfo("part-4")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT.encode()))
    files = fetch(corpus_of(server, "a.tar.gz", buffer.getvalue(), "**/part-*"), tmp_path)["training"]
    assert [file.name for file in files] == ["part-4"]


def test_an_archive_that_was_unpacked_in_part_is_unpacked_again(server: Server, tmp_path: Path) -> None:
    corpus = corpus_of(server, "a.zip", zipped(["c/part-1", "c/part-2"]), "**/part-*")
    (tmp_path / ".a.zip.unpacked.partial" / "c").mkdir(parents=True)
    (tmp_path / ".a.zip.unpacked.partial" / "c" / "part-1").write_text("half")
    for _ in range(2):
        assert [file.read_text() for file in fetch(corpus, tmp_path)["training"]] == [TEXT, TEXT]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_goes_on_where_it_broke(server: Server, tmp_path: Path, knows_ranges: bool) -> None:
    data = random.Random(1).randbytes(500_000)
    corpus = corpus_of(server, "text.bin", data, "text.bin")
    server.break_after, server.knows_ranges = 200_000, knows_ranges
    if knows_ranges:
        fetch(corpus, tmp_path / "here")  # three pieces
        assert server.ranges[0] is None
        assert [begin_of(header) > 0 for header in server.ranges[1:]] == [True, True]
    else:
        with pytest.raises(DataError, match=r"cannot download text\.bin"):
            fetch(corpus, tmp_path / "here")
        server.break_after = None
        fetch(corpus, tmp_path / "here")
    assert (tmp_path / "here" / "text.bin").read_bytes() == data


def test_an_interrupted_download_goes_on_in_the_next_run(server: Server, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(500_000)
    corpus = corpus_of(server, "text.bin", data, "text.bin")
    server.break_after = 100_000
    with pytest.raises(DataError, match=r"cannot download text\.bin"):
        fetch(corpus, tmp_path / "here")
    server.break_after = None
    fetch(corpus, tmp_path / "here")
    assert begin_of(server.ranges[-1]) >= 3 * 65536
    assert (tmp_path / "here" / "text.bin").read_bytes() == data


def test_a_download_that_was_complete_but_not_renamed(server: Server, tmp_path: Path) -> None:
    corpus = corpus_of(server, "text.txt", TEXT.encode(), "text.txt")
    (tmp_path / ".text.txt.partial").write_text(TEXT)
    fetch(corpus, tmp_path)
    assert (tmp_path / "text.txt").read_text() == TEXT


def test_the_rest_of_another_file_is_noticed_and_forgotten(server: Server, tmp_path: Path) -> None:
    corpus = corpus_of(server, "text.txt", TEXT.encode(), "text.txt")
    (tmp_path / ".text.txt.partial").write_text("something else")
    with pytest.raises(DataError, match="its checksum is not sha256:"):
        fetch(corpus, tmp_path)
    fetch(corpus, tmp_path)
    assert (tmp_path / "text.txt").read_text() == TEXT


def test_a_file_put_there_by_hand_is_taken(tmp_path: Path) -> None:
    file = RemoteFile(("http://127.0.0.1:9/text.txt",), f"sha256:{hashlib.sha256(TEXT.encode()).hexdigest()}")
    (tmp_path / "text.txt").write_text(TEXT)
    assert fetch(PublicCorpus((file,), {"training": "text.txt"}), tmp_path) == {"training": [tmp_path / "text.txt"]}


def test_the_second_address_is_taken_if_the_first_has_gone(server: Server, tmp_path: Path) -> None:
    corpus = corpus_of(server, "text.txt", TEXT.encode(), "text.txt")
    urls = (f"{server.address}/gone/text.txt", *corpus.files[0].urls)
    fetch(PublicCorpus((RemoteFile(urls, corpus.files[0].hash),), corpus.splits), tmp_path)
    assert (tmp_path / "text.txt").read_text() == TEXT


@pytest.mark.parametrize(("place", "reason"), [("http://127.0.0.1:9", "Connection refused"), ("SERVER", "HTTP 404")])
def test_offline_tells_what_to_put_where(server: Server, tmp_path: Path, place: str, reason: str) -> None:
    mirror = place.replace("SERVER", server.address)
    with pytest.raises(DataError) as caught:
        prepare(PrepareConfig(corpus="wikitext-2", out=tmp_path / "out", downloads=tmp_path / "here", mirror=mirror))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert reason in message
    assert message.endswith(
        f"download by hand https://wikitext.smerity.com/wikitext-2-v1.zip and put it at {tmp_path / 'here' / 'wikitext-2-v1.zip'}"
    )
    assert not (tmp_path / "out").exists()


def test_all_files_that_lack_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch(PUBLIC_CORPORA["ptb"], tmp_path, mirror="http://127.0.0.1:9")
    for part in ("train", "valid", "test"):
        assert f"/ptb.{part}.txt" in str(caught.value)
    assert str(caught.value).endswith(f"and put them into {tmp_path}")


def test_corpus_that_is_not_what_it_should_be(server: Server, tmp_path: Path) -> None:
    (server.folder / "ptb.train.txt").write_text("not the Penn Treebank\n")
    with pytest.raises(DataError, match="is not the file it should be"):
        prepare(PrepareConfig(corpus="ptb", out=tmp_path / "out", downloads=tmp_path, mirror=server.address))


def test_prepare_a_corpus(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shape of WikiText-2: an archive of three texts."""
    data = zipped([f"wikitext-2/wiki.{part}.tokens" for part in ("train", "valid", "test")])
    real = PUBLIC_CORPORA["wikitext-2"]
    file = RemoteFile(real.files[0].urls, f"sha256:{hashlib.sha256(data).hexdigest()}")
    monkeypatch.setitem(download.PUBLIC_CORPORA, "wikitext-2", PublicCorpus((file,), real.splits))
    (server.folder / "wikitext-2-v1.zip").write_bytes(data)
    prepared = prepare(PrepareConfig(corpus="wikitext-2", out=tmp_path / "out", downloads=tmp_path, mirror=server.address))
    assert {split: counts.lines for split, counts in prepared.counts.items()} == {
        "training": 3000, "validation": 3000, "test": 3000,
    }  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_has_a_checksum_and_a_training_split(name: Any) -> None:
    corpus = PUBLIC_CORPORA[name]
    assert "training" in corpus.splits
    for file in corpus.files:
        algorithm, digest = file.hash.split(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size
        assert all(url.startswith("https://") and url.endswith(f"/{file.name}") for url in file.urls)
