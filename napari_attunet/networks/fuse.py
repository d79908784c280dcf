"""The same network rewritten for inference: fewer operations, the same answer.

A chain of modules that follow one another becomes one operation where algebra allows:

- Batch normalisation, which in inference is a scale and a shift, goes into the weights
  of the convolution before it.
- Repeating pixels and convolving 3x3 is one transposed convolution: of the nine
  multiplications for a pixel, four are left in 2D, eight of 27 in 3D.
- A 1x1 convolution is a matrix product, where channels lie last in memory.
- A 3x3 convolution of many channels needs a quarter of its multiplications
  (`napari_attunet.networks.winograd`).
- A ReLU is applied while the convolution's result is still in the processor.
- Max pooling finds no indices.
- An additive gate looks at skip and signal when they are joined already, with one
  matrix, and scales the skip where it stands.

Each operation is compared with the modules that it is to replace, on random numbers; if
it fails or disagrees, the next simpler one is tried, and at last the modules stay.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from napari_attunet.architecture import NetworkSpec
from napari_attunet.networks.blocks import ConvBlock
from napari_attunet.networks.explained import Edits, Encoded, Explained
from napari_attunet.networks.gates import AdditiveGate
from napari_attunet.networks.layers import channels_last, conv
from napari_attunet.networks.operations import (
    CONVOLUTIONS,
    Chain,
    MaxPool,
    Operation,
    is_plain,
)
from napari_attunet.networks.strips import StripedUNet
from napari_attunet.networks.unet import AttentionUNet

__all__ = ["FusedUNet", "fused"]

logger = logging.getLogger(__name__)

#: Relative to the largest value, by how much an operation may differ from what it
#: replaces. Rounding alone brings 1e-6; a wrong tap or sign brings 1e-2 and more.
TOLERANCE = 1e-4

#: The same for all of a network in half precision: its rounding brings 1e-2.
HALF_TOLERANCE = 0.1

#: Edge of the random images on which that is judged.
EDGE = 12

_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def fused(network: AttentionUNet, dtype: torch.dtype = torch.float32) -> FusedUNet:
    """Return a network that computes the same faster, for inference only.

    Gates, attention and edits are as in the network given; weights that stay as they
    are, are shared with it.

    Parameters
    ----------
    network : AttentionUNet
        In evaluation mode; left as it is.
    dtype : torch.dtype
        In which to compute: what comes out then differs by the rounding of that type.
        If this fails here, the network computes in float32, with a logged reason.
    """
    if network.training:
        raise ValueError("Only a network in evaluation mode can be fused.")
    with torch.device("meta"):
        faster = FusedUNet(network.spec)
    faster.load_state_dict(network.state_dict(), assign=True)
    faster.eval().requires_grad_(False)
    faster.merge_gates()
    if next(network.parameters()).device.type == "cpu":
        faster.replace_pools()
    half = dtype != torch.float32
    kinds = [kind for kind in Operation.kinds if not (half and kind.delicate)]
    for parent in list(faster.modules()):
        for chain in list(_chains(parent)):
            _replace(parent, chain, kinds)
    faster.channels_last()
    if not half:
        return faster
    spec = network.spec
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.in_channels, *(2 * d for d in spec.divisor))
    x = torch.rand(shape, generator=generator).to(next(network.parameters()))
    objection = _objection(faster.in_half(dtype), network, x, HALF_TOLERANCE)
    if not objection:
        return faster
    logger.warning("The network computes in float32, not in %s: %s", dtype, objection)
    return fused(network)


class FusedUNet(StripedUNet):
    """A network rewritten for inference; see `fused`.

    Attributes
    ----------
    dtype : torch.dtype
        In which it computes; it takes and returns float32.
    """

    dtype = torch.float32

    def in_half(self, dtype: torch.dtype) -> FusedUNet:
        """Compute in another type from now on, and return self."""
        for name, module in self.named_children():
            if name != "transformer":  # half a pixel is too much
                module.to(dtype)
        self.dtype = dtype
        return self

    def encode(self, x: Tensor, *, wanted: Sequence[slice] | None = None) -> Encoded:
        """Run the encoder alone; see `AttentionUNet.encode`."""
        x = x.to(self.dtype)
        with _without_tf32(x):
            return super().encode(x, wanted=wanted)

    def _decode(self, encoded: Encoded, edits: Edits) -> Explained:
        with _without_tf32(encoded.bottleneck):
            logits, attention, auxiliary = super()._decode(encoded, edits)
        return Explained(logits.float(), tuple(a.float() for a in attention), auxiliary)

    def merge_gates(self) -> None:
        """Make a `_Joint` of each gate that allows it."""
        self._joints = nn.ModuleDict()
        for level, gate in enumerate(self.gates):
            if isinstance(gate, AdditiveGate) and _Joint.suits(self.spec):
                parts = [_random(w[0], i) for i, w in enumerate((gate.w_x, gate.w_g))]
                joint = _tried(_Joint, gate, _Joint.apart(gate), parts)
                if joint is not None:
                    self._joints[str(level)] = joint
                    gate.w_x = gate.w_g = nn.Sequential()  # the joint has them

    def replace_pools(self) -> None:
        """Make a `MaxPool` of each pool that allows it."""
        for level, pool in enumerate(self.pools):
            size = (1, 1, *(EDGE * s for s in self.spec.strides[level]))
            self.pools[level] = _tried(MaxPool, pool, pool, _noise(size)) or pool

    def _joined(
        self,
        level: int,
        skips: list[Tensor],
        x: Tensor,
        deep: Tensor | None,
        edited: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        if str(level) not in self._joints:
            return super()._joined(level, skips, x, deep, edited)
        parts = [skips.pop(), self.ups[level](x)]
        joined: tuple[Tensor, Tensor] = self._joints[str(level)](parts, edited)
        return joined


class _Joint(nn.Module):
    """An additive gate with a fine signal, on skip and signal in one piece."""

    def __init__(self, gate: AdditiveGate) -> None:
        super().__init__()
        both = [_folded(w) for w in (gate.w_x, gate.w_g)]
        weight = torch.cat([c.get_parameter("weight") for c in both], dim=1)
        bias = torch.stack([c.get_parameter("bias") for c in both]).sum(0)
        with torch.device("meta"):
            one = conv(weight.ndim - 2, weight.shape[1], weight.shape[0])
        one.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        self.project = nn.Sequential(one, gate.activation).requires_grad_(False)
        self.psi = gate.psi

    @staticmethod
    def suits(spec: NetworkSpec) -> bool:
        """Return whether additive gates are of that kind, and easily normalised."""
        gate = spec.gate
        return (
            gate is not None and gate.signal == "fine" and gate.norm in ("batch", None)
        )

    @staticmethod
    def apart(gate: AdditiveGate) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
        """Return what does the same by way of the gate itself."""

        def joined(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
            skip, up = parts
            passed, alpha = gate(skip, up)
            return torch.cat((passed, up), dim=1), alpha

        return joined

    def forward(
        self,
        parts: list[Tensor],
        edited: Callable[[Tensor], Tensor] = lambda alpha: alpha,
    ) -> tuple[Tensor, Tensor]:
        """Return x·α joined with what comes from below, and α.

        Parameters
        ----------
        parts : list of Tensor
            x, and what comes from below; taken away, which frees their memory.
        edited : callable
            From the α that is found to the one to use.
        """
        both, channels = torch.cat(parts, dim=1), parts[0].shape[1]
        parts.clear()
        alpha = edited(self.psi(self.project(both)).sigmoid())
        both[:, :channels] *= alpha
        return both, alpha


def _folded(module: nn.Module) -> nn.Module:
    """Return the convolution that a sequence of it and its normalisation amounts to."""
    (chain,) = _chains(module)
    return chain.convolution


def _chains(parent: nn.Module) -> Iterator[Chain]:
    """Yield what of a module can become one operation each."""
    if isinstance(parent, ConvBlock):
        names = list(parent.chain)
    elif isinstance(parent, nn.Sequential):
        names = [name for name, _ in parent.named_children()]
    else:  # each of its modules is called by itself
        for name, module in parent.named_children():
            if is_plain(module, kernel=1):
                yield Chain((name,), (module,), module, None, relu=False)
        return
    while names:
        chain = _first_chain(parent, names)
        if chain is None:
            names = names[1:]
        else:
            yield chain
            names = names[len(chain.names) :]


def _first_chain(parent: nn.Module, names: Sequence[str]) -> Chain | None:
    """Return the chain that these modules begin with, if they do."""
    modules = [parent.get_submodule(name) for name in names]
    convolution, end = modules[0], 1
    if not isinstance(convolution, CONVOLUTIONS + _TRANSPOSED):
        return None
    repeats = getattr(convolution, "repeats", None)
    norm = modules[end] if end < len(modules) else None
    if isinstance(norm, _NORMS):
        transposed = isinstance(convolution, _TRANSPOSED)
        convolution = fuse_conv_bn_eval(convolution, norm, transposed)
        end += 1
    relu = end < len(modules) and isinstance(modules[end], nn.ReLU)
    end += relu
    return Chain(tuple(names[:end]), tuple(modules[:end]), convolution, repeats, relu)


def _replace(parent: nn.Module, chain: Chain, kinds: Sequence[type[Operation]]) -> None:
    """Put the best operation that agrees in the chain's place."""

    def apart(x: Tensor) -> Tensor:
        for module in chain.modules:
            x = module(x.clone())  # some work in place
        return x

    for kind in kinds:
        if kind.suits(chain):
            operation = _tried(kind, chain, apart, _random(chain.convolution))
            if operation is not None:
                first, *others = chain.names
                parent.register_module(first, operation)
                for name in others:
                    parent.register_module(name, nn.Identity())
                return


