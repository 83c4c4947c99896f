"""What a shell completes: commands, options, models; in bash itself, too.

No torch: each press of tab starts the program.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import make_model

from vqtok import cli

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from vqtok.__main__ import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def completions(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    shell: str = "bash",
) -> list[str]:
    words = {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_VQTOK_COMPLETE": f"complete_{shell}",
        "COLUMNS": "80",  # the command sets it anew
    }
    with monkeypatch.context() as patch:
        for name, value in words.items():
            patch.setenv(name, value)
        build = cli.build_app
        patch.setattr(cli, "build_app", lambda names: partial(build(names), prog_name="vqtok"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.err) == (0, "")
    return [word for word in shown.out.splitlines() if word]


Complete = Callable[..., list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """What is offered for a line: `complete(line)`, in bash, or `complete(line, shell)`."""
    return partial(completions, monkeypatch, capsys)


def test_commands_and_options_are_completed(complete: Complete):
    assert complete("vqtok un") == ["unpack"]
    assert complete("vqtok encode --max") == ["--max-bytes", "--max-size"]
    assert complete("vqtok decode a.npz --device c") == ["cpu", "cuda"]
    assert complete("vqtok train --likelihood l") == ["l1", "logistic"]


def test_models_are_completed(complete: Complete, tmp_path: Path):
    make_model(tmp_path / "models" / "phantom", prior=None)
    assert complete("vqtok encode --model ph") == ["phantom", "photo"]
    assert complete("vqtok train --init c") == ["cifar10"]
    assert complete("vqtok encode --model ./ph") == []  # the shell goes on with files


def test_the_help_beside_a_completion_is_one_line(complete: Complete):
    (line,) = complete("vqtok encode --mod", "fish")
    assert line.endswith("else photo.")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes(tmp_path: Path):
    """What `--show-completion` prints, read by a bash that then completes a line; the command is a
    script of that name.
    """
    vqtok = tmp_path / "bin" / "vqtok"
    vqtok.parent.mkdir()
    vqtok.write_text(SCRIPT)
    vqtok.chmod(0o755)
    script = (
        'eval "$1"; COMP_WORDS=(vqtok decode --model ci); COMP_CWORD=3; '
        '_vqtok_completion vqtok; echo "${COMPREPLY[@]}"'
    )
    shown = subprocess.run(
        [vqtok],
        env={**os.environ, "_VQTOK_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    env = {**os.environ, "PATH": f"{vqtok.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script, "bash", shown.stdout],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("cifar10\n", "")
