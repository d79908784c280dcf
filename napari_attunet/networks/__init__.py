"""Networks: from a `NetworkSpec` to a module that says what it attended to."""

from napari_attunet.networks.blocks import BlockAttention, look
from napari_attunet.networks.explained import Edits, Encoded, Explained
from napari_attunet.networks.fuse import FusedUNet, fused
from napari_attunet.networks.gates import Gate, Gated
from napari_attunet.networks.transformer import SpatialTransformer
from napari_attunet.networks.unet import AttentionUNet

__all__ = [
    "AttentionUNet",
    "BlockAttention",
    "Edits",
    "Encoded",
    "Explained",
    "FusedUNet",
    "Gate",
    "Gated",
    "SpatialTransformer",
    "fused",
    "look",
]
