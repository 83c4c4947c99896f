"""What a shell completes: commands, options, models; in bash itself, too.

No torch: each press of tab starts the program.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_model

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


@pytest.fixture
def vqtok(tmp_path: Path) -> Path:
    """The command, as a script of that name."""
    path = tmp_path / "bin" / "vqtok"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    path.chmod(0o755)
    return path


def completions(vqtok: Path, line: str, shell: str = "bash") -> list[str]:
    words = {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": line,
    }
    fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    env = {**os.environ, **words, **fish, "_VQTOK_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([vqtok], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [word for word in done.stdout.splitlines() if word]


def test_commands_and_options_are_completed(vqtok: Path):
    assert completions(vqtok, "vqtok un") == ["unpack"]
    assert completions(vqtok, "vqtok encode --max") == ["--max-bytes", "--max-size"]
    assert completions(vqtok, "vqtok decode a.npz --device c") == ["cpu", "cuda"]
    assert completions(vqtok, "vqtok train --likelihood l") == ["l1", "logistic"]


@pytest.mark.slow
def test_models_are_completed(vqtok: Path, tmp_path: Path):
    make_model(tmp_path / "models" / "phantom", prior=None)
    assert completions(vqtok, "vqtok encode --model ph") == ["phantom", "photo"]
    assert completions(vqtok, "vqtok train --init c") == ["cifar10"]
    assert completions(vqtok, "vqtok encode --model ./ph") == []  # the shell goes on with files


def test_the_help_beside_a_completion_is_one_line(vqtok: Path):
    (line,) = completions(vqtok, "vqtok encode --mod", "fish")
    assert line.endswith("else photo.")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes(vqtok: Path):
    """What `--show-completion` prints, read by a bash that then completes a line."""
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
