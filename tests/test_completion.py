"""What a shell completes: commands, then their flags, then files."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from hvd_lm.command_line.commands import COMMANDS, main


def completed(words: list[str], script: str) -> set[str]:
    """By bash, of the last of `words`."""
    typed = " ".join(word or '""' for word in words)
    body = f'{script}\nCOMP_WORDS=(hvd-lm {typed})\nCOMP_CWORD={len(words)}\n_hvd_lm\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    ended = subprocess.run(["bash", "-c", body], capture_output=True, text=True, check=True)
    assert not ended.stderr
    return set(ended.stdout.split())


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed([""], script) == set(COMMANDS)
    assert completed(["tr"], script) == {"train", "translate"}
    assert completed(["train", "--learning-rate"], script) == {"--learning-rate", "--learning-rate-scaling"}
    assert completed(["train", "--steps", "5", "--weight-d"], script) == {"--weight-decay", "--weight-dropout"}
    assert completed(["translate", ""], script) == {"train", "apply", "evaluate"}
    assert completed(["translate", "a"], script) == {"apply"}
    assert completed(["translate", "apply", "--bea"], script) == {"--beams"}
    assert completed(["sentiment", "predict", "--j"], script) == {"--json"}
    assert completed(["train", "README"], script) == set(), "a file, which is bash's own"
    assert "complete -o default" in script


def test_zsh_can_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("autoload")
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", "-c", script], check=True)


def test_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in {("fish",): "no completion for 'fish': choose one of bash, zsh", (): "give the shell"}.items():
        assert main(["completion", *argv]) == 2
        assert words in capsys.readouterr().err
