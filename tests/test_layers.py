"""Holds the order of modules in docs/architecture.md, and what STYLE.md forbids everywhere."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vqtok

ROOT = Path(vqtok.__file__).parent
PAGE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
LAYERS = tuple(re.findall(r"^- `(\w+)` ", PAGE.read_text(encoding="utf-8"), re.M))

WITHOUT_TORCH = LAYERS[: LAYERS.index("meta_init")]
PACKAGES = (
    "bulk",
    "codec",
    "codes",
    "config",
    "data",
    "evaluate",
    "images",
    "integer_prior",
    "interop",
    "losses",
    "networks",
    "onnx",
    "pages",
    "plots",
    "priors",
    "quantizers",
    "sampling",
    "study",
    "tokens",
    "train",
    "cli",
)
PRINTERS = ("cli", "__main__")
PRINTS = ("print", "input", "typer.echo", "typer.secho", "rich.print", "traceback.print_exc")
PRINTING_MODULES = (
    "rich.console",
    "rich.progress",
    "rich.live",
    "rich.print",
    "typer",
    "sys.stdout",
    "sys.stderr",
)
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FILES = sorted(ROOT.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


# Each file is parsed and walked once, and checked by several rules
parsed = cache(ast.parse)


@cache
def nodes(tree: ast.AST) -> list[ast.AST]:
    return list(ast.walk(tree))


def imports(tree: ast.AST, package: str = "vqtok") -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything imported, at the top or inside a function;
    `package` resolves relative imports.
    """
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (parent, node.module)))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def layer_faults(source: str, name: str, package: str = "vqtok") -> list[str]:
    """Imports that do not go up, and torch where it must not be; `circles` looks into packages."""
    faults = []
    for line, target in imports(parsed(source), package):
        root, _, rest = target.partition(".")
        if root == "vqtok":
            other = rest.split(".")[0]
            other = other if other in LAYERS else "__init__"
            inside = other == name and package != "vqtok"
            if not inside and LAYERS.index(other) >= LAYERS.index(name):
                faults.append(f"{line}: {name} imports {target}")
        if name in WITHOUT_TORCH and (
            root in ("torch", "torchvision") or target.startswith("safetensors.torch")
        ):
            faults.append(f"{line}: {name} imports {target}")
    return faults


