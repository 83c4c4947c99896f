"""`vqtok info` and `vqtok models`: describes files and models, without torch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output, rate, shards
from vqtok.cli.batch import Failures
from vqtok.errors import FormatError, InputError, ModelError, VqtokError

if TYPE_CHECKING:
    from vqtok.codes import Codes, Compact
    from vqtok.model_registry import ModelFolder


@output.handle_errors
def info(
    file: Annotated[
        str,
        typer.Argument(
            help=(
                "Codes file (- for standard input), folder of codes shards, weights file, or a "
                "model's folder or name."
            ),
            metavar="FILE",
        ),
    ],
    json: o.Json = False,
) -> None:
    """Say what a file or model is."""
    facts = _facts(file)
    if json:
        output.print_json(facts)
    else:
        from vqtok.plots import rich_table

        output.print_table(rich_table(["", file], list(_rows(facts))))


def _facts(file: str) -> dict[str, Any]:
    """Returns what there is to say of codes (read whole and checked), of a weights file's header,
    or of a model.
    """
    from vqtok import codes, files, model_registry

    if file == "-":
        data = files.read_stdin(codes.FILE_LIMIT)
        return _codes_facts(codes.read_any_codes(data, "standard input"), len(data))
    path = Path(file)
    if os.path.isfile(file) and path.name != "tokenizer.safetensors":
        with open(file, "rb") as opened:
            start = opened.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            return _weights_facts(path)
        if start[:2] != b"PK":
            raise FormatError(
                f"{file} is neither codes nor weights",
                "give a .npz or .safetensors file, or a model's folder or name",
            )
        return _codes_facts(codes.read_any_codes(path), os.path.getsize(file))
    if shards.is_shards(file):
        found = shards.facts(path)
        home, levels = _home(found["model"], found["fingerprint"], found.get("prior"))
        return {**found, "model_path": home, "model_levels": levels}
    if path.suffix in (".npz", ".safetensors") and not os.path.exists(file):
        raise InputError(f"{file} does not exist", "check the name")
    return _model_facts(model_registry.find_model(file))


def _home(model: str, fingerprint: str, prior: str | None = None) -> tuple[str | None, int | None]:
    """Returns the folder and the levels of the model that decodes codes; None where it is not
    here, or not with the entropy prior that coded them.
    """
    from vqtok import model_registry, weights

    try:
        folder = model_registry.find_by_fingerprint(model, fingerprint)
        levels = weights.tokenizer_config(folder.tokenizer).levels
        if prior is not None:
            if folder.entropy is None:
                return None, levels
            stored = weights.load_weights(folder.entropy, "entropy")
            if not weights.fingerprint(stored.tensors).startswith(prior):
                return None, levels
        return str(folder.path), levels
    except (ModelError, FormatError):
        # FormatError: the tensors are there, but their config is damaged
        return None, None


def _codes_facts(codes: "Codes | Compact", size: int) -> dict[str, Any]:
    from vqtok.codes import Codes, form

    prior = None if isinstance(codes, Codes) else codes.prior
    home, levels = _home(codes.model, codes.fingerprint, prior)
    return {
        "kind": "codes",
        "model": codes.model,
        "fingerprint": codes.fingerprint,
        "model_path": home,
        "pictures": len(codes),
        "model_levels": levels,
        "codebook_size": codes.codebook_size,
        "downsample": codes.downsample,
        "channels": codes.channels,
        "sizes": [[width, height] for height, width in sorted(set(codes.sizes))],
        **({} if codes.range is None else {"range": list(codes.range)}),
        **rate.facts(codes, form(codes), size),
        **(
            {}
            if isinstance(codes, Codes)
            else {"prior": codes.prior, "index_bytes": sum(map(len, codes.streams))}
        ),
    }


def _weights_facts(path: Path) -> dict[str, Any]:
    from vqtok import weights

    meta = weights.read_meta(path)
    return {
        "kind": meta["kind"],
        "bytes": os.path.getsize(path),
        "config": meta["config"],
        "record": meta["record"],
    }


def _model_facts(model: "ModelFolder") -> dict[str, Any]:
    from vqtok import weights

    tokenizer = weights.read_meta(model.tokenizer, "tokenizer")
    prior = weights.read_meta(model.prior, "prior") if model.prior else None
    entropy = weights.read_meta(model.entropy, "entropy") if model.entropy else None
    parts = [part for part in (model.tokenizer, model.prior, model.entropy) if part]
    return {
        "kind": "model",
        "name": model.name,
        "path": str(model.path),
        "fingerprint": weights.tokenizer_fingerprint(model.tokenizer),
        "bytes": sum(os.path.getsize(part) for part in parts),
        "bpp": _raw_bpp(tokenizer["config"], model.tokenizer),
        "tokenizer": {"config": tokenizer["config"], "record": tokenizer["record"]},
        "prior": {"config": prior["config"], "record": prior["record"]} if prior else None,
        "entropy_prior": (
            {"config": entropy["config"], "record": entropy["record"]} if entropy else None
        ),
    }


def _raw_bpp(values: dict[str, Any], path: Path) -> float:
    """Computes the bits per pixel of raw indices. Raises FormatError where the config is
    damaged.
    """
    from vqtok import config

    checked = config.from_dict(config.TokenizerConfig, values, str(path))
    return checked.levels * math.log2(checked.codebook_size) / checked.downsample**2


def _rows(facts: dict[str, Any], indent: str = "") -> Iterator[list[str]]:
    """Yields name and value of each fact; nested facts come below the one that holds them."""
    from vqtok.files import human_bytes

    for key, value in facts.items():
        name = indent + ("images" if key == "pictures" else key.replace("_", " "))
        if isinstance(value, dict):
            yield [name, ""]
            yield from _rows(value, indent + "  ")
        elif key == "model_path":
            yield [
                "decodes with",
                value
                or f"no model here{_with_prior(facts)}: give its folder to vqtok decode --model",
            ]
        elif key == "levels" and facts.get("model_levels"):
            yield [name, f"{value} of {facts['model_levels']}"]
        elif key == "model_levels":  # shown beside the file's own
            continue
        elif key in ("stages", "attention") and value:  # a list of numbers, no size
            yield [name, ", ".join(map(str, value))]
        else:
            yield [name, human_bytes(value) if key == "bytes" else _shown(value)]


def _with_prior(facts: dict[str, Any]) -> str:
    return f" with the entropy prior {facts['prior']}" if facts.get("prior") else ""


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return (
            "x".join(map(str, value))
            if all(isinstance(v, int) for v in value)
            else ", ".join(_shown(v) for v in value)
        )
    return str(value)


@output.handle_errors
def models(json: o.Json = False) -> None:
    """List the models on this machine.

    They are those that come with vqtok, and those in the folders that VQTOK_MODELS names.
    """
    from vqtok import model_registry
    from vqtok.plots import rich_table

    found, folders = [], model_registry.list_models()
    failures = Failures(len(folders), keep_going=True)
    for folder in folders:
        try:
            found.append(_listed(folder))
        except VqtokError as error:  # one damaged model must not hide the others
            failures.add(error)
    if not folders:
        raise ModelError(
            "there is no model here",
            "train one with vqtok train, or name folders of models in VQTOK_MODELS",
        )
    if json:
        for facts in found:
            output.print_json(facts)
    elif found:
        headers = [
            "model",
            "f",
            "K",
            "levels",
            "bpp",
            "PSNR, dB",
            "labels",
            "prior",
            "entropy prior",
            "size",
            "fingerprint",
        ]
        output.print_table(rich_table(headers, [_row(m) for m in found]))
        output.say(
            "f: pixels a code along each axis. K: codes at each level. bpp: bits per pixel. PSNR: "
            "of validation crops while training; vqtok eval measures whole images. "
            "Entropy prior: codes compact files."
        )
    failures.finish()


def _listed(model: "ModelFolder") -> dict[str, Any]:
    """Returns the facts of a model that the list shows. Raises FormatError where its files are
    damaged.
    """
    facts = _model_facts(model)
    config, record, prior = (
        facts["tokenizer"]["config"],
        facts["tokenizer"]["record"],
        facts["prior"],
    )
    metrics, labels = record.get("metrics"), prior["config"].get("labels") if prior else []
    return {
        **{key: facts[key] for key in ("name", "path", "fingerprint", "bytes", "bpp")},
        "downsample": config["downsample"],
        "codebook_size": config["codebook_size"],
        "levels": config["levels"],
        "validation": metrics if isinstance(metrics, dict) else {},
        "labels": labels if isinstance(labels, list) else [],
        "prior": prior is not None,
        "entropy_prior": facts["entropy_prior"] is not None,
    }


def _row(m: dict[str, Any]) -> list[Any]:
    from vqtok.files import human_bytes

    psnr = m["validation"].get("psnr")
    return [
        m["name"],
        m["downsample"],
        m["codebook_size"],
        m["levels"],
        f"{m['bpp']:.3f}",
        f"{psnr:.2f}" if isinstance(psnr, float) else "",
        len(m["labels"]) or "none",
        "yes" if m["prior"] else "no",
        "yes" if m["entropy_prior"] else "no",
        human_bytes(m["bytes"]),
        m["fingerprint"],
    ]
