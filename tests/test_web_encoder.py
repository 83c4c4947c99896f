"""The encoder of the page, in Node and in Chromium, against Python's."""

import base64
import io
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser
from cli_helpers import ok
from PIL import Image
from web_helpers import GOLDEN, choose, needs_browser, needs_node, node, wait

import vqtok
from vqtok import model_registry, weights
from vqtok.codes.io import to_bytes
from vqtok.config import TokenizerConfig
from vqtok.networks.vqvae import VQVAE
from vqtok.web import site


def images(C: int) -> list[np.ndarray]:
    """Smooth images and noise, of sizes that fill their grids and of others."""
    rng, made = np.random.default_rng(4), []
    for H, W in [(1, 1), (64, 64), (37, 61), (210, 33), (16, 300)]:
        small = rng.integers(0, 256, (H // 6 + 2, W // 6 + 2, 3), np.uint8)
        smooth = np.array(Image.fromarray(small).resize((W, H), Image.Resampling.BICUBIC))
        made += [smooth, rng.integers(0, 256, (H, W, 3), np.uint8)]
    return made if C == 3 else [gray(image) for image in made]


def gray(image: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(image).convert("L"))[..., None]


def encode_in_node(folder: Path, model: str, given: list[np.ndarray]) -> list[bytes]:
    """Codes files that the modules write of images (H, W, C)."""
    found = model_registry.find_model(model)
    (folder / "model").write_bytes(site.decoder_weights(found))
    (folder / "encoder").write_bytes(site.encoder_weights(found))
    jobs = []
    for number, image in enumerate(given):
        H, W = image.shape[:2]
        rgba = np.full((H, W, 4), 255, np.uint8)
        rgba[..., :3] = image
        (folder / f"{number}.rgba").write_bytes(rgba.tobytes())
        jobs.append(
            {
                "rgba": str(folder / f"{number}.rgba"),
                "size": [H, W],
                "model": str(folder / "model"),
                "encoder": str(folder / "encoder"),
                "codes": str(folder / f"{number}.npz"),
            }
        )
    assert all("strips" in answer for answer in node(jobs))
    return [Path(job["codes"]).read_bytes() for job in jobs]


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("name", ["vq", "simvq", "fsq", "lfq", "pixels", "run", "stopped"])
def test_indices_are_those_of_python(name: str, tmp_path: Path):
    """But for near ties, which another machine's rounding may break the other way."""
    path = GOLDEN / "tokenizers" / f"{name}.safetensors"
    path = path if path.exists() else GOLDEN / name
    assert_same_codes(vqtok.load(path, "cpu"), str(path), tmp_path)


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"shortcut": True}, "downsampling with a path without weights"),
        ({"shortcut": True, "width": 5, "fold": 1, "channels": 1}, "means of pairs; odd widths"),
        ({"normalize": True}, "vectors of length 1"),
        ({"distance": "dot"}, "the largest inner product"),
        ({"codebook_size": 300, "code_dim": 9}, "indices of two bytes"),
        ({"quantizer": "fsq", "codebook_size": 240, "levels": 2}, "numbers of 8, 6 and 5 values"),
    ],
)
def test_indices_are_those_of_python_with_other_settings(
    changed: dict[str, Any], what: str, tmp_path: Path
):
    config = TokenizerConfig(**{**SMALL, **changed})
    torch.manual_seed(5)
    network = VQVAE(config)
    for name, parameter in network.named_parameters():
        if name.startswith("encoder") and parameter.dim() > 1:
            parameter.data += torch.randn_like(parameter) / parameter[0].numel() ** 0.5
    tensors = {name: value.half().numpy() for name, value in network.release_state().items()}
    meta = {"kind": "tokenizer", "config": asdict(config), "record": {}}
    path = tmp_path / "tokenizer.safetensors"
    weights.save_weights(path, weights.Weights(tensors, meta))
    assert_same_codes(vqtok.load(path, "cpu"), str(path), tmp_path)


