"""Guidance, temperature and top-p by level, and the defaults that a prior's file holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok
from conftest import make_model
from test_priors import tiny
from test_priors_architectures import causal, made
from train_helpers import go, recipe_for

from vqtok import codec, codes, weights
from vqtok.config import SamplingConfig
from vqtok.data import Shapes
from vqtok.errors import FormatError, UsageError
from vqtok.sampling import sample_grids
from vqtok.sampling.guidance import GuidedCursor


@pytest.mark.parametrize("levels", [1, 2])
@causal
def test_guidance_mixes_the_logits_of_both(
    architecture: str, levels: int, monkeypatch: pytest.MonkeyPatch
):
    """Each place's logits are u + W (c - u) of full passes with the label, c, and without, u."""
    prior, found = made(architecture, levels, 4, 5), []
    logits = GuidedCursor.logits

    def kept(self: GuidedCursor) -> object:
        found.append(torch.as_tensor(logits(self)).clone())
        return found[-1].numpy() if isinstance(logits(self), np.ndarray) else found[-1]

    monkeypatch.setattr(GuidedCursor, "logits", kept)
    for weight in (0.0, 0.5, 3.0):
        found.clear()
        grids = sample_grids(prior, 3, (4, 5), labels=[0, 2, -1], guidance=weight)
        mixed = torch.stack(found, 1).view(3, levels, 4, 5, -1)
        with torch.no_grad():
            c, u = prior(grids, torch.tensor([0, 2, -1])), prior(grids)
        torch.testing.assert_close(mixed, u + weight * (c - u), atol=1e-4, rtol=0)
        assert not torch.allclose(mixed[0], c[0], atol=1e-3)


def test_guidance_of_1_or_without_a_label_changes_nothing():
    prior, same = tiny(2), {"seed": 4, "top_p": 0.9}
    for labels in (None, 1):
        plain = sample_grids(prior, 2, (4, 5), labels=labels, **same)
        assert torch.equal(plain, sample_grids(prior, 2, (4, 5), labels=labels, guidance=1, **same))
    plain = sample_grids(prior, 2, (4, 5), **same)
    assert torch.equal(plain, sample_grids(prior, 2, (4, 5), guidance=4, **same))
    unlabeled = tiny(labels=())
    assert torch.equal(
        sample_grids(unlabeled, 2, (4, 5), seed=1),
        sample_grids(unlabeled, 2, (4, 5), seed=1, guidance=2),
    )


def test_known_places_stay_under_guidance():
    known = torch.full((2, 1, 4, 5), -1)
    known[:, :, 1:3, 2] = 7
    grids = sample_grids(tiny(), 2, (4, 5), labels=1, guidance=3, known=known)
    assert (grids[:, :, 1:3, 2] == 7).all()
    assert int(grids.max()) < 11


def test_each_level_has_its_temperature_and_top_p():
    prior = tiny(3)
    plain = sample_grids(prior, 2, (4, 5), seed=2)
    mixed = sample_grids(prior, 2, (4, 5), seed=2, temperature=[1, 0])
    assert torch.equal(mixed[:, 0], plain[:, 0])
    with torch.no_grad():
        likeliest = prior(mixed).argmax(-1)
    assert torch.equal(mixed[:, 1:], likeliest[:, 1:])  # the last stands for all further levels
    nearly = sample_grids(prior, 2, (4, 5), seed=2, top_p=[1.0, 1e-9])
    assert torch.equal(nearly, mixed)


@pytest.mark.parametrize(
    "options", [{"temperature": [1, 1, 1]}, {"top_p": []}, {"guidance": -1}, {"guidance": 1e9}]
)
def test_what_cannot_be_drawn(options: dict):
    with pytest.raises(UsageError):
        sample_grids(tiny(2), 1, (2, 2), labels=0, **options)


# Defaults in the prior's file


def with_sampling(folder: Path, sampling: object) -> codec.Model:
    path = folder / "prior.safetensors"
    stored = weights.load_weights(path, "prior")
    stored.meta["record"]["sampling"] = sampling
    weights.save_weights(path, stored)
    return codec.load(folder)


def test_a_prior_file_holds_defaults(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    plain = codec.load(folder)
    chosen = {"temperature": [0.5], "top_p": 0.8, "guidance": 2.5}
    wanted = plain.sample_codes(3, seed=1, temperature=0.5, top_p=0.8, guidance=2.5)
    before = plain.sample_codes(3, seed=1)
    model = with_sampling(folder, chosen)
    assert np.array_equal(model.sample_codes(3, seed=1).indices, wanted.indices)
    # what is asked for counts more
    asked = model.sample_codes(3, seed=1, temperature=1, top_p=1, guidance=1)
    assert np.array_equal(asked.indices, before.indices)
    assert not np.array_equal(before.indices, wanted.indices)


@pytest.mark.parametrize(
    "sampling",
    [
        [],
        {"temperature": "1"},
        {"temperature": [1, 1]},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": [None]},
        {"guidance": True},
        {"guidance": [2]},
        {"speed": 1},
    ],
    ids=str,
)
def test_defaults_that_are_none(tmp_path: Path, sampling: object):
    model = with_sampling(make_model(tmp_path / "m"), sampling)
    with pytest.raises(FormatError, match="settings of sampling"):
        model.sample_codes(1)


@pytest.mark.parametrize("chosen", [{}, {"guidance": 3.0}, {"temperature": 0.5, "top_p": 0.75}])
def test_a_recipe_chooses_them(tmp_path: Path, chosen: dict[str, float]):
    data = Shapes(24)
    steps = {f"{name}_training": {"steps": 2} for name in ("tokenizer", "prior")}
    assert go(tmp_path, recipe_for(data, sampling=chosen, **steps), data, stage="tokenizer")
    assert go(tmp_path, recipe_for(data, sampling=chosen, **steps), data, stage="prior")
    stored = weights.load_weights(tmp_path / "prior.safetensors", "prior")
    # nothing is written that need not be: files of recipes without it stay as they were
    assert stored.record.get("sampling") == (chosen or None)
    model, asked_for = codec.load(tmp_path), SamplingConfig(**chosen)
    asked = model.sample_codes(
        3,
        seed=1,
        temperature=asked_for.temperature,
        top_p=asked_for.top_p,
        guidance=asked_for.guidance,
    )
    assert np.array_equal(model.sample_codes(3, seed=1).indices, asked.indices)


@pytest.mark.usefixtures("toy")
def test_as_typed():
    ok("sample", "-n", "3", "-o", "a.npz", "--guidance", "2", "--temperature", "0.5")
    ours = codec.load("toy").sample_codes(3, guidance=2, temperature=0.5)
    found = codes.read_any_codes(Path("a.npz"))
    assert isinstance(found, codes.Codes)
    assert np.array_equal(found.indices, ours.indices)
    assert "write a number" in fails("sample", "--temperature", "warm", "-o", "b.npz", code=2)
    assert "2 values for 1 level" in fails("sample", "--top-p", "1,0.9", "-o", "b.npz", code=2)
    assert not Path("b.npz").exists()