def _random(convolution: nn.Module, seed: int = 0) -> Tensor:
    """Return random numbers that a convolution can take."""
    weight = convolution.get_parameter("weight")
    channels = weight.shape[0 if isinstance(convolution, _TRANSPOSED) else 1]
    ndim = weight.ndim - 2
    return channels_last(_noise((1, channels, *(EDGE,) * ndim), seed).to(weight))


def _noise(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tried(
    kind: Callable[[Any], nn.Module],
    what: Any,
    apart: Callable[[Any], Tensor | tuple[Tensor, ...]],
    x: Tensor | list[Tensor],
) -> nn.Module | None:
    """Return what a kind of module makes of something, if it then does the same."""
    try:
        made = kind(what)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError) as failure:
        objection = _first_line(failure)
    else:
        objection = _objection(made, apart, x, TOLERANCE)
        if not objection:
            return made
    name = what.label if isinstance(what, Chain) else type(what).__name__
    logger.warning("%s is not used for %s: %s", kind.__name__, name, objection)
    return None


def _objection(
    made: nn.Module,
    apart: Callable[[Any], Tensor | tuple[Tensor, ...]],
    x: Tensor | list[Tensor],
    tolerance: float,
) -> str:
    """Return why a module cannot take the place of another; empty if it can."""
    try:
        one = x if isinstance(x, Tensor) else x[0]
        with torch.inference_mode(), _without_tf32(one):
            expected = apart(x)  # first: x may be used up
            error = _disagreement(made(x), expected)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError) as failure:
        return _first_line(failure)
    # False for what is no number
    return "" if error <= tolerance else f"it differs by {error:.1e}"


