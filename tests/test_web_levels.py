"""The page's reader and decoder in Node: indices of more than 16 bits, levels that are parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOKENIZER, image, make_model
from test_web import RUN, assert_equal, needs_node, node

import vqtok
from vqtok import model_registry, weights
from vqtok.codes import Codes, index_dtype, to_compact, write_codes
from vqtok.web import site


@pytest.mark.slow
@needs_node
def test_grids_of_more_codes_than_16_bits_hold(tmp_path: Path):
    rng, jobs, expected = np.random.default_rng(0), [], []
    for K in (65536, 65537, 1 << 18, (1 << 24) + 3, 1 << 32):
        indices = rng.integers(0, K, (2, 3, 5, 7)).astype(index_dtype(K))
        indices[0, 0, 0, 0], indices[-1, -1, -1, -1] = 0, K - 1
        codes = Codes(indices, "a", "0badcafe", K, 4, 3, ((20, 27), (18, 28)))
        for form in (codes, to_compact(codes)):
            path = tmp_path / f"{len(jobs)}.npz"
            write_codes(path, form)
            jobs.append({"file": str(path), "prior": str(RUN), "plain": False})
            expected.append(codes)
    for found, codes in zip(node(jobs), expected, strict=True):
        assert_equal(found, codes)


@pytest.mark.slow
@needs_node
def test_product_levels_decode_as_in_python(tmp_path: Path):
    config = replace(TOKENIZER, levels=3, product=True, code_dim=12, normalize=False)
    path = make_model(tmp_path / "m", config, prior=None) / "tokenizer.safetensors"
    stored = weights.load_weights(path, "tokenizer")
    stored.tensors["quantizer.depth"] = torch.randn(3, 12).numpy()
    weights.save_weights(path, stored, force=True)
    model = vqtok.load(tmp_path / "m", "cpu")
    (tmp_path / "model").write_bytes(site.decoder_weights(model_registry.find_model(str(path))))
    codes = model.encode(image(24, 16))
    write_codes(tmp_path / "a.npz", codes)
    jobs = [
        {
            "file": str(tmp_path / "a.npz"),
            "model": str(tmp_path / "model"),
            "levels": levels,
            "parts": 1,
            "out": str(tmp_path / f"{levels}"),
        }
        for levels in (1, 2, 3)
    ]
    node(jobs)
    for job in jobs:
        found = np.fromfile(job["out"], np.uint8).reshape(24, 16, 4)[..., :3]
        expected = model.decode(codes, job["levels"]).astype(int)
        assert np.abs(expected - found).max() <= 1
