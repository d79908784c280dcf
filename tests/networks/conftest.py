"""Networks of every kind there is: a mechanism is tested by being registered."""

import pytest
import torch

from napari_attunet.networks import AttentionUNet, BlockAttention, Gate
from napari_attunet.spec import AttentionSpec, GateSpec, NetworkSpec, TransformerSpec

SPECS = {
    "plain": NetworkSpec(features=(3, 4, 6), gate=None),
    "additive": NetworkSpec(features=(3, 4, 6), in_channels=2, out_channels=3),
    "coarse": NetworkSpec(features=(3, 4, 6), gate=GateSpec(signal="coarse")),
    "transposed": NetworkSpec(features=(3, 4, 6), upsampling="transposed"),
    "no norm": NetworkSpec(features=(3, 4), norm=None, gate=GateSpec(norm=None)),
    "instance": NetworkSpec(features=(3, 4), norm="instance"),
    "group": NetworkSpec(features=(8, 16), norm="group", gate=GateSpec(norm="group")),
    "channels": NetworkSpec(features=(3, 4, 6), gate=GateSpec(channels=(5, 2))),
    "several": NetworkSpec(
        features=(3, 4, 6),
        strides=((3, 2), (1, 2)),
        gate=GateSpec(signal="coarse", count=2),
    ),
    "strides": NetworkSpec(features=(3, 4, 6), strides=((1, 2), (3, 2))),
    "3d": NetworkSpec(ndim=3, features=(3, 4, 6), strides=((1, 2, 2), (2, 2, 2))),
    "3d coarse": NetworkSpec(ndim=3, features=(3, 4), gate=GateSpec(signal="coarse")),
    "multiplicative": NetworkSpec(
        features=(3, 4), gate=GateSpec(kind="multiplicative")
    ),
    "deep": NetworkSpec(features=(3, 4, 6, 8), deep_supervision=True, out_channels=2),
    "residual": NetworkSpec(features=(3, 4, 6), residual=True),
    "transformer": NetworkSpec(features=(3, 4), transformer=TransformerSpec()),
    "oktay": NetworkSpec(
        features=(3, 4, 6, 8),
        gate=GateSpec(kind="grid", signal="bottleneck", count=2),
        deep_supervision=True,
        strides=((2, 2), (2, 1), (2, 2)),
    ),
    "all at once": NetworkSpec(
        features=(8, 10, 12),
        gate=GateSpec(kind="multiplicative", signal="coarse"),
        attention=(
            AttentionSpec(kind="cbam"),
            AttentionSpec(kind="self", where="bottleneck"),
            AttentionSpec(kind="eca", where="decoder"),
        ),
        transformer=TransformerSpec(features=(4,)),
        residual=True,
        norm="instance",
        deep_supervision=True,
    ),
}
for kind in sorted(Gate.kinds):
    for signal in ("coarse", "bottleneck"):
        for ndim in (2, 3):
            SPECS[f"{kind} {signal} {ndim}d"] = NetworkSpec(
                ndim=ndim, features=(3, 4, 6), gate=GateSpec(kind=kind, signal=signal)
            )
for kind in sorted(BlockAttention.kinds):
    for where in ("all", "encoder", "decoder", "bottleneck"):
        for ndim in (2, 3):
            SPECS[f"{kind} {where} {ndim}d"] = NetworkSpec(
                ndim=ndim,
                features=(4, 6),
                attention=(AttentionSpec(kind=kind, where=where, reduction=2),),
            )


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def spec(request):
    """Each of them in turn."""
    return request.param


EDITABLE = {
    name: spec
    for name, spec in SPECS.items()
    if spec.gate is not None and spec.transformer is None
}


@pytest.fixture(params=EDITABLE.values(), ids=EDITABLE.keys())
def editable(request):
    """Each that has gates on the image's own grid in turn."""
    return request.param


@pytest.fixture
def randomised():
    """Makes a network with random weights and statistics, in evaluation mode."""
    return _randomised


def _randomised(spec):
    torch.manual_seed(5)
    network = AttentionUNet(spec).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.normal_(1.0, 0.3)  # so that hardly anything dies in a ReLU
    return network
