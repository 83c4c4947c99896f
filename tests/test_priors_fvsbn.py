"""The fully visible belief network: the binary original, its size, and a run of the command."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_helpers import fails, ok

from vqtok import weights
from vqtok.config import PriorConfig
from vqtok.errors import UsageError
from vqtok.priors import FVSBN, cross_entropy
from vqtok.priors import fvsbn as module


def test_with_two_codes_it_is_a_logistic_regression_on_all_places_before() -> None:
    """The original: p(x_t = 1 | before) = sigmoid(b_t + sum of w_st x_s), found by
    changing one place at a time.
    """
    torch.manual_seed(0)
    prior = FVSBN(PriorConfig(2, width=4, architecture="fvsbn", rows=3, columns=4)).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))

        def odds(x: torch.Tensor) -> torch.Tensor:
            logits = prior(x.view(-1, 1, 3, 4)).flatten(1, 3)  # (B, 12, 2)
            return logits[..., 1] - logits[..., 0]

        zero = torch.zeros(1, 12, dtype=torch.int64)
        b, one = odds(zero)[0], torch.eye(12, dtype=torch.int64)
        w = odds(one) - b  # (12, 12): of place s on place t
        torch.testing.assert_close(w.tril(), torch.zeros(12, 12), atol=1e-5, rtol=0)
        x = torch.randint(2, (50, 12))
        torch.testing.assert_close(odds(x), b + x.float() @ w, atol=1e-4, rtol=1e-4)
        nats = F.binary_cross_entropy_with_logits(
            b + x.float() @ w, x.float(), reduction="none"
        ).sum(1)
        torch.testing.assert_close(
            cross_entropy(prior, x.view(50, 1, 3, 4)).float() * np.log(2),
            nats,
            atol=1e-3,
            rtol=1e-4,
        )


def test_its_dimension_shrinks_with_the_grid_and_large_grids_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WEIGHTS", 60**2)
    sizes = [
        FVSBN(PriorConfig(5, width=8, architecture="fvsbn", rows=side, columns=side)).width
        for side in (2, 3, 4, 7)
    ]
    assert sizes == [8, 6, 3, 1]
    assert all(a >= b for a, b in pairwise(sizes))
    for rows in (0, 91):
        with pytest.raises(UsageError, match="each pair of places"):
            FVSBN(PriorConfig(5, architecture="fvsbn", rows=rows, columns=91))


@pytest.mark.slow
def test_train_and_sample_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    short = [
        "--steps",
        "2",
        "--prior-steps",
        "3",
        "--entropy-steps",
        "1",
        "--width",
        "8",
        "--set",
        "prior.width=4",
    ]
    ok("train", "data.npy", "-o", "m", "--prior", "fvsbn", *short)
    stored = weights.load_weights(Path("m/prior.safetensors"), "prior").meta
    assert (
        stored["config"]["architecture"],
        stored["config"]["rows"],
        stored["config"]["columns"],
    ) == ("fvsbn", 4, 4)
    ok("sample", "--model", "m", "-n", "2", "-o", "s.png")
    assert "does not know grids of 8x8" in fails(
        "sample", "--model", "m", "-n", "2", "--size", "32", "-o", "t.png", code=2
    )
    ok("report", "m", "-o", "r.html")
    np.save("other.npy", np.random.default_rng(1).integers(0, 256, (3, 24, 16, 3), np.uint8))
    ok("eval", "other.npy", "--model", "m", "--codecs", "none")
    ok("train", "--resume", "-o", "m", "--prior-steps", "5")
