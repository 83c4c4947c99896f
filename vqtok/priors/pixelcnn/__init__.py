"""The gated PixelCNN: its layer (`gated`), the network, and its cursors (`cache`
in torch, `tape` in NumPy).
"""

from vqtok.priors.pixelcnn.network import PixelCNN, receptive_field

__all__ = ["PixelCNN", "receptive_field"]
