"""What the shapes of a file with the paper's network do not tell, and what known programs do."""

from dataclasses import dataclass
from itertools import product

from vqtok.errors import UsageError


@dataclass(frozen=True)
class Variant:
    """What shapes do not tell of such a network."""

    inplace: bool = True  # blocks compute relu(x) + f(x): their first ReLU works in place
    relu: bool = True  # a ReLU follows the residual blocks of the encoder
    output: str = "none"  # what the decoder ends in: none, tanh or sigmoid

    @property
    def name(self) -> str:
        """As `--variant` takes it."""
        blocks = "inplace" if self.inplace else "plain"
        return f"{blocks},{'relu' if self.relu else 'linear'},{self.output}"


VARIANTS = tuple(
    Variant(inplace, relu, output)
    for output, inplace, relu in product(("none", "tanh", "sigmoid"), (True, False), (True, False))
)


def parse_variant(text: str) -> Variant:
    """Reads a variant's name. UsageError where there is none of that name."""
    found = next((variant for variant in VARIANTS if variant.name == text), None)
    if found is None:
        raise UsageError(
            f"there is no variant {text[:60]!r} of the paper's network",
            "write inplace or plain, relu or linear, and none, tanh or sigmoid: inplace,relu,none",
        )
    return found


@dataclass(frozen=True)
class Known:
    """A program whose tensors are recognized by name, and what its code says of the rest."""

    name: str
    marks: tuple[str, ...]  # parts of names, all of which are there
    variant: Variant
    input_range: str  # of its own examples


KNOWN = (
    Known(
        "zalandoresearch VQ-VAE",
        ("_encoder._conv_1.", "_vq_vae._embedding.", "_decoder._conv_trans_1."),
        Variant(),
        "-0.5:0.5",
    ),
    Known(
        "MishaLaskin VQ-VAE",
        ("encoder.conv_stack.", "vector_quantization.embedding.", "decoder.inverse_conv_stack."),
        Variant(),
        "-1:1",
    ),
    Known(
        "ritheshkumar95 VQ-VAE",
        ("encoder.1.running_mean", "codebook.embedding.weight", "decoder.0.block."),
        Variant(relu=False, output="tanh"),
        "-1:1",
    ),
    Known(
        "sonnet VQ-VAE", ("res3x3_0.", "res1x1_0.", "dec_1."), Variant(inplace=False), "-0.5:0.5"
    ),
)
