"""Several levels in the library: any first few of them are an image, and every part of it
knows how many there are.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PRIOR, TOKENIZER, image, make_model

from vqtok import codec, codes
from vqtok.errors import ModelError, UsageError
from vqtok.priors import PixelCNN, cross_entropy
from vqtok.quantizers import ResidualQuantizer
from vqtok.sampling import sample_grids

THREE = replace(TOKENIZER, levels=3, normalize=False)


@pytest.fixture
def model(tmp_path: Path) -> codec.Model:
    """A model of three levels, called `three`, whose prior has opinions."""
    made = codec.load(make_model(tmp_path / "models" / "three", THREE, replace(PRIOR, levels=3)))
    with torch.no_grad():
        quantizer = made.network.quantizer
        assert isinstance(quantizer, ResidualQuantizer)
        quantizer.depth.normal_()
        for parameter in made.prior.readout.parameters():
            parameter.mul_(50)
    return made


def test_encode_fewer_levels_is_encode_and_cut(model: codec.Model):
    whole = model.encode(image())
    assert whole.levels == 3
    for count in (1, 2, 3):
        cut = model.encode(image(), levels=count)
        assert cut == whole.first_levels(count) == model.encode_batch([image()], count)
        assert (cut.indices == whole.indices[:, :count]).all()
        assert cut.bits * 3 == whole.bits * count


def test_decode_takes_the_first_levels_of_codes_that_have_more(model: codec.Model):
    whole = model.encode(image())
    shown = [model.decode(whole, levels) for levels in (1, 2, 3)]
    for count, decoded in enumerate(shown, 1):
        assert decoded.shape == (20, 30, 3)
        assert (decoded == model.decode(whole.first_levels(count))).all()
        expected = model.network.decode(
            torch.from_numpy(whole.indices[:, :count].astype(np.int64))
        )[..., :20, :30]
        assert (
            np.abs(
                decoded - (expected[0].permute(1, 2, 0).clamp(-1, 1).numpy(force=True) + 1) * 127.5
            ).max()
            <= 0.51
        )
    assert (shown[0] != shown[1]).any()
    assert (shown[1] != shown[2]).any()
    assert (model.decode(whole) == shown[2]).all()
    assert torch.equal(
        model.output(whole.first_levels(2), 0),
        model.output(replace(whole, indices=whole.indices[:, :2]), 0),
    )


def test_levels_that_are_not_there(model: codec.Model):
    for levels in (0, 4, -1):
        with pytest.raises(UsageError, match=f"the model three has 3 levels, not {levels}"):
            model.encode(image(), levels=levels)
    cut = model.encode(image(), levels=2)
    for levels in (0, 3):
        with pytest.raises(UsageError, match=f"hold 2 levels, not {levels}") as caught:
            model.decode(cut, levels)
        assert caught.value.fix == "choose 1 to 2 levels"
    more = replace(cut, indices=np.repeat(cut.indices, 2, 1))  # four
    with pytest.raises(ModelError, match="do not fit the model three"):
        model.decode(more)


def test_one_level_says_that_it_is_the_only_one(tmp_path: Path):
    single = codec.load(make_model(tmp_path / "models" / "single"))
    assert single.encode(image(), levels=1) == single.encode(image())
    with pytest.raises(UsageError, match="has 1 level, not 2") as caught:
        single.encode(image(), levels=2)
    assert "leave" in caught.value.fix


def test_training_state_is_gone_from_every_level(model: codec.Model):
    assert [name for name, _ in model.network.named_modules() if name.endswith("average")] == []
    assert {tensor.device.type for tensor in model.network.state_dict().values()} == {
        model.device.type
    }


def test_prior_weighs_the_first_levels_as_it_weighs_them_among_all(model: codec.Model):
    indices = torch.from_numpy(model.encode(image(24, 32)).indices.astype(np.int64))
    with torch.no_grad():
        nats, logits = model.prior.nats(indices), model.prior(indices)
        for count in (1, 2):
            torch.testing.assert_close(model.prior.nats(indices[:, :count]), nats[:, :count])
            torch.testing.assert_close(model.prior(indices[:, :count]), logits[:, :count])
    bits = [float(cross_entropy(model.prior, indices[:, :count])) for count in (1, 2, 3)]
    assert bits == sorted(bits)
    assert bits[1] == pytest.approx(float(nats[:, :2].sum()) / np.log(2), rel=1e-5)
    with pytest.raises(AssertionError, match="4 levels in, 3 in the prior"):
        model.prior.nats(torch.cat([indices, indices[:, :1]], 1))


def test_sampling_a_few_levels_gives_the_first_of_all(model: codec.Model):
    whole = model.sample_codes(2, seed=5)
    assert whole.levels == 3
    for count in (1, 2):
        assert model.sample_codes(2, seed=5, levels=count) == whole.first_levels(count)
    assert model.sample(1, levels=1)[0].shape == (16, 20, 3)
    with pytest.raises(UsageError, match="has 3 levels, not 4"):
        model.sample_codes(1, levels=4)
    prior = PixelCNN(replace(PRIOR, levels=2))
    with pytest.raises(UsageError, match="3 levels cannot be drawn: the prior has 2"):
        sample_grids(prior, 1, (2, 2), levels=3)


def test_complete_invents_the_levels_that_the_codes_lack(model: codec.Model):
    whole = model.encode(image())
    completed = model.complete(whole.first_levels(1), "top:0.5", 4)
    assert completed.levels == 3
    same = (completed.indices == whole.indices).all(0)  # (L, h, w)
    assert same[0, :2].all()
    assert not same[1:, :2].all()
    assert (completed.indices[0, 1:, :2] != completed.indices[1, 1:, :2]).any()
    two = model.complete(whole, "top:0.5", levels=2)
    assert two.levels == 2
    assert (two.indices[:, :, :2] == whole.indices[:, :2, :2]).all()


class CountingPacker:
    """Packs bits, and counts how often codes are coded."""

    def __init__(self) -> None:
        self.passes = 0

    def pack(self, found: codes.Codes, /) -> codes.Compact:
        return self.pack_levels(found)(found.levels)

    def pack_levels(self, found: codes.Codes, /):
        self.passes += 1
        return lambda count: codes.to_compact(found.first_levels(count))


def test_fit_codes_once_and_takes_the_smaller_form(model: codec.Model):
    whole = model.encode(image(96, 128))
    flat = replace(whole, indices=np.zeros_like(whole.indices))
    for one in (whole, flat):
        for count in (1, 2, 3):
            part, packer = one.first_levels(count), CountingPacker()
            plain, compact = (len(codes.to_bytes(form)) for form in (part, codes.to_compact(part)))
            encoded = codes.fit_to_size(one, min(plain, compact), packer)
            assert len(encoded.data) <= min(plain, compact)
            assert encoded.codes.levels >= count
            assert codes.read_plain_codes(encoded.data) == encoded.codes
            assert packer.passes == 1


def test_fit_takes_the_most_levels_that_fit(model: codec.Model):
    whole = model.encode(image(96, 128))
    sizes = [len(codes.to_bytes(whole.first_levels(count))) for count in (1, 2, 3)]
    assert sizes[0] < sizes[1] < sizes[2]
    for limit, count in (
        (10**9, 3),
        (sizes[2], 3),
        (sizes[2] - 1, 2),
        (sizes[1], 2),
        (sizes[1] - 1, 1),
        (sizes[0], 1),
        (1, 1),
    ):
        encoded = codes.fit_to_size(whole, limit)
        kept, data = encoded.codes, encoded.data
        assert (kept.levels, len(data)) == (count, sizes[count - 1])
        assert codes.read_plain_codes(data) == kept == whole.first_levels(count)
