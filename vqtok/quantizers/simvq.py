"""Quantizes by a codebook that moves as one (`simvq`): its entries are a frozen random matrix times
one learned layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import TokenizerConfig
from vqtok.quantizers.codebook import Codebook, InitFlag


class SimVQuantizer(Codebook):
    """Maps the rows of a frozen Gaussian matrix to entries by one linear layer (Zhu et al. 2024,
    arXiv 2411.02038).

    A step that moves the chosen entries moves the layer, and with it all other entries, so that no
    code dies: dead codes are not restarted, and the settings `decay` and `restart` have no effect.
    The loss is that of `vq`. The frozen matrix is saved with the weights: remaking it from a seed
    would tie files to one random generator.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        # Rounded to what weights are released in: what trained is then exactly what is shipped.
        self.register_buffer(
            "codebook", torch.randn(config.codebook_size, config.code_dim).half().float()
        )
        self.layer = nn.Linear(config.code_dim, config.code_dim)
        self.average = InitFlag()

    def entries(self) -> Tensor:
        return self._project(F.linear(self.codebook, self.layer.weight, self.layer.bias))  # (K, D)

    def needs_init(self) -> bool:
        return not bool(self.average.initialized)

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Gives the entries the mean of vectors (N, D), and of their covariance the
        part that K codes can hold.

        The best reproduction of a Gaussian source of variance s has variance s - d at distortion d,
        and log2(K) / D bits a dimension make d = s * K^(-2/D) (Cover and Thomas, Elements of
        Information Theory, section 10.3). Entries as far out as the vectors would lose to the few
        short ones wherever D is large.
        """
        vectors = self._project(vectors.float()).cpu().double()
        mean, dim = vectors.mean(0), vectors.shape[1]
        values, directions = torch.linalg.eigh(torch.cov(vectors.T, correction=0).reshape(dim, dim))
        root = directions * values.clamp(min=0).sqrt() @ directions.T  # (D, D)
        self.layer.weight.copy_(root * (1 - self.codebook_size ** (-2 / dim)) ** 0.5)
        self.layer.bias.copy_(mean)
        self.adopt_codebook()

    def adopt_codebook(self) -> None:
        self.average.initialized.fill_(True)
