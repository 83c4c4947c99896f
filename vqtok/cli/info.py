"""`vqtok info` and `vqtok models`: what files and models are, without torch."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from vqtok.cli import options as o
from vqtok.cli import output


@output.guarded
def info(
    file: Annotated[str, typer.Argument(help="A codes file, a weights file, a model's folder or its name.", metavar="FILE")],
    json: o.Json = False,
) -> None:
    """Say what a file or model is."""
    facts = _facts(file)
    if json:
        output.print_json(facts)
    else:
        from vqtok.report import rich_table

        rows = [[key.replace("_", " "), _shown(value)] for key, value in facts.items()]
        output.print_table(rich_table(["", file], rows))


def _facts(file: str) -> dict[str, Any]:
    """What there is to say of codes (read whole and checked), a weights file's header, or a model."""
    from vqtok import codes, weights

    path = Path(file)
    if path.is_file() and path.suffix != ".safetensors":
        found = codes.read(path)
        n, L, h, w = found.indices.shape
        size = path.stat().st_size
        return {
            "kind": "codes", "model": found.model, "fingerprint": found.fingerprint, "pictures": n, "grid": [w, h, L],
            "codebook_size": found.codebook_size, "downsample": found.downsample, "channels": found.channels,
            "sizes": [[width, height] for height, width in sorted(set(found.sizes))], "bytes": size,
            "bpp": round(8 * size / found.pixels, 4), "raw_bpp": round(found.bits / found.pixels, 4),
        }     # fmt: skip
    if path.is_file() and path.name not in ("tokenizer.safetensors", "prior.safetensors"):
        return _weights_facts(path)
    if path.name == "prior.safetensors":
        return _weights_facts(path)
    model = weights.find(file)
    facts = {"name": model.name, "path": str(model.path), **_weights_facts(model.tokenizer)}
    facts["fingerprint"] = weights.tokenizer_fingerprint(model.tokenizer)
    if model.prior is not None:
        facts["prior"] = weights.read_meta(model.prior, "prior")["config"]
    return facts


def _weights_facts(path: Path) -> dict[str, Any]:
    from vqtok import weights

    meta = weights.read_meta(path)
    return {"kind": meta["kind"], "bytes": path.stat().st_size, "config": meta["config"], "record": meta["record"]}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items())
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return "x".join(map(str, value)) if all(isinstance(v, int) for v in value) else ", ".join(_shown(v) for v in value)
    return str(value)


@output.guarded
def models(json: o.Json = False) -> None:
    """List the models that come with vqtok, and those in the folders that VQTOK_MODELS names."""
    from vqtok import weights
    from vqtok.errors import VqtokError
    from vqtok.report import rich_table

    found = []
    for model in weights.models():
        try:
            found.append(_model_facts(model))
        except VqtokError as error:     # one damaged model must not hide the others
            output.show_error(error)
    if json:
        for facts in found:
            output.print_json(facts)
    else:
        headers = ["model", "f", "K", "bits per pixel", "PSNR, dB", "labels", "prior", "size", "fingerprint"]
        rows = [
            [m["name"], m["downsample"], m["codebook_size"], f"{m['bpp']:.3f}", _number(m["validation"].get("psnr")),
             len(m["labels"]) or "", "yes" if m["prior"] else "no", f"{m['bytes'] / 1e6:.1f} MB", m["fingerprint"]]
            for m in found
        ]     # fmt: skip
        output.print_table(rich_table(headers, rows, "PSNR is of validation pictures; the cards in the models' folders say more"))


def _model_facts(model: Any) -> dict[str, Any]:
    from vqtok import weights

    meta = weights.read_meta(model.tokenizer, "tokenizer")
    config, record = meta["config"], meta["record"]
    prior = weights.read_meta(model.prior, "prior") if model.prior else None
    parts = [model.tokenizer] + ([model.prior] if model.prior else [])
    try:
        bpp = config["levels"] * math.log2(config["codebook_size"]) / config["downsample"] ** 2
        downsample, K = int(config["downsample"]), int(config["codebook_size"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        from vqtok.errors import FormatError

        raise FormatError(f"{model.tokenizer} has a damaged config", "copy or download the file again") from None
    return {
        "name": model.name, "path": str(model.path), "downsample": downsample, "codebook_size": K, "bpp": bpp,
        "validation": record.get("metrics", {}), "labels": list(prior["config"].get("labels", ())) if prior else [],
        "prior": prior is not None, "bytes": sum(part.stat().st_size for part in parts),
        "fingerprint": weights.tokenizer_fingerprint(model.tokenizer),
    }     # fmt: skip


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else ""
