"""The build of Horovod: patches, the key of a build, the cache, the check of what is installed. Nothing is compiled here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hvd_lm.job import build_horovod, horovod_patches
from hvd_lm.job.build_horovod import (
    HOROVOD_VERSION,
    BuildError,
    Mpi,
    apply_patches,
    build_environment,
    build_key,
    cache_directory,
    cached_wheel,
    check_installed,
    is_build_variable,
    store,
)
from hvd_lm.job.horovod_patches import Hunk, PatchError, parse

KEY = "0123456789ab"
WANTED = f"{HOROVOD_VERSION}+hvdlm.{KEY}"
FRAMEWORKS = {"torch": "2.13.0", "tensorflow": "2.21.0"}
MPI = Mpi("mpirun (Open MPI) 4.1.8", "/usr/bin/mpicxx")
PATCHES = horovod_patches.patches()
HUNKS = [(patch.name, hunk) for patch in PATCHES for hunk in patch.hunks]
COMPILER = "g++ (Debian 12.2.0-14) 12.2.0"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment may steer a build here."""
    steering = [name for name in os.environ if is_build_variable(name)]
    for name in [*steering, "HVD_LM_CACHE", "XDG_CACHE_HOME"]:
        monkeypatch.delenv(name, raising=False)


# --- patches ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source tree that holds the text of every hunk once, between other lines."""
    files: dict[str, str] = {"horovod/__init__.py": f"from a import b\n\n__version__ = '{HOROVOD_VERSION}'\n"}
    for name, hunk in HUNKS:
        files[hunk.file] = files.get(hunk.file, "# start\n") + f"# before {name}\n{hunk.old}\n# after\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_patch_is_applied(source: Path) -> None:
    apply_patches(source, KEY)
    for name, hunk in HUNKS:
        assert (source / hunk.file).read_text().count(f"# before {name}\n{hunk.new}") == 1
    assert f"__version__ = '{WANTED}'" in (source / "horovod" / "__init__.py").read_text()


def test_what_is_between_patches_stays(source: Path) -> None:
    expected = {path: path.read_text() for path in source.rglob("*") if path.is_file()}
    for _, hunk in HUNKS:
        expected[source / hunk.file] = expected[source / hunk.file].replace(hunk.old, hunk.new)
    apply_patches(source, KEY)
    del expected[source / "horovod" / "__init__.py"]
    for path, text in expected.items():
        assert path.read_text() == text