def module_of(path: Path) -> str:
    parts = ("vqtok", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(sources: dict[str, tuple[str, str]]) -> list[list[str]]:
    """Modules that import each other, at the top or inside a function, by way of others too;
    `sources` holds (text, package) by module.
    """
    graph: dict[str, set[str]] = {}
    for module, (source, package) in sources.items():
        graph[module] = set()
        for _, target in imports(parsed(source), package):
            while target and target not in sources:  # a name in a module: the module
                target = target.rpartition(".")[0]
            graph[module] |= {target} - {""}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [error.args[1]]
    return []


def dotted(node: ast.AST) -> str:
    """`np.load` for that expression; an empty string for what is no plain name."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def printing_faults(source: str) -> list[str]:
    tree, faults = parsed(source), []
    for node in nodes(tree):
        name = dotted(node.func) if isinstance(node, ast.Call) else dotted(node)
        if isinstance(node, ast.Call) and name in PRINTS:
            faults.append(f"{node.lineno}: {name}()")
        elif isinstance(node, ast.Attribute) and name.startswith(
            ("sys.stdout", "sys.stderr", "sys.__std")
        ):
            faults.append(f"{node.lineno}: {name}")
    printing = tuple(f"{module}." for module in PRINTING_MODULES)
    return faults + [
        f"{line}: imports {name}" for line, name in imports(tree) if f"{name}.".startswith(printing)
    ]


def execution_faults(source: str) -> list[str]:
    """What could run code from a file, or hide an import from this test."""
    tree, faults = parsed(source), []
    for line, name in imports(tree):
        if name.split(".")[0] in PICKLES or name in (
            "torch.load",
            "torch.save",
            "torch.hub",
            "torch.package",
        ):
            faults.append(f"{line}: imports {name}")
    for node in nodes(tree):
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), {option.arg: option.value for option in node.keywords}
        safe = options.get("weights_only")
        if name == "torch.load" and isinstance(safe, ast.Constant) and safe.value is True:
            continue
        if name in (
            "eval",
            "exec",
            "__import__",
            "torch.load",
            "torch.save",
            "torch.jit.load",
        ) or name.startswith("torch.hub."):
            faults.append(f"{node.lineno}: {name}()")
        allowed = options.get("allow_pickle")
        if (name in ("np.load", "numpy.load") or allowed is not None) and not (
            isinstance(allowed, ast.Constant) and allowed.value is False
        ):
            faults.append(f"{node.lineno}: {name}() without allow_pickle=False")
    return faults


def source_of(path: Path) -> tuple[str, str]:
    """The text, and the package its relative imports start from."""
    return path.read_text(encoding="utf-8"), ".".join(("vqtok", *path.relative_to(ROOT).parts[:-1]))


def test_the_package_holds_exactly_the_layers():
    assert {layer(path) for path in FILES} == set(LAYERS)
    folders = {path.parent for path in FILES}
    assert set(PACKAGES) <= {folder.name for folder in folders}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    # one would hide the other
    assert [folder for folder in folders if folder.with_suffix(".py").exists()] == []


def test_each_module_keeps_the_rules():
    found: dict[str, list[str]] = {}
    for path in FILES:
        source, package = source_of(path)
        faults = layer_faults(source, layer(path), package) + execution_faults(source)
        if layer(path) not in PRINTERS:
            faults += printing_faults(source)
        if faults:
            found[str(path.relative_to(ROOT))] = faults
    assert found == {}


def test_no_imports_run_in_a_circle():
    assert circles({module_of(path): source_of(path) for path in FILES}) == []


@pytest.mark.parametrize(
    "b",
    [
        "from vqtok.codes.a import x",
        "from . import a",
        "def f():\n    from .a import x",
        "if TYPE_CHECKING:\n    from vqtok.codes.a import x",
        "from vqtok.codes.c import y",
        "from vqtok.codes import z",
        "import vqtok.codes.b",
    ],
)
def test_a_circle_is_found(b: str):
    texts = {"": "from .a import z", ".a": "from .b import y", ".b": b, ".c": "from . import a"}
    sources = {f"vqtok.codes{name}": (text, "vqtok.codes") for name, text in texts.items()}
    assert circles(sources) != []
    assert circles(sources | {"vqtok.codes.b": ("import numpy", "vqtok.codes")}) == []


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport sys, json; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return set(json.loads(done.stdout))


@pytest.mark.slow
def test_reading_and_checking_codes_start_without_torch():
    loaded = loaded_by("import vqtok, vqtok.config, vqtok.codes, vqtok.weights, vqtok.metrics")
    assert {"vqtok.codes", "vqtok.metrics"} <= loaded
    assert "torch" not in loaded


@pytest.mark.slow
def test_every_layer_above_the_networks_starts_without_torch():
    names = [f"vqtok.{name}" for name in WITHOUT_TORCH]
    loaded = loaded_by(f"import {', '.join(names)}")
    assert set(names) <= loaded
    assert "torch" not in loaded


@pytest.mark.slow
def test_the_command_line_starts_without_torch():
    loaded = loaded_by("import vqtok.cli")
    assert "vqtok.cli" in loaded
    assert "torch" not in loaded


@pytest.mark.slow
def test_names_of_the_library_come_on_first_use():
    loaded = loaded_by("import vqtok; vqtok.read_codes, vqtok.write_codes, vqtok.VqtokError")
    assert "vqtok.codes" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("codes", "from vqtok.errors import FormatError\nimport numpy"),
        ("codec", "from vqtok import weights"),
        ("data", "from vqtok.data.shapes import Shapes\nimport torch"),
        ("data", "from . import shapes\nfrom .shapes import Shapes"),
        ("cli", "def run():\n    from vqtok.codec import load"),
        ("__main__", "from vqtok.cli import main"),
        ("weights", "import safetensors.numpy"),
    ],
)
def test_layer_rule_allows(name: str, source: str):
    assert layer_faults(source, name, f"vqtok.{name}" if name in PACKAGES else "vqtok") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("codes", "from vqtok.weights import Weights"),
        ("codes", "import vqtok.weights"),
        ("codes", "from vqtok import weights"),
        ("images", "from .. import weights"),
        ("images", "from ..weights import Weights"),
        ("codes", "def read():\n    from vqtok.codec import load"),
        ("files", "import vqtok.files"),
        ("codes", "import vqtok"),
        ("codes", "from vqtok import __version__"),
        ("codec", "from vqtok import load"),
        ("quantizers", "from vqtok.networks.vqvae import VQVAE"),
        ("quantizers", "from ..networks.vqvae import VQVAE"),
        ("train", "from vqtok.cli import main"),
        ("metrics", "import torch"),
        ("plots", "from torch import Tensor"),
        ("weights", "def load():\n    import torch.nn.functional as F"),
        ("weights", "from safetensors.torch import load_file"),
        ("weights", "from safetensors import torch"),
    ],
)
def test_layer_rule_finds(name: str, source: str):
    assert layer_faults(source, name, f"vqtok.{name}" if name in PACKAGES else "vqtok") != []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "def f():\n    print()",
        "import sys\nsys.stderr.write('x')",
        "import sys\nsys.stdout.buffer",
        "from sys import stdout",
        "import typer",
        "from rich import print",
        "from rich.console import Console",
        "import rich\nrich.print('x')",
    ],
)
def test_printing_is_found(source: str):
    assert printing_faults(source) != []


@pytest.mark.parametrize(
    "source",
    ["import sys\nsys.stdin.buffer.read()", "from rich.table import Table", "report.print = 1"],
)
def test_what_does_not_print_is_allowed(source: str):
    assert printing_faults(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "torch.load('x')",
        "torch.save({}, 'x')",
        "from torch import load",
        "torch.hub.load('x', 'y')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', weights_only=flag)",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "np.lib.format.read_array(f, allow_pickle=True)",
    ],
)
def test_running_code_from_files_is_found(source: str):
    assert execution_faults(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "np.load('x', allow_pickle=False)",
        "torch.load('x', weights_only=True)",
        "torch.compile(model)",
        "'pickle'",
    ],
)
def test_what_runs_nothing_is_allowed(source: str):
    assert execution_faults(source) == []
