"""An integer prior whose levels have matrices of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_integer import CONFIG, full_logits, grids

from vqtok.integer_prior import IntegerInference, integer_tensor_shapes
from vqtok.integer_prior.arithmetic import LOGIT_STEP
from vqtok.priors import IntegerPrior


@torch.no_grad()
@pytest.mark.parametrize("kinds", [2, 3, 9])
def test_levels_may_have_matrices_of_their_own(kinds: int):
    config = replace(CONFIG, kinds=kinds)
    torch.manual_seed(kinds)
    network = IntegerPrior(config)
    for parameter in network.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.4)
    tensors = network.integers()
    assert {name: value.shape for name, value in tensors.items()} == integer_tensor_shapes(config)
    prior = IntegerInference(config, tensors)
    indices = grids(2)
    for levels in (1, 2, 3):  # a level sees those below alone
        first = indices[:1, :levels]
        trained = torch.floor(network(torch.from_numpy(first))[:, 0] * 2**LOGIT_STEP + 0.5)
        torch.testing.assert_close(trained, full_logits(prior, first), rtol=0, atol=0)
    np.testing.assert_array_equal(prior.decode(prior.encode(indices), 3, 6, 9), indices)
