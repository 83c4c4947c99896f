"""The commands' help, options that do something, terminals and pipes, and the
commands as real processes.
"""

import errno
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from cli_helpers import fails, ok, run, save, size_of, snapshot
from conftest import image, make_model
from PIL import Image
from rich.console import Console
from rich.table import Table

import vqtok
from vqtok import codec, codes, weights
from vqtok.cli import app, output

MINE = ("encode", "decode", "truncate", "pack", "unpack", "sample", "eval", "info", "models")
COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

pytestmark = pytest.mark.usefixtures("toy")


# Help, and no dead option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str):
    command = COMMANDS[name]
    assert command.help
    assert len(command.help.splitlines()[0]) <= 72  # one line in the list of commands
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        assert parameter.help.endswith("."), f"{name} {parameter.name}: {parameter.help}"
    shown = " ".join(ok(name, "--help").stdout.split())
    for parameter in command.params:
        assert all(option in shown for option in parameter.opts if option.startswith("-"))


def test_overview_lists_every_command():
    shown = ok("--help").stdout
    assert all(re.search(rf"^  {name} .*\w", shown, re.MULTILINE) for name in COMMANDS)
    # no help that is cut off
    assert "..." not in shown.split("Commands:")[1].replace("[ARGS]...", "")


class Case:
    """An option, words of a command that it must change the outcome of,
    and files that exist before.
    """

    def __init__(
        self, command: str, option: str, value: str | None, *words: str, before: Sequence[str] = ()
    ) -> None:
        self.command, self.option, self.value, self.words, self.before = (
            command,
            option,
            value,
            words,
            before,
        )

    def __repr__(self) -> str:
        return f"{self.command} {self.option}"


