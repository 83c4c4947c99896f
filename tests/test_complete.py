"""Completion: holes, sides, and the candidate that fits best what is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok, save
from conftest import image
from test_priors import tiny

from vqtok import codec, codes
from vqtok.codec import drawing
from vqtok.codec.drawing import complete_grids, known_part
from vqtok.errors import FormatError, UsageError
from vqtok.sampling import sample_grids


def drawn(name: str) -> np.ndarray:
    found = codes.read_any_codes(Path(name))
    assert isinstance(found, codes.Codes)
    return found.indices


def places(kept: torch.Tensor) -> list[str]:
    return ["".join("#" if value else "." for value in row) for row in kept.tolist()]


def test_a_hole_takes_all_places_that_it_touches():
    assert places(known_part(None, (4, 4, 4, 4), 4, 5, 4)) == ["#####", "#.###", "#####", "#####"]
    assert places(known_part(None, (3, 7, 2, 2), 4, 5, 4)) == ["#####", "..###", "..###", "#####"]
    # what reaches over the edge is cut
    assert places(known_part(None, (12, 8, 99, 99), 4, 5, 4)) == [
        "#####",
        "#####",
        "###..",
        "###..",
    ]
    assert places(known_part("right:0.4", None, 2, 5, 4)) == ["...##", "...##"]


@pytest.mark.parametrize(
    "hole", [(0, 0, 20, 16), (20, 0, 1, 1), (0, -1, 2, 2), (1, 1, 0, 2), (1, 2, 3)]
)
def test_holes_that_cannot_be(hole: tuple[int, ...]):
    with pytest.raises(UsageError):
        known_part(None, hole, 4, 5, 4)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_candidate_that_leads_to_what_is_kept_is_taken(levels: int):
    prior = tiny(levels)
    known = torch.full((levels, 4, 5), -1)
    known[:, 2:] = torch.randint(11, (levels, 2, 5), generator=torch.Generator().manual_seed(3))
    fixed = known.expand(3, *known.shape)
    all_drawn = [
        sample_grids(prior, 3, (4, 5), known=fixed, labels=1, seed=5 + i * 2**32) for i in range(6)
    ]
    with torch.no_grad():
        odds = [prior(grids, torch.tensor([1] * 3)).double().log_softmax(-1) for grids in all_drawn]
    scores = torch.stack(
        [
            odd.gather(-1, grids[..., None])[..., 0].where(known >= 0, 0.0).sum((1, 2, 3))
            for odd, grids in zip(odds, all_drawn, strict=True)
        ]
    )  # (6, 3)
    found = complete_grids(prior, known, 3, 6, seed=5, labels=torch.tensor([1] * 3))
    for i, best in enumerate(scores.argmax(0).tolist()):
        assert torch.equal(found[i], all_drawn[best][i])
    assert len(set(scores.argmax(0).tolist())) > 1  # not always the first
    assert torch.equal(
        complete_grids(prior, known, 3, 1, seed=5, labels=torch.tensor([1] * 3)), all_drawn[0]
    )


def test_the_library_keeps_what_is_around_a_hole(model: Path):
    toy = codec.load("toy")
    given = toy.encode(image(24, 32))
    done = toy.complete(given, n=2, hole=(8, 8, 9, 4), candidates=3)
    same = done.indices == given.indices
    assert not same[:, :, 2, 2:5].all()
    same[:, :, 2, 2:5] = True
    assert same.all()
    for candidates in (0, 1.5, True, 10**6):
        with pytest.raises(UsageError, match="candidates"):
            toy.complete(given, candidates=candidates)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="hole"):
        toy.complete(given, "top:0.5", hole=(8, 8, 9, 4))


@pytest.mark.usefixtures("toy")
def test_as_typed():
    save("a.png", image(24, 32))
    toy = codec.load("toy")
    given = toy.encode(image(24, 32))
    for words, wanted in (
        (("--hole", "8,8,9,4"), toy.complete(given, n=2, hole=(8, 8, 9, 4), candidates=8)),
        (("--keep", "right:0.5"), toy.complete(given, "right:0.5", 2, candidates=8)),
        (("--keep", "left:0.5"), toy.complete(given, "left:0.5", 2)),
        (("--candidates", "3"), toy.complete(given, n=2, candidates=3)),
        (("--palette", "2"), toy.complete(given, n=2, palette=2.0)),
    ):
        ok("sample", "--complete", "a.png", "-n", "2", "-o", "a.npz", "-f", *words)
        assert np.array_equal(drawn("a.npz"), wanted.indices), words
    for words, said in (
        (("--hole", "1,2,3,4"), "add --complete IMG"),
        (("--palette", "1"), "add --complete IMG"),
        (("--candidates", "3"), "add --complete IMG"),
        (("--complete", "a.png", "--hole", "1,2,3"), "x, y, width, height"),
        (("--complete", "a.png", "--hole", "-1,2,3,4"), "no hole"),
        (("--complete", "a.png", "--hole", "0,0,99,99"), "takes all of the image"),
        (
            ("--complete", "a.png", "--hole", "1,1,4,4", "--keep", "top:0.5"),
            "leave one of them out",
        ),
    ):
        assert said in fails("sample", "-o", "b.npz", *words, code=2), words
    assert not Path("b.npz").exists()


def test_a_palette_favors_codes_of_the_kept_part():
    prior = tiny(2)
    known = torch.full((2, 4, 5), -1)
    known[0, :2], known[1, :2] = 3, 7
    fair = drawing.leaning_to_known(prior, known, 0.0)
    assert fair is prior
    shares = []
    for weight in (0.0, 0.5, 2.0):
        leaning = drawing.leaning_to_known(prior, known, weight)
        grids = complete_grids(leaning, known, 40, seed=1)
        assert torch.equal(grids[:, :, :2], known[:, :2].expand(40, 2, 2, 5))
        shares.append(
            [float((grids[:, i, 2:] == code).double().mean()) for i, code in ((0, 3), (1, 7))]
        )
    for level in range(2):
        assert shares[0][level] < 0.5
        assert shares[0][level] < shares[1][level] < shares[2][level]
        assert shares[2][level] > 0.99
    # the prior itself stays
    assert torch.equal(complete_grids(prior, known, 2), complete_grids(tiny(2), known, 2))
    for weight in (-1.0, 11.0, float("nan")):
        with pytest.raises(UsageError, match="palette"):
            drawing.leaning_to_known(prior, known, weight)


def test_levels_that_are_not_drawn_get_the_code_that_says_least():
    codebook = torch.ones(3, 4, 2)
    codebook[1, 2] = codebook[2, 1] = 0.1
    known = torch.full((3, 2, 2), -1)
    known[:, 0] = torch.tensor([[3], [3], [0]])
    grids = torch.tensor([[[[3, 3], [0, 1]]], [[[3, 3], [2, 2]]]])  # (2, 1, 2, 2)
    full = drawing.with_plain_levels(grids, known, codebook)
    assert torch.equal(full[:, :1], grids)
    assert full[:, 1:].tolist() == 2 * [[[[3, 3], [2, 2]], [[0, 0], [1, 1]]]]


def test_what_a_file_asks_of_completing():
    def read(**record: object) -> drawing.DrawDefaults:
        return drawing.DrawDefaults.of_record(record, 3, "p", completing=True)

    assert read(sampling={"guidance": 2.0}) == drawing.DrawDefaults(guidance=2.0)
    chosen = read(
        sampling={"guidance": 2.0},
        completing={"levels": 2, "palette": 1, "temperature": [0.9, 0.7]},
    )
    assert chosen == drawing.DrawDefaults([0.9, 0.7], levels=2, palette=1)
    filled = chosen.fill({"top_p": [0.9, 0.8, 0.7]}, 3, 2)
    assert filled == {"temperature": [0.9, 0.7], "top_p": [0.9, 0.8], "guidance": 1.0}
    for wrong in ({"levels": 4}, {"levels": 0}, {"levels": 1.5}, {"palette": -1}, {"odd": 1}):
        with pytest.raises(FormatError):
            read(completing=wrong)
    with pytest.raises(FormatError):  # of completing alone
        drawing.DrawDefaults.of_record({"sampling": {"palette": 1.0}}, 3, "p")


def test_photo_completes_with_its_first_levels_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("VQTOK_MODELS")
    photo = codec.load("photo")
    given = photo.encode(image(64, 64))
    plain = photo.codebook.norm(dim=-1).argmin(1)[2:, None, None].numpy()
    done = photo.complete(given).indices[0]
    assert np.array_equal(done[:, :2], given.indices[0][:, :2])
    assert (done[2:, 2:] == plain).all()
    assert not (photo.complete(given, levels=8).indices[0][2:, 2:] == plain).all()
