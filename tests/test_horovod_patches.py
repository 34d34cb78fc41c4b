"""The patches of Horovod: each is applied once, where its text is, and told with its reason."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hvd_lm.job import build_horovod, horovod_patches
from hvd_lm.job.build_horovod import (
    HOROVOD_VERSION,
    apply_patches,
)
from hvd_lm.job.horovod_patches import Hunk, PatchError, parse

KEY = "0123456789ab"
WANTED = f"{HOROVOD_VERSION}+hvdlm.{KEY}"
PATCHES = horovod_patches.patches(gpu=True)
RECIPE = ("build_horovod.py", "build_tools.py", "wheel_cache.py", "cuda_from_pip.py")
HUNKS = [(patch.name, hunk) for patch in PATCHES for hunk in patch.hunks]


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
    apply_patches(source, KEY, gpu=True)
    for name, hunk in HUNKS:
        assert (source / hunk.file).read_text().count(f"# before {name}\n{hunk.new}") == 1
    assert f"__version__ = '{WANTED}'" in (source / "horovod" / "__init__.py").read_text()


def test_what_is_between_patches_stays(source: Path) -> None:
    expected = {path: path.read_text() for path in source.rglob("*") if path.is_file()}
    for _, hunk in HUNKS:
        expected[source / hunk.file] = expected[source / hunk.file].replace(hunk.old, hunk.new)
    apply_patches(source, KEY, gpu=True)
    del expected[source / "horovod" / "__init__.py"]
    for path, text in expected.items():
        assert path.read_text() == text


def test_every_applied_patch_is_told_with_its_reason(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apply_patches(source, KEY, gpu=True)
    printed = capsys.readouterr().out
    for patch in PATCHES:
        assert patch.why
        assert f"patch {patch.name}: {patch.why}\n" in printed


def test_patches_for_gpus_are_left_out_elsewhere(source: Path) -> None:
    ours = {patch.name for patch in PATCHES} - {patch.name for patch in horovod_patches.patches()}
    assert ours == {path.stem for path in (horovod_patches.FOLDER / "gpu").iterdir()}
    apply_patches(source, KEY)
    for name, hunk in HUNKS:
        assert ((source / hunk.file).read_text().count(f"# before {name}\n{hunk.old}") == 1) == (name in ours)


def test_patched_tree_is_not_patched_again(source: Path) -> None:
    apply_patches(source, KEY, gpu=True)
    with pytest.raises(PatchError, match=PATCHES[0].name):
        apply_patches(source, KEY, gpu=True)


@pytest.mark.parametrize("case", HUNKS, ids=lambda case: f"{case[0]} {case[1].file}")
@pytest.mark.parametrize("times", [0, 2])
def test_text_of_a_patch_must_occur_once(source: Path, case: tuple[str, Hunk], times: int) -> None:
    name, hunk = case
    path = source / hunk.file
    path.write_text(path.read_text().replace(hunk.old, (hunk.old + "\n") * times))
    with pytest.raises(PatchError) as caught:
        apply_patches(source, KEY, gpu=True)
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
    (file,) = horovod_patches.FOLDER.rglob(f"{patch.name}.patch")
    text = file.read_text()
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
        apply_patches(source, KEY, gpu=True)


def test_a_copy_runs_by_its_path_without_any_package(tmp_path: Path) -> None:
    """An image copies the recipe and its patches, and runs it before anything is installed."""
    recipe = Path(build_horovod.__file__)
    for name in RECIPE:
        shutil.copy(recipe.with_name(name), tmp_path)
    shutil.copytree(recipe.with_name("horovod_patches"), tmp_path / "horovod_patches")
    command = [sys.executable, "-S", "-E", str(tmp_path / recipe.name), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "install torch or TensorFlow first" in done.stderr
    assert done.returncode == 2
