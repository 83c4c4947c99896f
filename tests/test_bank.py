"""Crops made on the device: held against Lanczos resampling in float64, and against what the host
cuts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import image
from train_helpers import truncate, write_images

from vqtok.data import ArrayData, Batches, Plain, open_data
from vqtok.data.bank import BankBatches, load_bank
from vqtok.errors import InputError

CPU = torch.device("cpu")


class Images(Plain):
    """Images of any sizes in memory."""

    name, labels, description, skipped = "images", (), "", 0

    def __init__(self, images: list[np.ndarray]) -> None:
        self.all, self.channels = images, images[0].shape[2]

    def __len__(self) -> int:
        return len(self.all)

    def image(self, index: int) -> np.ndarray:
        return self.all[index]

    def label(self, index: int) -> int:
        return -1


def bank_of(
    dataset: Any, size: int, batch: int = 6, channels: int = 3, **options: Any
) -> BankBatches:
    indices = np.arange(len(dataset))
    batches = Batches(dataset, indices, batch, size, seed=4, channels=channels, **options)
    bank = load_bank(dataset, indices, channels, CPU, 2**30)
    assert bank is not None
    return BankBatches(bank, batches)


def exact(image: np.ndarray, size: int, top: float, left: float, side: float) -> np.ndarray:
    """The square as float64 (size, size, C), resampled by Lanczos's formula, pixel by pixel."""

    def axis(start: float, length: int) -> np.ndarray:
        matrix, scale = np.zeros((size, length)), side / size
        wide = max(scale, 1.0)
        for i in range(size):
            center = start + (i + 0.5) * scale
            for j in range(
                max(0, int(center - 3 * wide + 0.5)), min(length, int(center + 3 * wide + 0.5))
            ):
                x = (j - center + 0.5) / wide
                matrix[i, j] = np.sinc(x) * np.sinc(x / 3) if abs(x) < 3 else 0.0
        return matrix / matrix.sum(1, keepdims=True)

    H, W = image.shape[:2]
    return np.einsum("ih,hwc,jw->ijc", axis(top, H), image.astype(np.float64), axis(left, W))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "size", "scale"),
    [
        ([(40, 60), (61, 33), (40, 40)], 16, 0.5),
        ([(40, 60), (64, 33)], 16, 0.25),
        ([(20, 30), (9, 12), (50, 7)], 24, 0.6),  # smaller than a crop
        ([(30, 30)], 16, 0.5),  # a single one
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_lanczos(
    sizes: list[tuple[int, int]], size: int, scale: float, channels: int
) -> None:
    data = Images([image(h, w, channels, seed=i) for i, (h, w) in enumerate(sizes)])
    bank = bank_of(data, size, channels=channels, min_scale=scale, flip=True)
    for step in range(3):
        plan = bank.plan(step)
        found = bank.crops(plan).permute(0, 2, 3, 1).numpy()
        for (place, top, left, side, mirrored), crop in zip(plan.T.tolist(), found, strict=True):
            wanted = exact(data.all[int(place)], size, top, left, side)
            wanted = wanted[:, ::-1] if mirrored else wanted
            assert np.abs(crop - wanted.clip(0, 255)).max() < 0.501  # rounded once


def test_crops_are_those_of_the_host_up_to_rounding() -> None:
    data = Images(
        [image(h, w, seed=i) for i, (h, w) in enumerate([(50, 70), (64, 41), (60, 60), (33, 90)])]
    )
    for scale, flip in ((0.5, True), (1.0, False)):
        bank = bank_of(data, 24, min_scale=scale, flip=flip)
        for step in range(4):
            mine = bank.crops(bank.plan(step)).numpy()
            theirs = bank.batches.batch(step).pixels.astype(np.float32)
            difference = np.abs(mine - theirs)
            # Pillow rounds after each of its two passes
            assert difference.mean() < (0.3 if scale < 1 else 1e-9)
            assert difference.max() <= 8


def test_a_gray_image_is_shown_in_color_and_a_color_one_in_gray() -> None:
    gray = bank_of(Images([image(30, 30, 1)]), 16, channels=3)
    crops = gray.crops(gray.plan(0))
    assert crops.shape == (6, 3, 16, 16)
    assert torch.equal(crops[:, 0], crops[:, 2])
    color = bank_of(Images([image(30, 30, 3)]), 16, channels=1)
    assert color.crops(color.plan(0)).shape == (6, 1, 16, 16)
    assert torch.equal(
        color.crops(color.plan(0)), torch.from_numpy(color.batches.batch(0).pixels).float()
    )


def test_images_of_the_size_of_a_crop_are_not_touched() -> None:
    data = ArrayData("noise", np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8))
    bank = bank_of(data, 16, flip=True)
    for step in range(3):
        assert torch.equal(
            bank.crops(bank.plan(step)), torch.from_numpy(bank.batches.batch(step).pixels).float()
        )


def test_a_plan_is_a_pure_function_of_its_step() -> None:
    data = Images([image(30, 40, seed=i) for i in range(5)])
    one, other = (
        bank_of(data, 16, min_scale=0.5, flip=True),
        bank_of(data, 16, min_scale=0.5, flip=True),
    )
    wanted = [one.plan(step) for step in range(6)]
    assert all(torch.equal(other.plan(step), wanted[step]) for step in (5, 0, 3, 3))
    assert len({tuple(plan.flatten().tolist()) for plan in wanted}) == 6


def test_processes_share_a_batch() -> None:
    data = Images([image(30, 40, seed=i) for i in range(5)])
    whole = bank_of(data, 16, min_scale=0.5, flip=True).plan(3)
    parts = [
        bank_of(data, 16, min_scale=0.5, flip=True, share=(rank, 2)).plan(3) for rank in range(2)
    ]
    assert all(torch.equal(part, whole[:, rank::2]) for rank, part in enumerate(parts))


def test_images_that_cannot_be_read_are_replaced_as_on_the_host(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", {f"{i}.png": i for i in range(8)})
    for name in ("2.png", "5.png"):
        truncate(folder / name)
    data = open_data(folder)
    bank = bank_of(data, 16)
    assert bank.bank.readable.tolist() == [True, True, False, True, True, False, True, True]
    for step in range(6):
        assert torch.equal(
            bank.crops(bank.plan(step)), torch.from_numpy(bank.batches.batch(step).pixels).float()
        )


def test_no_readable_image_is_an_error() -> None:
    class Bad(Images):
        def image(self, index: int) -> np.ndarray:
            raise InputError("damaged", "replace it")

    with pytest.raises(InputError, match="no image of images can be read"):
        load_bank(Bad([image(8, 8)] * 8), np.arange(8), 3, CPU, 2**30)


@pytest.mark.parametrize("count", [10, 100])
def test_more_than_the_limit_stays_on_the_host(count: int) -> None:
    data = Images([image(20, 20)] * count)
    need = count * 20 * 20 * 3
    assert load_bank(data, np.arange(count), 3, CPU, need - 1) is None
    assert load_bank(data, np.arange(count), 3, CPU, need) is not None