class _Tf32:
    """How many computations at present forbid TF32, and what was allowed before."""

    lock = threading.Lock()
    users = 0
    before = (False, False)
    told = False


@contextmanager
def _without_tf32(x: Tensor) -> Iterator[None]:
    """Keep a card from TF32, which differs from float32 by more than we allow."""
    if x.device.type != "cuda" or x.dtype != torch.float32:
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        with _Tf32.lock:
            if not _Tf32.users:
                _Tf32.before = (convolutions.allow_tf32, products.allow_tf32)
                convolutions.allow_tf32 = products.allow_tf32 = False
            _Tf32.users += 1
    except RuntimeError as failure:  # it was set by PyTorch's newer names
        if not _Tf32.told:
            logger.warning("TF32 stays as it is: %s", _first_line(failure))
            _Tf32.told = True
        yield
        return
    try:
        yield
    finally:
        with _Tf32.lock:
            _Tf32.users -= 1
            if not _Tf32.users:
                convolutions.allow_tf32, products.allow_tf32 = _Tf32.before


def _first_line(failure: Exception) -> str:
    return str(failure).partition("\n")[0]


def _disagreement(
    found: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]
) -> float:
    """Return the largest difference, relative to the largest value."""
    if isinstance(found, Tensor) or isinstance(expected, Tensor):
        found, expected = (found,), (expected,)  # type: ignore[assignment]
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        largest = max(float(other.abs().max()), torch.finfo(other.dtype).tiny)
        error = float((one - other).abs().max()) / largest
        worst = error if math.isnan(error) else max(worst, error)
    return worst