SMALL: dict[str, Any] = {
    **{"downsample": 8, "fold": 2, "width": 6, "encoder_blocks": 1, "decoder_blocks": 0},
    **{"codebook_size": 64, "code_dim": 5, "quantizer": "vq", "normalize": False},
}


def assert_same_codes(model: vqtok.Model, name: str, folder: Path) -> None:
    given, places, different = images(model.config.channels), 0, 0
    for image, data in zip(given, encode_in_node(folder, name, given), strict=True):
        expected, found = model.encode(image), vqtok.read_codes(data)
        assert found.description == expected.description
        assert list(np.load(io.BytesIO(data))) == ["indices", "meta"]
        places += found.indices.size
        different += np.count_nonzero(found.indices != expected.indices)
        if different == 0:
            assert members(data) == members(to_bytes(expected))
    assert different <= 0.002 * places


def members(data: bytes) -> dict[str, tuple[bytes, tuple[int, ...], int, int]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {
            info.filename: (archive.read(info), info.date_time, info.flag_bits, info.compress_type)
            for info in archive.infolist()
        }


# The page


@needs_browser
def test_the_page_makes_codes_of_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ok("web", "-m", GOLDEN / "run", "--encoder", "-o", "site")
    model = vqtok.load(GOLDEN / "run", "cpu")
    image = images(3)[6]  # (210, 33)
    image = image if model.config.channels == 3 else gray(image)
    Image.fromarray(image.squeeze()).save("photo.png")
    clear = np.dstack([np.broadcast_to(image, (*image.shape[:2], 3)), image[..., :1]])
    Image.fromarray(clear).save("clear.webp", lossless=True, exact=True)
    with browser() as page:
        page.open(tmp_path / "site" / "index.html")
        assert wait(page, "Ready") == ""
        choose(page, tmp_path / "photo.png")
        assert wait(page, "Decoded photo.png") == ""
        expected = model.encode("photo.png")
        assert vqtok.read_codes(saved(page)).description == expected.description
        different = vqtok.read_codes(saved(page)).indices != expected.indices
        assert different.mean() <= 0.002
        page.run("document.getElementById('levels').focus()")
        page.press("ArrowLeft")
        assert wait(page, "Decoded photo.png at 1 of 2") == ""
        assert vqtok.read_codes(saved(page)).levels == 1
        choose(page, tmp_path / "clear.webp")  # what is transparent is laid over white
        assert wait(page, "Decoded clear.webp") == ""
        different = vqtok.read_codes(saved(page)).indices != model.encode("clear.webp").indices
        assert different.mean() <= 0.1  # a browser rounds the mix in its own way
        page.run("document.getElementById('side').value = '1024'")
        Image.new("L", (9000, 6000)).save("large.png")
        choose(page, tmp_path / "large.png")
        assert wait(page, "Decoded large.png") == ""
        assert vqtok.read_codes(saved(page)).sizes == ((683, 1024),)
        page.run("document.getElementById('side').value = '0'")
        choose(page, (tmp_path / "large.png").rename(tmp_path / "larger.png"))
        assert "9000 x 6000: larger than this page encodes" in wait(page, "never")
        (tmp_path / "text.png").write_text("hello")
        choose(page, tmp_path / "text.png")
        assert "neither a codes file (.npz) nor an image" in wait(page, "never")


def saved(page: Any) -> bytes:
    """What the page saves of the photo that it shows."""
    return base64.b64decode(page.run("btoa(String.fromCharCode(...current.file))"))


@needs_browser
def test_a_page_without_encoder_says_how_to_get_one(tmp_path: Path):
    site.make_site(model_registry.find_model(str(GOLDEN / "run"))).write(tmp_path, False)
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    with browser() as page:
        page.open(tmp_path / "index.html")
        assert wait(page, "Ready") == ""
        choose(page, tmp_path / "photo.png")
        assert "--encoder" in wait(page, "never")
