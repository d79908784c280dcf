"""Networks: from a `NetworkSpec` to a module that says what it attended to."""

from napari_attunet.networks.gates import Gate, Gated
from napari_attunet.networks.unet import Attention, AttentionUNet, Explained

__all__ = ["Attention", "AttentionUNet", "Explained", "Gate", "Gated"]