CASES = [
    Case("encode", "--output", "o.npz", "a.png"),
    Case("encode", "--model", "other", "a.png"),
    # of a model with one: an error. What they do: test_cli_levels.py
    Case("encode", "--levels", "2", "a.png"),
    Case("encode", "--bpp", "0.01", "a.png"),
    Case("encode", "--max-bytes", "9", "a.png"),
    Case("encode", "--force", None, "a.png", before=["a.npz"]),
    Case("encode", "--skip-existing", None, "a.png", before=["a.npz"]),
    Case("encode", "--background", "black", "alpha.png"),
    # what they do: test_data_names.py, test_effort.py
    Case("encode", "--member", "seg.png", "images"),
    Case("encode", "--target", "psnr:99", "a.png"),
    Case("encode", "--lpips", "none.safetensors", "a.png"),
    # what they do: test_bulk_crops.py, test_images.py
    Case("encode", "--size", "8", "large.png", "--json"),
    Case("encode", "--max-size", "8", "large.png", "--json"),
    Case("encode", "--crop", "ten", "large.png", "--size", "8", "--json"),
    Case("encode", "--moved", "1", "large.png", "--json"),
    Case("encode", "--flip", None, "large.png", "--json"),
    Case("encode", "--seed", "9", "large.png", "--size", "64", "--crop", "random:2", "--json"),
    Case("encode", "--range", "0:1000", "deep.png"),
    Case("encode", "--effort", "9", "a.png", "--json"),
    Case("encode", "--goal", "nonsense", "a.png"),
    Case("encode", "--device", "nonsense", "a.png"),
    Case("encode", "--precision", "bf16", "large.png"),
    Case("encode", "--fast", None, "large.png"),
    Case("encode", "--json", None, "a.png"),
    Case("encode", "--quiet", None, "a.png"),
    Case("encode", "--verbose", None, "a.png"),
    Case("decode", "--output", "o.png", "ready.npz"),
    Case("decode", "--model", "other", "ready.npz"),
    Case("decode", "--levels", "2", "ready.npz"),
    Case("decode", "--force", None, "ready.npz", before=["ready.decoded.png"]),
    Case("decode", "--skip-existing", None, "ready.npz", before=["ready.decoded.png"]),
    Case("decode", "--device", "nonsense", "ready.npz"),
    Case("decode", "--precision", "bf16", "ready.npz"),
    Case("decode", "--fast", None, "ready.npz"),
    Case("decode", "--json", None, "ready.npz"),
    Case("decode", "--quiet", None, "ready.npz"),
    Case("decode", "--verbose", None, "ready.npz"),
    Case("encode", "--compact", None, "a.png"),
    Case("encode", "--verify", None, "a.png"),
    Case("encode", "--bulk", None, "images", "-o", "o"),
    Case("encode", "--shard-size", "1", "images", "-o", "o", "--bulk"),
    Case("encode", "--shard", "1/2", "images", "-o", "o", "--bulk"),
    Case("encode", "--resume", None, "images", "-o", "o", "--bulk", before=["o/manifest.json"]),
    # without --bulk: what it changes in a shard is nothing, by design
    Case("encode", "--workers", "0", "images", "-o", "o"),
    *(
        Case(command, *options)
        for command in ("pack", "unpack")
        for options in (
            ("--output", "o.npz", "ready.npz"),
            ("--model", "other", "ready.npz"),
            ("--json", None, "ready.npz"),
            ("--quiet", None, "ready.npz"),
        )
    ),
    # what they do: test_token_sets.py
    Case("pack", "--frames", None, "tokens.npy"),
    Case("pack", "--grid", "4x4", "tokens.npy"),
    Case("eval", "--range", "0:1000", "deep.png"),
    Case("pack", "--force", None, "ready.npz", before=["ready.compact.npz"]),
    Case("pack", "--skip-existing", None, "ready.npz", before=["ready.compact.npz"]),
    Case("unpack", "--indices-only", None, "ready.npz"),
    Case("unpack", "--force", None, "ready.npz", before=["ready.plain.npz"]),
    Case("unpack", "--skip-existing", None, "ready.npz", before=["ready.plain.npz"]),
    Case("truncate", "--model", "other", "ready.npz", "--levels", "1"),
    Case("truncate", "--levels", "1", "ready.npz"),
    Case("truncate", "--bpp", "9", "ready.npz"),
    Case("truncate", "--max-bytes", "1k", "ready.npz"),
    Case("truncate", "--output", "o.npz", "ready.npz", "--levels", "1"),
    Case("truncate", "--force", None, "ready.npz", "--levels", "1", before=["ready.truncated.npz"]),
    Case(
        "truncate",
        "--skip-existing",
        None,
        "ready.npz",
        "--levels",
        "1",
        before=["ready.truncated.npz"],
    ),
    Case("truncate", "--json", None, "ready.npz", "--levels", "1"),
    Case("truncate", "--quiet", None, "ready.npz", "--levels", "1"),
    Case("sample", "--levels", "2", "-o", "s.npz"),
    Case("sample", "--number", "2", "-o", "s.npz"),
    Case("sample", "--output", "o.png"),
    Case("sample", "--model", "other", "-o", "s.npz"),
    Case("sample", "--size", "24", "-o", "s.npz"),
    Case("sample", "--label", "eel", "-o", "s.npz", "--size", "96"),
    Case("sample", "--temperature", "0.1", "-o", "s.npz"),
    Case("sample", "--top-k", "2", "-o", "s.npz"),
    Case("sample", "--top-p", "0.3", "-o", "s.npz"),
    Case("sample", "--guidance", "3", "-o", "s.npz"),
    Case("sample", "--complete", "a.png", "-o", "s.npz", "-n", "2"),
    Case("sample", "--keep", "left:0.2", "-o", "s.npz", "--complete", "a.png"),
    Case("sample", "--hole", "4,4,8,8", "-o", "s.npz", "--complete", "a.png"),
    Case("sample", "--palette", "1", "-o", "s.npz", "--complete", "a.png"),
    Case(
        "sample", "--candidates", "1", "--hole", "4,4,20,12", "-o", "s.npz", "--complete", "a.png"
    ),
    Case("sample", "--seed", "1", "-o", "s.npz"),
    Case("sample", "--force", None, before=["samples.png"]),
    Case("sample", "--device", "nonsense"),
    Case("sample", "--json", None),
    Case("sample", "--quiet", None),
    Case("sample", "--verbose", None),
    Case("eval", "--model", "other", "images"),
    Case("eval", "--split", "train", "--limit", "2"),
    Case("eval", "--limit", "1", "images"),
    Case("eval", "--member", "seg.png", "images"),
    Case("eval", "--labels", "none.csv", "images"),
    Case("eval", "--levels", "2", "images"),
    Case("eval", "--lpips", "missing.safetensors", "images"),
    Case("eval", "--dists", "missing.safetensors", "images"),
    Case("eval", "--vgg", "missing.safetensors", "images"),
    Case("eval", "--fid", "missing.pth", "images"),
    Case("eval", "--codecs", "jpeg", "images"),
    Case("eval", "--csv", "figures.csv", "images"),
    Case("eval", "--sheet", "sheet.png", "images"),
    Case("eval", "--plot", "rd.svg", "images"),
    # what they do: test_samples.py
    Case("eval", "--samples", "4", "images"),
    *(Case("eval", name, "1", "images") for name in ("--temperature", "--top-k", "--top-p")),
    *(Case("eval", name, "2", "images") for name in ("--guidance", "--seed")),
    Case("eval", "--force", None, "images", "--sheet", "sheet.png", before=["sheet.png"]),
    Case("eval", "--device", "nonsense", "images"),
    Case("eval", "--precision", "bf16", "images", "--json"),
    Case("eval", "--fast", None, "images", "--json"),
    Case("eval", "--json", None, "images"),
    Case("eval", "--quiet", None, "images"),
    Case("eval", "--verbose", None, "images"),
    Case("info", "--json", None, "ready.npz"),
    Case("models", "--json", None),
]


