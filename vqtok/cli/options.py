"""Options and arguments that several commands share, declared once."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vqtok.cli.start import ModelOptions
from vqtok.errors import UsageError

if TYPE_CHECKING:
    from vqtok.data import DataOptions


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take dataclasses whose fields are options: the shell sees each field."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name], hints = kind, get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
            )
            for f in fields(kind)
        ]

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: kind(**{f.name: values.pop(f.name) for f in fields(kind)})
            for name, kind in groups.items()
        }
        command(**made, **values)

    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def complete_model(incomplete: str) -> list[str]:
    """Completes the name of a model in the shell.

    None fits a path, and the shell then completes it to files.
    """
    from vqtok import model_registry

    return [
        model.name for model in model_registry.list_models() if model.name.startswith(incomplete)
    ]


def complete_setting(names: str) -> Callable[[str], list[str]]:
    """Returns the shell completion of an option whose words `config` lists under that name."""

    def complete(incomplete: str) -> list[str]:
        from vqtok import config

        return [word for word in getattr(config, names) if word.startswith(incomplete)]

    return complete


def complete_choice(*words: str) -> Callable[[str], list[str]]:
    """Returns the shell completion of an option that takes one of a few words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


CodesFiles = Annotated[
    list[str],
    typer.Argument(
        help="Codes files (.npz), codes shards, folders, globs, or - for standard input.",
        metavar="IN",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=complete_model,
        help=(
            "Name (see `vqtok models`), folder or tokenizer file. Default: VQTOK_MODEL, else photo."
        ),
    ),
]
FileModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=complete_model,
        help="Name, folder or tokenizer file. Default: the model that each file names.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="File, folder (made if missing), or - for standard output. Default: beside IN.",
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.")]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out inputs whose result exists.")
]
SplitPatterns = Annotated[
    list[str] | None,
    typer.Option(
        "--split",
        metavar="NAME=PATTERN",
        help=(
            "Which images are for training or for tests, like test='holdout/*'. "
            "Default: by words like train and val in names."
        ),
    ),
]
LabelSource = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FROM",
        help=(
            "Classes: none, folders, cls (members of tars), or a file of NAME,LABEL lines. "
            "Default: by the data."
        ),
        autocompletion=complete_choice("none", "folders", "cls"),
    ),
]
Member = Annotated[
    str | None,
    typer.Option(
        "--member",
        metavar="FIELD",
        help="Of several images a sample take this one, like seg.png. Default: the plain one.",
    ),
]
ValueRange = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW:HIGH",
        help=(
            "Values of images deeper than 8 bits that become black and white, like 0:4095; auto: "
            "by the type of each. Default: the model's, else auto."
        ),
    ),
]
Frames = Annotated[
    bool,
    typer.Option(
        "--frames",
        help="Token arrays (.npy) are frames of a video: each is coded given the one before.",
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="HxW",
        help="Height and width of a grid whose tokens are stored in rows, like 8x16.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say which model, device and precision are used.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line on standard output.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        autocompletion=complete_choice("auto", "cpu", "cuda", "mps"),
        help="auto, cpu, cuda, cuda:1 or mps. Default: VQTOK_DEVICE, else auto: the fastest.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        autocompletion=complete_choice("fp32", "bf16"),
        help="fp32, or bf16: faster, and some indices differ.",
    ),
]
Levels = Annotated[
    int | None,
    typer.Option(
        "--levels",
        metavar="N",
        help="Use the first N levels only: fewer bits, less detail. Default: all.",
        min=1,
    ),
]
Bpp = Annotated[
    float | None,
    typer.Option(
        "--bpp", metavar="X", help="Use as many levels as X bits per pixel of the file allow."
    ),
]
MaxBytes = Annotated[
    str | None,
    typer.Option(
        "--max-bytes",
        metavar="SIZE",
        help="Use as many levels as a file of SIZE allows: 2000, 2k, 2KiB.",
    ),
]
Compact = Annotated[
    bool,
    typer.Option(
        "--compact",
        help="Entropy-code the indices: a smaller file, which needs the model to be read.",
    ),
]
Temperature = Annotated[
    str | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Below 1: likelier images; 0: the likeliest. By level: 1,0.8. Default: the model's.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="Draw each code from the K likeliest only.", metavar="K", min=1),
]
TopP = Annotated[
    str | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help=(
            "Draw each code from the likeliest that together have this probability. "
            "By level: 1,0.9. Default: the model's."
        ),
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="W",
        help="Above 1: images more like their label, and less varied. Default: the model's.",
        min=0,
        max=100,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed of all random draws.", min=0, max=2**31 - 1)
]
Background = Annotated[
    str,
    typer.Option(
        "--background",
        metavar="COLOR",
        help="Color that transparency is laid over: white, #ff8800 or 255,136,0.",
    ),
]


@dataclass(frozen=True)
class RunningOptions:
    """Options that say where a model runs, and what is printed."""

    device: Device = None
    precision: Precision = "fp32"
    json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False

    def model(self, name: str | None) -> ModelOptions:
        """Loads the model of that name, to run as these options say."""
        return ModelOptions(name, self.device, self.precision, self.verbose)


def data_options(
    split: list[str] | None, labels: str | None, member: str | None, values: str | None = None
) -> "DataOptions":
    """Returns what the options say of the data. Raises UsageError."""
    from vqtok.data import DataOptions

    return DataOptions.of(split or (), labels, member, values)


def numbers(name: str, text: str | None) -> list[float] | None:
    """Reads one number, or one for each level, like 1,0.8. Raises UsageError."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{name} is {text!r}", f"write a number, or one for each level: {name} 1,0.8"
        ) from None