def test_every_applied_patch_is_told_with_its_reason(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apply_patches(source, KEY)
    printed = capsys.readouterr().out
    for patch in PATCHES:
        assert patch.why
        assert f"patch {patch.name}: {patch.why}\n" in printed


def test_patched_tree_is_not_patched_again(source: Path) -> None:
    apply_patches(source, KEY)
    with pytest.raises(PatchError, match=PATCHES[0].name):
        apply_patches(source, KEY)


@pytest.mark.parametrize("case", HUNKS, ids=lambda case: f"{case[0]} {case[1].file}")
@pytest.mark.parametrize("times", [0, 2])
def test_text_of_a_patch_must_occur_once(source: Path, case: tuple[str, Hunk], times: int) -> None:
    name, hunk = case
    path = source / hunk.file
    path.write_text(path.read_text().replace(hunk.old, (hunk.old + "\n") * times))
    with pytest.raises(PatchError) as caught:
        apply_patches(source, KEY)
    assert str(caught.value) == f"patch {name}: its text occurs {times} times in {hunk.file}, not once"


def test_patch_is_read_as_a_reason_and_a_unified_diff() -> None:
    text = "why,\nin two lines\n--- a/x/y.h\n+++ b/x/y.h\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n@@ -9 +9,2 @@ f()\n nine\n+ten\n"
    text += "--- a/z\n+++ b/z\n@@ -1,2 +1 @@\n \n--- gone\n"
    patch = parse("name", text)
    assert patch.why == "why, in two lines"
    assert patch.hunks == (
        Hunk("x/y.h", "one\ntwo\nthree\n", "one\n2\nthree\n"),
        Hunk("x/y.h", "nine\n", "nine\nten\n"),
        Hunk("z", "\n-- gone\n", "\n"),
    )


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_headers_of_hunks_count_their_lines(patch: horovod_patches.Patch) -> None:
    """`git apply` and `patch` go by them."""
    text = (horovod_patches.FOLDER / f"{patch.name}.patch").read_text()
    headers = re.findall(r"^@@ -\d+,(\d+) \+\d+,(\d+) @@", text, flags=re.MULTILINE)
    assert patch.hunks
    assert [(int(old), int(new)) for old, new in headers] == [(hunk.old.count("\n"), hunk.new.count("\n")) for hunk in patch.hunks]


def test_lines_end_as_before(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\ntwo\r\n")
    horovod_patches.apply(horovod_patches.Patch("name", "why", (Hunk("x", "one\n", "1\n"),)), tmp_path)
    assert (tmp_path / "x").read_bytes() == b"1\ntwo\r\n"


def test_source_of_another_version_is_refused(source: Path) -> None:
    (source / "horovod" / "__init__.py").write_text("__version__ = '0.29.0'\n")
    with pytest.raises(PatchError, match="version-label"):
        apply_patches(source, KEY)


def test_a_copy_runs_by_its_path_without_any_package(tmp_path: Path) -> None:
    """An image copies the recipe and its patches, and runs it before anything is installed."""
    recipe = Path(build_horovod.__file__)
    shutil.copy(recipe, tmp_path)
    shutil.copytree(recipe.with_name("horovod_patches"), tmp_path / "horovod_patches")
    command = [sys.executable, "-S", "-E", str(tmp_path / recipe.name), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "install torch or TensorFlow first" in done.stderr
    assert done.returncode == 2


# --- the key ---------------------------------------------------------------------------------------------


def test_key_is_stable_and_fits_a_local_version() -> None:
    key = build_key(FRAMEWORKS, MPI, COMPILER)
    assert key == build_key(dict(reversed(FRAMEWORKS.items())), MPI, COMPILER)
    assert len(key) == 12
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("frameworks", "mpi", "compiler"),
    [
        ({"torch": "2.13.0"}, MPI, COMPILER),
        ({"tensorflow": "2.21.0"}, MPI, COMPILER),
        ({**FRAMEWORKS, "torch": "2.13.1"}, MPI, COMPILER),
        ({**FRAMEWORKS, "torch": "2.13.0+cu130"}, MPI, COMPILER),
        (FRAMEWORKS, None, COMPILER),
        (FRAMEWORKS, Mpi("mpirun (Open MPI) 5.0.0", MPI.compiler), COMPILER),
        (FRAMEWORKS, Mpi(MPI.version, "/opt/mpi/bin/mpicxx"), COMPILER),
        (FRAMEWORKS, MPI, "g++ (Debian 14.2.0-19) 14.2.0"),
    ],
)
def test_key_changes_with_frameworks_mpi_and_compiler(frameworks: dict[str, str], mpi: Mpi | None, compiler: str) -> None:
    assert build_key(frameworks, mpi, compiler) != build_key(FRAMEWORKS, MPI, COMPILER)


@pytest.mark.parametrize("change", ["patch changed", "patch added", "recipe changed"])
def test_key_changes_with_the_recipe_and_its_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    patches = shutil.copytree(horovod_patches.FOLDER, tmp_path / "patches")
    recipe = Path(shutil.copy(build_horovod.__file__, tmp_path))
    monkeypatch.setattr(horovod_patches, "FOLDER", patches)
    monkeypatch.setattr(build_horovod, "__file__", str(recipe))
    before = build_key(FRAMEWORKS, MPI, COMPILER)
    changed = {
        "patch changed": patches / f"{PATCHES[0].name}.patch",
        "patch added": patches / "another.patch",
        "recipe changed": recipe,
    }[change]
    with changed.open("a") as file:
        file.write("\n")
    assert build_key(FRAMEWORKS, MPI, COMPILER) != before


BUILD_VARIABLES = [
    "HOROVOD_WITH_MPI",
    "HOROVOD_WITHOUT_GLOO",
    "HOROVOD_WITHOUT_TENSORFLOW",
    "HOROVOD_GPU",
    "HOROVOD_GPU_OPERATIONS",
    "HOROVOD_GPU_ALLREDUCE",
    "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_CUDA_HOME",
    "HOROVOD_NCCL_HOME",
    "HOROVOD_NCCL_LINK",
    "HOROVOD_ROCM_HOME",
    "HOROVOD_BUILD_CUDA_CC_LIST",
    "HOROVOD_BUILD_ARCH_FLAGS",
    "HOROVOD_NVTX_INCLUDE",
    "HOROVOD_DEBUG",
    "HOROVOD_SKIP_COMPILE",
    "HOROVOD_ALLOW_MIXED_GPU_IMPL",
    "HOROVOD_CMAKE",
]
RUN_TIME_VARIABLES = [
    "HOROVOD_FUSION_THRESHOLD",
    "HOROVOD_CYCLE_TIME",
    "HOROVOD_AUTOTUNE",
    "HOROVOD_TIMELINE",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "HOROVOD_CONTROLLER",
    "HOROVOD_GLOO_IFACE",
    "HOROVOD_GLOO_TIMEOUT_SECONDS",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
    "HOROVOD_HIERARCHICAL_ALLREDUCE",
    "HOROVOD_NUM_NCCL_STREAMS",
    "HOROVOD_LOG_LEVEL",
    "HVD_LM_CACHE",
    "NCCL_DEBUG",
    "PATH_OF_HOROVOD_WITH_MPI",
]


@pytest.mark.parametrize("name", BUILD_VARIABLES)
def test_key_changes_with_a_build_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert is_build_variable(name)
    keys = {build_key(FRAMEWORKS, MPI, COMPILER)}
    for value in ("1", "/opt/other"):
        monkeypatch.setenv(name, value)
        keys.add(build_key(FRAMEWORKS, MPI, COMPILER))
    assert len(keys) == 3


@pytest.mark.parametrize("name", RUN_TIME_VARIABLES)
def test_key_does_not_change_with_a_run_time_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not is_build_variable(name)
    before = build_key(FRAMEWORKS, MPI, COMPILER)
    monkeypatch.setenv(name, "67108864")
    assert build_key(FRAMEWORKS, MPI, COMPILER) == before


def test_environments_that_bring_the_same_mpi_share_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for scripts in ("/home/a/venv/bin", "/home/b/venv/bin"):
        monkeypatch.setattr(sysconfig, "get_path", lambda _, scripts=scripts: scripts)
        keys.add(build_key(FRAMEWORKS, Mpi(MPI.version, f"{scripts}/mpicxx"), COMPILER))
    assert len(keys) == 1


def test_build_is_told_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "NCCL")
    env = build_environment({"torch": "2.13.0"}, None)
    told = {name: value for name, value in env.items() if name.startswith("HOROVOD_")}
    assert told == {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_GPU_OPERATIONS": "NCCL",
    }
    assert env["PATH"].split(":")[0] == sysconfig.get_path("scripts")


# --- the cache -------------------------------------------------------------------------------------------


def wheel_in(folder: Path, content: bytes = b"PK wheel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"horovod-{WANTED}-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(content)
    return wheel


def test_stored_wheel_is_found(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / KEY
    stored = store(wheel_in(tmp_path / "dist"), entry)
    assert cached_wheel(entry) == stored
    assert stored.parent == entry
    assert stored.read_bytes() == b"PK wheel"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [KEY], "nothing half-written is left"


def test_empty_cache_has_no_wheel(tmp_path: Path) -> None:
    assert cached_wheel(tmp_path / "nowhere") is None


def test_stored_wheel_replaces_the_older_one(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / KEY
    store(wheel_in(tmp_path / "dist", b"old"), entry)
    stored = store(wheel_in(tmp_path / "dist", b"new"), entry)
    assert cached_wheel(entry) == stored
    assert stored.read_bytes() == b"new"


@pytest.mark.parametrize("damage", ["tampered", "truncated", "no checksum", "empty checksum", "second wheel"])
def test_broken_entry_is_told_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    entry = tmp_path / "cache" / KEY
    stored = store(wheel_in(tmp_path / "dist"), entry)
    match damage:
        case "tampered":
            stored.write_bytes(b"PK wheeL")
        case "truncated":
            stored.write_bytes(b"PK")
        case "no checksum":
            (entry / "sha256").unlink()
        case "empty checksum":
            (entry / "sha256").write_text("")
        case "second wheel":
            (entry / "another.whl").write_bytes(b"PK")
    assert cached_wheel(entry) is None
    assert not entry.exists()
    assert str(entry) in capsys.readouterr().out
    assert store(wheel_in(tmp_path / "dist"), entry) == cached_wheel(entry)


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "hvd_lm" / "horovod"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "hvd_lm" / "horovod"
    monkeypatch.setenv("HVD_LM_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own" / "horovod"


def open_to_others(path: Path, _: pytest.MonkeyPatch) -> None:
    path.chmod(0o777)


def of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.stat_result((*path.stat()[:4], 4711, *path.stat()[5:]))
    whole = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda self: status if self == path else whole(self))


@pytest.mark.parametrize("place", ["", "horovod", f"horovod/{KEY}"])
@pytest.mark.parametrize(
    ("change", "words"), [(open_to_others, "can be written by others"), (of_another_user, "belongs to another user")]
)
def test_a_wheel_that_another_user_could_have_written_is_refused(
    place: str,
    change: Callable[[Path, pytest.MonkeyPatch], None],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HVD_LM_CACHE", str(tmp_path / "cache"))
    entry = cache_directory() / KEY
    assert store(wheel_in(tmp_path / "dist"), entry) == cached_wheel(entry)
    change(tmp_path / "cache" / place, monkeypatch)
    for use in (cached_wheel, partial(store, wheel_in(tmp_path / "dist"))):
        with pytest.raises(BuildError, match=words) as caught:
            use(entry)
        assert str(tmp_path / "cache" / place) in str(caught.value)


def test_the_cache_is_made_for_one_user_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVD_LM_CACHE", str(tmp_path / "below" / "cache"))
    entry = cache_directory() / KEY
    before = os.umask(0)
    try:
        store(wheel_in(tmp_path / "dist"), entry)
    finally:
        os.umask(before)
    assert cached_wheel(entry)


def test_without_a_home_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(BuildError, match="set HVD_LM_CACHE"):
        cache_directory()


@pytest.mark.parametrize("name", ["HVD_LM_CACHE", "XDG_CACHE_HOME"])
def test_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "")
    assert cache_directory() == tmp_path / ".cache" / "hvd_lm" / "horovod"


# --- what comes from elsewhere ---------------------------------------------------------------------------


def test_the_source_is_the_one_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setup.py runs as this user, so that pip must compare the sum first."""
    asked: list[tuple[str, ...]] = []

    def download(*words: str, **_: object) -> str:
        asked.append(words)
        wanted = Path(words[words.index("-r") + 1]).read_text()
        assert wanted == f"horovod=={HOROVOD_VERSION} --hash=sha256:{build_horovod.HOROVOD_SHA256}\n"
        raise BuildError("THESE PACKAGES DO NOT MATCH THE HASHES")

    monkeypatch.setattr(build_horovod, "pip", download)
    with pytest.raises(BuildError, match="DO NOT MATCH"), build_horovod.unpacked_sdist():
        pass
    (words,) = asked
    assert "--require-hashes" in words
    assert re.fullmatch("[0-9a-f]{64}", build_horovod.HOROVOD_SHA256)


@pytest.mark.parametrize("flags", [[], ["--check"], ["--check", "--install-system-packages"], ["--install-system-packages"]])
def test_the_system_is_changed_only_if_asked_for_and_said_before(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}

    def run(command: list[str], **_: object) -> str:
        if command[0] == "apt-get":
            said.setdefault("before", capsys.readouterr().out)
        return "g++ 12"

    monkeypatch.setattr(build_horovod, "installed_frameworks", lambda: FRAMEWORKS)
    monkeypatch.setattr(build_horovod, "check_installed", lambda *_: None)
    monkeypatch.setattr(build_horovod, "find_mpi", lambda: MPI)
    monkeypatch.setattr(build_horovod, "can_use_apt", lambda: True)
    monkeypatch.setattr(build_horovod, "run", run)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    code = build_horovod.main(flags)
    if flags == ["--install-system-packages"]:
        assert code == 0
        assert "apt-get install -y -qq --no-install-recommends g++ make" in said["before"]
    else:
        assert code == 2
        assert said == {}
        assert "--install-system-packages" in capsys.readouterr().err


# --- what is installed -----------------------------------------------------------------------------------


def pretend_installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(build_horovod, "installed_version", lambda *_: version)


def test_missing_horovod_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, None)
    assert check_installed(FRAMEWORKS, MPI, KEY) == "Horovod is not installed"


@pytest.mark.parametrize("version", [HOROVOD_VERSION, "0.27.0", f"{HOROVOD_VERSION}+hvdlm.ba9876543210", f"{WANTED}0"])
def test_foreign_version_is_reported(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend_installed(monkeypatch, version)
    problem = check_installed(FRAMEWORKS, MPI, KEY)
    assert problem is not None
    assert problem.startswith(f"Horovod {version} was built for other versions")


def test_wanted_build_that_loads_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, WANTED)
    asked: list[str] = []

    def loads(command: list[str], **_: object) -> str:
        asked.append(command[-1])
        return ""

    monkeypatch.setattr(build_horovod, "run", loads)
    assert check_installed(FRAMEWORKS, MPI, KEY) is None
    assert [name for name in FRAMEWORKS if any(f"horovod.{name} " in code for code in asked)] == list(FRAMEWORKS)


def test_wanted_build_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, WANTED)

    def broken(command: list[str], **_: object) -> str:
        if "horovod.tensorflow" in command[-1]:
            raise BuildError("undefined symbol: _ZN10tensorflow")
        return ""

    monkeypatch.setattr(build_horovod, "run", broken)
    problem = check_installed(FRAMEWORKS, MPI, KEY)
    assert problem is not None
    assert "tensorflow does not load" in problem
    assert "undefined symbol" in problem


def test_installed_version_of_the_first_that_is_there() -> None:
    assert build_horovod.installed_version("no-such-distribution") is None
    assert build_horovod.installed_version("no-such-distribution", "pytest") == pytest.__version__


def test_framework_under_another_distribution_name(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"tensorflow-cpu": "2.21.0"}
    monkeypatch.setattr(
        build_horovod, "installed_version", lambda *names: next((present[name] for name in names if name in present), None)
    )
    assert build_horovod.installed_frameworks() == {"tensorflow": "2.21.0"}


# --- the command -----------------------------------------------------------------------------------------


def test_failed_command_is_told_with_the_end_of_its_output(tmp_path: Path) -> None:
    code = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(BuildError) as caught:
        build_horovod.run([sys.executable, "-c", code], cwd=tmp_path)
    lines = str(caught.value).splitlines()
    assert "ended with 3" in str(caught.value)
    assert lines[-1] == "line 99"
    assert "line 10" not in lines


def test_without_a_framework_nothing_is_built(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build_horovod, "installed_frameworks", dict)
    assert build_horovod.main([]) == 2
    assert "install torch or TensorFlow first" in capsys.readouterr().err


@pytest.mark.parametrize(("problem", "code"), [(None, 0), ("Horovod is not installed", 1)])
def test_check_tells_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str | None, code: int
) -> None:
    monkeypatch.setattr(build_horovod, "installed_frameworks", lambda: FRAMEWORKS)
    monkeypatch.setattr(build_horovod, "ensure_compiler", lambda _: COMPILER)
    monkeypatch.setattr(build_horovod, "find_mpi", lambda: MPI)
    monkeypatch.setattr(build_horovod, "check_installed", lambda *_: problem)
    assert build_horovod.main(["--check"]) == code
    assert (problem or "is in place") in capsys.readouterr().out
