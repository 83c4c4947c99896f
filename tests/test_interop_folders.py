"""Checkpoints in folders: variants, several files and an index, pipelines, a single checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import interop_helpers
import numpy as np
import pytest
import safetensors.torch
import torch
from interop_helpers import save

from vqtok import interop
from vqtok.errors import FormatError, InputError, VqtokError

STEM = "diffusion_pytorch_model"


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return interop.convert_checkpoint(interop.read_checkpoint(path)).weights.tensors


def write_parts(
    folder: Path, state: dict[str, torch.Tensor], name: str, index: str, binary: bool = False
) -> None:
    """Three files and their index, as `max_shard_size` makes them; name holds a {}."""
    names, table = sorted(state), {}
    for i in range(3):
        part = {key: state[key] for key in names[i::3]}
        file = name.format(f"{i + 1:05d}-of-00003")
        (torch.save if binary else safetensors.torch.save_file)(part, folder / file)
        table.update(dict.fromkeys(part, file))
    total = sum(value.nbytes for value in state.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": table})
    (folder / index).write_text(text)


Write = Callable[[Path, dict[str, torch.Tensor]], None]
WRITERS: dict[str, Write] = {
    "fp16": lambda f, s: safetensors.torch.save_file(s, f / f"{STEM}.fp16.safetensors"),
    "ema": lambda f, s: safetensors.torch.save_file(s, f / f"{STEM}.ema.safetensors"),
    "fp16 bin": lambda f, s: torch.save(s, f / f"{STEM}.fp16.bin"),
    "parts": lambda f, s: write_parts(
        f, s, STEM + "-{}.safetensors", f"{STEM}.safetensors.index.json"
    ),
    "parts bin": lambda f, s: write_parts(
        f, s, STEM + "-{}.bin", f"{STEM}.bin.index.json", binary=True
    ),
    "parts fp16": lambda f, s: write_parts(
        f, s, STEM + ".fp16-{}.safetensors", f"{STEM}.safetensors.index.fp16.json"
    ),
    "parts fp16 old": lambda f, s: write_parts(
        f, s, STEM + "-{}.fp16.safetensors", f"{STEM}.safetensors.index.fp16.json"
    ),
}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """The folder of a VQModel with its config alone, its tensors, and what is to come of them."""
    source, folder = save("diffusers", tmp_path / "vqvae")
    wanted = tensors_of(folder)
    for path in folder.glob(f"{STEM}*"):
        path.unlink()
    return folder, {k: v.contiguous() for k, v in source.tensors.items()}, wanted


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("pipeline", [False, True])
def test_folders_of_save_pretrained(source: tuple, write: Write, pipeline: bool):
    folder, state, wanted = source
    write(folder, state)
    path = folder
    if pipeline:
        path = folder.parent
        index = {
            "_class_name": "LDMPipeline",
            "_diffusers_version": "0.38.0",
            "unet": ["diffusers", "UNet2DModel"],
            "safety_checker": [None, None],
            "vqvae": ["diffusers", "VQModel"],
        }
        (path / "model_index.json").write_text(json.dumps(index))
    found = tensors_of(path)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


@pytest.mark.slow
def test_weights_without_a_variant_come_first(source: tuple):
    folder, state, wanted = source
    safetensors.torch.save_file(state, folder / f"{STEM}.safetensors")
    WRITERS["fp16"](folder, {name: value.half() for name, value in state.items()})
    found = tensors_of(folder)
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_an_index_can_be_given_itself_and_a_part_cannot(source: tuple):
    folder, state, wanted = source
    WRITERS["parts"](folder, state)
    found = tensors_of(folder / f"{STEM}.safetensors.index.json")
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    with pytest.raises(InputError, match="one part") as caught:
        interop.read_checkpoint(folder / f"{STEM}-00001-of-00003.safetensors")
    assert str(folder) in caught.value.fix


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "vq_ds16_c2i.pt", "last.ckpt", "x.pth"])
def test_the_only_checkpoint_in_a_folder(name: str, tmp_path: Path):
    source = interop_helpers.llamagen()
    source, path = save("llamagen", tmp_path / "theirs")
    wanted = tensors_of(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    state = {name: value.contiguous() for name, value in source.tensors.items()}
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, folder / name)
    else:
        torch.save({"model": state}, folder / name)
    found = tensors_of(folder)
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


def refused(folder: Path) -> VqtokError:
    with pytest.raises((InputError, FormatError)) as caught:
        interop.read_checkpoint(folder)
    return caught.value


@pytest.mark.slow
def test_several_checkpoints_are_named(source: tuple):
    folder, state, _ = source
    for variant in ("ema", "fp16"):
        WRITERS[variant](folder, state)
    error = refused(folder)
    assert f"{STEM}.ema.safetensors, {STEM}.fp16.safetensors" in str(error)
    for name in ("a.pt", "b.pt"):
        (folder.parent / name).write_bytes(b"")
    assert "a.pt, b.pt" in str(refused(folder.parent))


def test_a_pipeline_without_a_vqmodel_says_what_it_holds(tmp_path: Path):
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "vae (AutoencoderKL)" in str(refused(tmp_path))


def test_empty_folders_and_parts_without_an_index(source: tuple):
    folder, state, _ = source
    assert STEM in str(refused(folder))
    WRITERS["parts"](folder, state)
    (folder / f"{STEM}.safetensors.index.json").unlink()
    assert "not their index" in str(refused(folder))


def break_index(change: Callable[[dict], object], folder: Path, state: dict) -> VqtokError:
    WRITERS["parts"](folder, state)
    path = folder / f"{STEM}.safetensors.index.json"
    table = json.loads(path.read_text())
    result = change(table)
    path.write_text(result if isinstance(result, str) else json.dumps(table))
    return refused(folder)


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "damaged": (lambda t: "{", "damaged"),
    "deep": (lambda t: "[" * 100_000, "damaged"),
    "list": (lambda t: "[]", "damaged"),
    "empty": (lambda t: t["weight_map"].clear(), "lists no tensors"),
    "no map": (lambda t: t.pop("weight_map"), "lists no tensors"),
    "outside": (
        lambda t: t["weight_map"].update({"a": "../../secret.safetensors"}),
        "names the file",
    ),
    "absolute": (lambda t: t["weight_map"].update({"a": "/etc/passwd"}), "names the file"),
    "number": (lambda t: t["weight_map"].update({"a": 3}), "names the file"),
    "missing part": (lambda t: t["weight_map"].update({"a": "b.bin"}), "not beside it"),
    "missing tensor": (
        lambda t: t["weight_map"].update({"a": f"{STEM}-00001-of-00003.safetensors"}),
        "which lacks it",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_indexes(source: tuple, change: Callable[[dict], object], message: str):
    folder, state, _ = source
    assert message in str(break_index(change, folder, state))