FILES: dict[str, bytes] = {}  # what every case finds in its folder


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    monkeypatch.chdir(folder)
    if not FILES:
        save("a.png")
        save("images/b.png", image(12, 20, seed=1))
        save("images/c.png", image(12, 20, seed=2))
        save("large.png", image(160, 160))
        Image.fromarray(image(16, 16)[..., 0].astype(np.uint16) << 8).save("deep.png")
        np.save("tokens.npy", np.random.default_rng(0).integers(0, 9, (5, 16)))
        save("alpha.png", image(12, 12, 4))
        codes.write_codes(Path("ready.npz"), codec.load("toy").encode(image(24, 24)))
        FILES.update({path: data for path, data in snapshot().items() if path != "images"})
    Path("images").mkdir(exist_ok=True)
    for name, data in FILES.items():
        Path(name).write_bytes(data)


def outcome(case: Case, words: Sequence[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """All that a command leaves behind: exit code, text without times and places, files."""
    lay_out(folder, monkeypatch)
    for name in case.before:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"old")
    result = run(case.command, *words)
    text = re.sub(
        r"\d+\.\d+ s|\d+ a second|\"seconds\": [0-9.]+", "TIME", result.stdout + result.stderr
    ).replace(str(folder.parent), "")
    return result.exit_code, text, snapshot()


PLAIN: dict[str, Any] = {}  # outcomes without the option, which many cases share
CERTAIN: set[str] = set()  # commands of which two runs were seen to be equal


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_no_option_is_dead(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_model(tmp_path / "models" / "other", seed=1)
    monkeypatch.setattr("vqtok.evaluate.classifier.STEPS", 2)
    monkeypatch.setattr(
        output,
        "console",
        lambda: Console(stderr=True, highlight=False, soft_wrap=True, color_system=None),
    )
    # so that --fast changes something on any processor
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    if case.option == "--quiet" and case.command == "eval":
        pytest.skip(
            "quiet hides the progress line of eval, which a terminal alone shows: "
            "see the test of progress lines"
        )
    key = f"{case.command} {case.words} {case.before}"
    if key not in PLAIN:
        PLAIN[key] = outcome(case, case.words, monkeypatch, tmp_path / "plain")
    if case.command not in CERTAIN:  # what differs below is not chance
        CERTAIN.add(case.command)
        assert PLAIN[key] == outcome(case, case.words, monkeypatch, tmp_path / "again")
    value = [] if case.value is None else [case.value]
    assert PLAIN[key] != outcome(
        case, [*case.words, case.option, *value], monkeypatch, tmp_path / "with"
    )


def test_the_table_of_options_is_complete():
    for name in MINE:
        options = {
            max(p.opts, key=len) for p in COMMANDS[name].params if p.param_type_name == "option"
        } - {"--help"}
        assert options == {case.option for case in CASES if case.command == name}


# Terminals and pipes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_text(monkeypatch: pytest.MonkeyPatch, show: Callable[[], None]) -> str:
    """What `show` writes to a standard error that is a terminal."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        show()
    return stream.getvalue()


def test_colors_on_a_terminal_only_and_not_under_no_color(monkeypatch: pytest.MonkeyPatch):
    def show() -> None:
        output.show_error(vqtok.VqtokError("wrong", "mend it"))

    assert "\x1b[1;31m" in terminal_text(monkeypatch, show)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in terminal_text(monkeypatch, show)
    assert "\x1b" not in run("encode", "missing.png").stderr


@pytest.mark.slow
def test_progress_on_a_terminal_only_and_not_under_quiet(monkeypatch: pytest.MonkeyPatch):
    from vqtok.cli.progress import bar

    def show(quiet: bool) -> None:
        with bar("sample", quiet) as progress:
            if progress is not None:
                progress(3, 7)

    assert "3/7" in terminal_text(monkeypatch, lambda: show(False))
    assert terminal_text(monkeypatch, lambda: show(True)) == ""
    for command in (["sample"], ["eval", "--limit", "2"]):
        assert "/" not in re.sub(r"samples\.png", "", run(*command, "-q").stderr)


def test_binary_never_goes_to_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "_is_terminal", lambda: True)
    save("a.png")
    assert "standard output is a terminal" in fails("encode", "a.png", "-o", "-")


class Broken(io.BytesIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, data: Any) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_standard_output_that_takes_nothing(number: int, monkeypatch: pytest.MonkeyPatch):
    """A reader that has gone is no error to tell; a full disk is."""
    table = Table("a")
    table.add_row("b")
    for write in (
        lambda: output.write_stdout(b"x"),
        lambda: output.print_json({}),
        lambda: output.print_table(table),
    ):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Broken(number), write_through=True))
        with pytest.raises(typer.Exit if number == errno.EPIPE else vqtok.VqtokError):
            write()


# As real processes


def process(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vqtok", *words], capture_output=True, timeout=60, **options
    )


@pytest.mark.slow
def test_exit_codes_and_streams_of_the_real_command():
    for words, code in ((["--version"], 0), (["encode"], 2)):
        done = process(*words)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
        if code:
            assert done.stdout == b""
            assert done.stderr.startswith(b"vqtok: error: ")
            assert done.stderr.count(b"\n") == 2
        else:
            assert (done.stdout, done.stderr) == (f"vqtok {vqtok.__version__}\n".encode(), b"")


@pytest.mark.slow
def test_light_commands_do_without_torch():
    save("a.png")
    ok("encode", "a.png")
    words = [
        ["--help"],
        ["--version"],
        ["encode", "--help"],
        ["info", "a.npz"],
        ["info", "toy"],
        ["models"],
        ["encode", "no.png"],
        ["encode", "a.png", "-m", "no"],
        ["decode", "a.png"],
    ]
    script = f"""
import contextlib, io, sys
from vqtok.cli import main
for words in {words!r}:
    sys.argv = ["vqtok", *words]
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        main()
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_a_pipe_of_real_commands():
    content = save("a.png").read_bytes()
    made = process("encode", "-", input=content)
    assert (made.returncode, made.stderr.count(b"\n")) == (0, 1)
    back = process("decode", "-", input=made.stdout)
    assert size_of(back.stdout) == (30, 20)


@pytest.mark.slow
def test_ctrl_c_of_the_real_command():
    words = ["sample", "-v", "--size", "4096", "-n", "4", "-o", "out"]
    with subprocess.Popen(
        [sys.executable, "-m", "vqtok", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith(b"model toy")
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    assert (child.returncode, told) == (130, b"vqtok: interrupted\n")
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_file_system_that_takes_no_more():
    import resource

    save("a.png")
    before = snapshot()
    done = process(
        "encode", "a.png", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"vqtok: error: cannot write a.npz: ")
    assert done.stderr.count(b"\n") == 2
    assert snapshot() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB, RLIMIT_AS that holds")
def test_a_huge_config_in_a_small_file_takes_no_memory(toy: Path):
    stored = weights.load_weights(toy / "tokenizer.safetensors", "tokenizer")
    stored.meta["config"] |= {
        "width": 2048,
        "code_dim": 1024,
        "codebook_size": 65536,
        "encoder_blocks": 64,
        "decoder_blocks": 64,
    }
    weights.save_weights(toy / "tokenizer.safetensors", stored)
    save("a.png")
    script = """
import resource, sys
sys.argv = ["vqtok", "encode", "a.png"]
resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
from vqtok.cli import main
try:
    main()
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if \
line.startswith("VmHWM")))      # ru_maxrss is the parent's, too
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert b"its config asks for" in done.stderr
    assert int(done.stdout) < 1_000_000
