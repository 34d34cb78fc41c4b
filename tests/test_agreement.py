"""What ranks must have in common, and the trouble of one of them: the words in which all of them learn of it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from hvd_lm.config import DataConfig, RunConfig
from hvd_lm.errors import BugError, CheckpointError, ConfigError, HvdLmError, LostWorkerError, TrainingError
from hvd_lm.job import agreement
from hvd_lm.job.agreement import Trouble, settings, source_digest

PLACES = ["rank 0 on one", "rank 1 on one", "rank 2 on two"]


def verdicts(*values: dict[str, Any], errors: dict[int, Exception] | None = None) -> list[Exception | None]:
    """Of every rank, each with its values."""
    troubles = [Trouble() for _ in values]
    for rank, error in (errors or {}).items():
        troubles[rank].note(error)
    words = [trouble.word(its) for trouble, its in zip(troubles, values, strict=True)]
    return [trouble.verdict(words, PLACES[: len(values)]) for trouble in troubles]


def test_ranks_that_agree_have_nothing_to_raise() -> None:
    values = {"read another text": "a" * 64, "have another --seed": 1}
    assert verdicts(values, dict(values)) == [None, None]


def test_what_differs_is_named_on_all_ranks_alike() -> None:
    first = {"read another text": "a" * 64, "have another --seed": 1}
    found = verdicts(first, {**first, "have another --seed": 2}, {"read another text": "b" * 64, "have another --seed": 2})
    assert len({str(error) for error in found}) == 1
    assert all(isinstance(error, ConfigError) for error in found)
    message = str(found[0])
    assert "1 of 3 ranks read another text than rank 0 (rank 2 on two)" in message
    assert "2 of 3 ranks have another --seed than rank 0 (2 instead of 1: rank 1 on one, rank 2 on two)" in message
    assert "give every host the same files, settings and versions" in message
    assert "\n" not in message


def test_many_differences_stay_one_line() -> None:
    message = str(verdicts({f"have another --{name}": 1 for name in "abcdefgh"}, {})[1])
    assert "--a" in message
    assert "--e" not in message
    assert "4 more differences" in message


def test_what_only_one_rank_tells_differs() -> None:
    """A rank with another hvd_lm may have other settings."""
    assert "1 of 2 ranks have another --new than rank 0 (3 instead of None" in str(verdicts({}, {"have another --new": 3})[0])


@pytest.mark.parametrize("error", [CheckpointError("no checkpoint"), TrainingError("not finite"), LostWorkerError("gone")])
def test_trouble_of_one_rank_is_raised_by_all_with_its_exit_code(error: HvdLmError) -> None:
    first, second, third = verdicts({}, {"different": 1}, {}, errors={1: error})
    assert second is error
    for told in (first, third):
        assert type(told) is type(error)
        assert str(told) == f"{error} (rank 1 on one)"
        assert told.exit_code == error.exit_code


def test_an_error_of_the_system_is_no_bug() -> None:
    told, _ = verdicts({}, {}, errors={1: OSError(errno.ENOSPC, "whatever the library says", "a/b")})
    assert isinstance(told, HvdLmError)
    words = "No space left on device (a/b); make room there, or name another place (rank 1 on one)"
    assert (str(told), told.exit_code) == (words, 2)


def test_a_bug_on_one_rank_is_told_with_its_traceback() -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    trouble = Trouble()
    with trouble.noted():
        broken()
    assert isinstance(trouble.error, ZeroDivisionError)
    told, own = verdicts({}, {}, errors={1: trouble.error})
    assert own is trouble.error
    assert isinstance(told, BugError)
    assert told.exit_code == 1
    assert "rank 1 on one failed" in str(told)
    assert "in broken" in str(told)
    assert str(told).endswith("ZeroDivisionError: by zero")


def test_the_first_error_counts() -> None:
    trouble = Trouble()
    for words in ("the cause", "what came of it"):
        with trouble.noted():
            raise ConfigError(words)
    assert str(trouble.error) == "the cause"


def test_errors_of_communication_are_raised_at_once() -> None:
    """The others will not hear of them."""
    trouble = Trouble(at_once=(ConnectionError,))
    with pytest.raises(ConnectionResetError), trouble.noted():
        raise ConnectionResetError
    assert trouble.error is None


def test_settings_are_those_of_all_sections() -> None:
    one = RunConfig(out=Path("one"), data=DataConfig(data=(Path("x"),), batch_size=4))
    other = RunConfig(out=Path("other"), data=DataConfig(batch_size=8))
    found, others = (settings(config, without=("out", "data")) for config in (one, other))
    assert found["have another --batch-size"] == 4
    assert {name for name in found if found[name] != others[name]} == {"have another --batch-size"}


def test_the_digest_of_the_source_tells_two_states_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [source_digest()]
    shutil.copytree(Path(agreement.__file__).parent.parent, tmp_path / "hvd_lm")
    monkeypatch.setattr(agreement, "__file__", str(tmp_path / "hvd_lm" / "job" / "agreement.py"))
    for _ in range(2):
        source_digest.cache_clear()
        digests.append(source_digest())
        with (tmp_path / "hvd_lm" / "errors.py").open("a") as file:
            file.write("# one line more\n")
    source_digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]
