"""Safe by construction: no code from files, nothing outside of -o, and nothing that a terminal
would obey, wherever a name comes from.
"""

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import ok, run, save, snapshot
from rich.console import Console

import vqtok
from attacks import archives, harness, mutate
from attacks.codes_files import FINGERPRINT, _with, meta_member
from vqtok import codes, data, files, weights
from vqtok.cli import output, progress
from vqtok.errors import VqtokError

ROOT = Path(vqtok.__file__).parent
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/bold red]:smile:\x9b31m\u202egnp\rover\x7f"
OBEYED = set(
    map(chr, [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
) - {"\n"}


# No code from files

UNSAFE_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "ruamel",
    "code",
    "codeop",
    "runpy",
    "dbm",
    "subprocess",
    "pty",
    "commands",
    "xmlrpc",
    "tarfile",
}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.package",
    "np.fromfile",
    "numpy.fromfile",
}
UNSAFE_METHODS = {"extractall", "extract", "unpack_archive", "loads_pickle"}
ALLOWED = {
    # starts this interpreter on vqtok.bulk.worker, without a shell
    "bulk/pool.py": ["imports subprocess"],
    "bulk/shards.py": ["imports tarfile"],  # writes headers, and reads none
    "tokens/formats/webdataset.py": ["imports tarfile"],  # writes tars, and reads none
    "web/build_kernels.py": ["imports subprocess"],  # for developers: runs the C compiler
    "interop/read.py": ["torch.load()"],  # with weights_only=True: tests/test_layers.py
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> Iterator[str]:
    """What in a module's source could run code or a program, or unpack an archive to disk."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
            yield from (
                f"{node.lineno}: imports {name}"
                for name in names
                if name.split(".")[0] in UNSAFE_MODULES
            )
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if (
                name in UNSAFE_CALLS
                or name.startswith(("os.exec", "os.spawn", "os.posix_spawn"))
                or method in UNSAFE_METHODS
            ):
                yield f"{node.lineno}: {name}()"
            for option in node.keywords:
                value = getattr(option.value, "value", None)
                if (option.arg == "allow_pickle" and value is not False) or (
                    option.arg == "shell" and value is not False
                ):
                    yield f"{node.lineno}: {option.arg}={value}"
            if name in ("np.load", "numpy.load") and not any(
                option.arg == "allow_pickle" for option in node.keywords
            ):
                yield f"{node.lineno}: {name}() without allow_pickle=False"


def test_no_module_can_run_code_from_a_file() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): [
            fault.partition(": ")[2] for fault in faults(path.read_text(encoding="utf-8"))
        ]
        for path in sorted(ROOT.rglob("*.py"))
    }
    assert {name: told for name, told in found.items() if told} == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "import os\nos.system('x')",
        "x.run('y', shell=True)",
        "torch.load(f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "eval('1')",
        "archive.extractall('.')",
        "import subprocess",
        "import marshal, json",
        "os.execv('x', [])",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert list(faults(source)) != []


AUDITED = """
import os, sys
sys.path.insert(0, {tests!r})
from attacks.harness import RUNNING
import vqtok.codec, vqtok.data, vqtok.evaluate
from vqtok.cli import app
seen = []
def hook(event, arguments):
    if event in RUNNING or (event == "compile" and "M4RK3R" in repr(arguments)):     # text of \
ours that is made into code
        seen.append((event, repr(arguments)[:200]))
sys.addaudithook(hook)
for words in {commands!r}:
    app(words, standalone_mode=False)
print("AUDITED", seen, file=sys.stderr)
for statement in {shown!r}:
    seen.clear()
    exec(statement)
    print("SHOWN", seen, file=sys.stderr)
"""
COMMANDS = [
    ["encode", "M4RK3R.png", "-o", "M4RK3R.npz"],
    ["decode", "M4RK3R.npz"],
    ["info", "M4RK3R.npz"],
    ["pack", "M4RK3R.npz"],
    ["models"],
    ["unpack", "M4RK3R.compact.npz"],
    ["sample", "-n", "1", "-o", "M4RK3R"],
    ["eval", "M4RK3R.zip", "--codecs", "none", "--quiet"],
]


# what the hook must see, and as which event: pickles, text made into code, programs
SEEN = {
    "import pickle; pickle.loads(pickle.dumps(os.getcwd))": "pickle.find_class",
    "eval('\"M4RK3R\"')": "compile",
    "import subprocess; subprocess.run(['true'])": "subprocess.Popen",
}


@pytest.mark.slow
def test_no_command_unpickles_or_starts_anything(toy: Path) -> None:
    """In a process of its own, with an audit hook: what a file says is neither compiled nor run.

    What runs after the commands shows that the hook sees.
    """
    save("M4RK3R.png")
    Path("M4RK3R.zip").write_bytes(mutate.zipped([("M4RK3R.png", Path("M4RK3R.png").read_bytes())]))
    ours = {
        "VQTOK_MODELS": str(toy.parent),
        "VQTOK_MODEL": "toy",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT.parent),
    }
    code = AUDITED.format(
        tests=str(Path(__file__).parent.parent), commands=COMMANDS, shown=list(SEEN)
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **ours},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    commands, *shown = done.stderr.splitlines()[-1 - len(SEEN) :]
    assert commands == "AUDITED []", done.stderr
    assert len(shown) == len(SEEN)
    for line, event in zip(shown, SEEN.values(), strict=True):
        assert line.startswith("SHOWN"), done.stderr
        assert event in line, done.stderr


def test_the_audit_sees_what_it_is_for() -> None:
    assert harness.forbidden("pickle.find_class", ("os", "system"))
    assert harness.forbidden("os.system", ("x",))
    assert harness.forbidden("subprocess.Popen", ("x", ["x"], None, None))
    assert harness.forbidden("open", ("x", "wb", 0))
    assert harness.forbidden("open", ("x", None, os.O_CREAT | os.O_WRONLY))
    assert not harness.forbidden("open", ("x", "rb", 0))
    assert not harness.forbidden("import", ("os",))


# Nothing outside of -o


@pytest.mark.parametrize(
    "pattern", ["in/*/../../up/a.png", "in/*/../*/../../up/*.png", "in/**/../../up/a.png"]
)
def test_results_of_a_glob_that_climbs_stay_below_the_output_folder(
    pattern: str, toy: Path
) -> None:
    save("in/b/c.png")
    save("up/a.png")
    before = set(snapshot())
    ok("encode", pattern, "-o", "out/deep")
    new = set(snapshot()) - before
    assert any(name.endswith("a.npz") for name in new)
    assert all(name == "out" or name.startswith("out" + os.sep + "deep") for name in new), new


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../../x.png", "..", "C:\\x.png"])
def test_an_output_never_leaves_its_folder(name: str) -> None:
    out = Path("out").absolute()
    path = files.output_path(files.Source(Path("x"), Path(name) / "y.png"), ".npz", out, True)
    assert ".." not in path.parts
    assert path.is_relative_to(out)


def test_links_in_the_input_do_not_lead_out_of_the_output(toy: Path, tmp_path: Path) -> None:
    save("elsewhere/a.png")
    save("in/b.png")
    os.symlink(tmp_path / "elsewhere", "in/link")
    os.symlink(tmp_path / "elsewhere", "in/..link")
    ok("encode", "in", "-o", "out")
    assert sorted(name for name in snapshot() if name.endswith(".npz")) == [
        "out/b.npz",
        "out/link/a.npz",
    ]
    assert os.listdir("elsewhere") == ["a.png"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_read_without_a_file_written_or_a_link_followed(
    kind: str, tmp_path: Path
) -> None:
    names = [*archives._ODD_NAMES, "good.png"]
    links = [
        archives.header(b"secret%d.png" % i, 0, kind, b"/etc/passwd")
        for i, kind in enumerate((b"1", b"2", b"3", b"4", b"6"))
    ]
    images = [(name, archives.image()) for name in names if "\0" not in name]
    content = (
        archives.tar(*links, *(archives.member(*one) for one in images))
        if kind == "tar"
        else mutate.zipped(images)
    )
    (tmp_path / f"x.{kind}").write_bytes(content)
    before = snapshot()
    found = data.open_data(tmp_path / f"x.{kind}")
    assert len(found) >= 8
    assert all(found.image(i).shape == (6, 8, 3) for i in range(len(found)))
    assert snapshot() == before


# Nothing that a terminal obeys


def obeyed(text: str) -> set[str]:
    """What in a text is no printing character, or would turn the direction of those behind it."""
    return OBEYED & set(text)


def shown(*words: object) -> str:
    result = run(*words)
    return result.stdout + result.stderr


def test_file_names_are_shown_and_not_obeyed(toy: Path) -> None:
    name = HOSTILE.replace("/", "!")
    save(f"{name}.png")
    Path(f"{name}.npz").write_bytes(b"no codes")
    text = (
        shown("encode", f"{name}.png", "-o", f"{name}-2.npz")
        + shown("info", f"{name}.npz")
        + shown("decode", f"{name}.npz")
    )
    text += (
        shown("encode", f"{name}.gif")
        + shown("info", name)
        + shown("encode", f"{name}.png", "--model", name)
        + shown("train", name)
    )
    assert obeyed(text) == set()
    assert "[bold red]x[!bold red]:smile:" in text


def test_words_of_the_command_line_are_not_obeyed(toy: Path) -> None:
    """A glob makes options of file names that begin with a dash;
    a line break in one had its escapes printed as they are.
    """
    for words in (
        [f"--{HOSTILE}\n{HOSTILE}"],
        ["encode", f"--{HOSTILE}\n"],
        ["encode", "x", "--levels", f"{HOSTILE}\n"],
        [f"x{HOSTILE}"],
    ):
        text = shown(*words)
        assert obeyed(text) == set(), words
        assert "vqtok: error:" in text


def test_metadata_of_codes_is_shown_and_not_obeyed(toy: Path) -> None:
    one = codes.Codes(np.zeros((1, 1, 2, 2), np.uint8), "m", FINGERPRINT, 16, 4, 3, ((8, 8),))
    for key in ("model", "fingerprint", "format", "sizes", HOSTILE):
        meta = {
            **{
                k: v
                for k, v in codes.read_codes_meta(codes.to_bytes(one)).items()
                if k not in ("form", "shape")
            },
            key: HOSTILE,
        }
        Path("x.npz").write_bytes(_with(one, {"meta": meta_member(json.dumps(meta))}))
        assert (
            obeyed(shown("info", "x.npz") + shown("decode", "x.npz") + shown("pack", "x.npz"))
            == set()
        ), key


@pytest.mark.slow
def test_metadata_of_weights_is_shown_and_not_obeyed(toy: Path) -> None:
    """License, data and labels are a stranger's words;
    so are the names of tensors, and what an error says of them.
    """
    for place, key in (
        ("record", "data"),
        ("record", HOSTILE),
        ("record", "metrics"),
        ("config", "quantizer"),
        ("config", HOSTILE),
    ):
        path = toy / "tokenizer.safetensors"
        stored = weights.load_weights(path, "tokenizer")
        stored.meta[place] = {**stored.meta[place], key: HOSTILE}
        weights.save_weights(Path("x/tokenizer.safetensors"), stored)
        text = (
            shown("info", "x")
            + shown("info", "x/tokenizer.safetensors")
            + shown("encode", save("a.png"), "--model", "x", "--force")
        )
        assert obeyed(text) == set(), (place, key)
    stored = weights.load_weights(toy / "tokenizer.safetensors", "tokenizer")
    stored.tensors[HOSTILE] = np.zeros(1, np.float32)
    weights.save_weights(Path("x/tokenizer.safetensors"), stored)
    text = shown("encode", "a.png", "--model", "x", "--force")
    assert "unknown tensor" in text
    assert obeyed(text) == set()


def test_json_escapes_what_it_says(toy: Path) -> None:
    name = HOSTILE.replace("/", "!").replace("\x7f", "")
    save(f"{name}.png")
    line = ok("encode", f"{name}.png", "-o", "x.npz", "--json").stdout
    assert obeyed(line) == set()
    assert json.loads(line)["input"] == f"{name}.png"


def test_a_progress_line_does_not_obey_the_name_of_its_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rich strips a few control characters from text, but not the escape that begins all others."""
    page = io.StringIO()
    monkeypatch.setattr(output, "is_plain", lambda: False)
    monkeypatch.setattr(
        output, "console", lambda: Console(file=page, force_terminal=True, width=200)
    )
    with progress.bar(f"eval {HOSTILE}", quiet=False) as update:
        assert update is not None
        update(1, 2)
    assert "[bold red]x[/bold red]:smile:" in page.getvalue()
    assert "\x1b[2J" not in page.getvalue()
    assert "\x1b]0;" not in page.getvalue()
    assert "\x9b" not in page.getvalue()


def test_messages_on_a_terminal_do_not_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    monkeypatch.setattr(output, "is_plain", lambda: False)
    monkeypatch.setattr(
        output,
        "console",
        lambda: Console(
            file=page, force_terminal=True, color_system=None, width=1000, soft_wrap=True
        ),
    )
    output.say(HOSTILE)
    output.show_error(VqtokError(HOSTILE, HOSTILE))
    assert obeyed(page.getvalue()) == set()
    assert page.getvalue().count("[bold red]x[/bold red]:smile:") == 3
