"""The same network rewritten for inference: fewer operations, the same answer.

A chain of modules that follow one another becomes one operation where algebra allows:

- Batch normalisation, which in inference is a scale and a shift, goes into the weights
  of the convolution before it.
- Repeating pixels and convolving 3x3 is one transposed convolution: of the nine
  multiplications for a pixel, four are left in 2D, eight of 27 in 3D.
- A 1x1 convolution is a matrix product, where channels lie last in memory.
- A 3x3 convolution of many channels needs a quarter of its multiplications, and one of
  repeated pixels two fifths of those four (`napari_attunet.networks.winograd`).
- A ReLU is applied while the convolution's result is still in the processor.
- Max pooling finds no indices.
- A decoder's block and an additive gate take skip and signal side by side, without
  joining them (`napari_attunet.networks.joined`).

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

from napari_attunet.memory import is_full
from napari_attunet.networks.chains import TRANSPOSED, Chain, chains
from napari_attunet.networks.explained import Edits, Encoded, Explained
from napari_attunet.networks.gates import AdditiveGate
from napari_attunet.networks.joined import Beside, Joint, Paired, gates_suit, unmerged
from napari_attunet.networks.layers import channels_last
from napari_attunet.networks.operations import (
    Entrance,
    MaxPool,
    OneDNN,
    Operation,
    Winograd,
)
from napari_attunet.networks.strips import StripedUNet
from napari_attunet.networks.unet import AttentionUNet, Entering

__all__ = ["FusedUNet", "fused"]

logger = logging.getLogger(__name__)

#: Relative to the largest value, by how much an operation may differ from what it
#: replaces. Rounding alone brings 1e-6; a wrong tap or sign brings 1e-2 and more.
TOLERANCE = 1e-4

#: The same for all of a network in half precision: its rounding brings 1e-2.
HALF_TOLERANCE = 0.1

#: Edge of the random images on which that is judged.
EDGE = 12


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
    half = dtype != torch.float32
    kinds = [kind for kind in Operation.kinds if not (half and kind.delicate)]
    faster.pair_inputs(kinds)
    faster.merge_gates()
    if next(network.parameters()).device.type == "cpu":
        faster.replace_pools()
    for parent in list(faster.modules()):
        for chain in list(chains(parent)):
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

    _entering = torch.float32

    def in_half(self, dtype: torch.dtype) -> FusedUNet:
        """Compute in another type from now on, and return self.

        In bfloat16, which has eight bits, a constant error in all pixels is what
        changes most labels: on stained tissue two thirds of those that change. So the
        image and what first meets it stay in float32 (but where a shortcut adds the
        image as it is), as do biases where convolutions can do with that. It costs next
        to nothing.
        """
        coarse = dtype == torch.bfloat16
        biases = [
            (module.bias, module.bias.detach())
            for module in self.modules()
            if isinstance(module, (OneDNN, Paired)) and module.bias is not None
        ]
        block = self.encoder[0]
        first: dict[str, nn.Module] = {}
        if coarse and not isinstance(block.shortcut, nn.Identity):
            names = (
                ("0", "shortcut.0") if isinstance(block.shortcut, nn.Module) else "0"
            )
            first = {name: block.get_submodule(name) for name in names}
        for name in first:
            block.set_submodule(name, nn.Identity())
        for name, module in self.named_children():
            if name != "transformer":  # half a pixel is too much
                module.to(dtype)
        for name, module in first.items():
            block.set_submodule(name, Entrance(module, dtype))
        if coarse:
            for bias, exact in biases:
                bias.data = exact
        self.dtype = dtype
        self._entering = torch.float32 if first else dtype
        return self

    def encode(self, x: Tensor, *, wanted: Sequence[slice] | None = None) -> Encoded:
        """Run the encoder alone; see `AttentionUNet.encode`."""
        x = x.to(self._entering)
        with _without_tf32(x):
            return super().encode(x, wanted=wanted)

    def _decode(self, encoded: Encoded, edits: Edits) -> Explained:
        with _without_tf32(encoded.bottleneck):
            logits, attention, auxiliary = super()._decode(encoded, edits)
        return Explained(logits.float(), tuple(a.float() for a in attention), auxiliary)

    def pair_inputs(self, kinds: Sequence[type[Operation]]) -> None:
        """Let each block of the decoder that can take skips and the rest unjoined."""
        self._paired: set[int] = set()
        for level, block in enumerate(self.decoder):
            chain = next(chains(block))
            # A shortcut needs them joined, and Winograd's algorithm is faster by more.
            joined = isinstance(block.shortcut, nn.Module)
            joined |= Winograd in kinds and Winograd.suits(chain)
            if joined or not Paired.suits(chain):
                continue
            size = (1, self.spec.features[level], *(EDGE,) * self.spec.ndim)
            parts = [_noise(size, seed) for seed in range(2)]
            if _put(block, chain, _tried(Paired.of, chain, _apart(chain), parts)):
                self._paired.add(level)

    def merge_gates(self) -> None:
        """Make one module of each gate that allows it and what is around it."""
        self._joints = nn.ModuleDict()
        for level, gate in enumerate(self.gates):
            if isinstance(gate, AdditiveGate) and gates_suit(self.spec):
                parts = [_random(w[0], i) for i, w in enumerate((gate.w_x, gate.w_g))]
                kind = Beside if level in self._paired else Joint
                merged = _tried(kind, gate, unmerged(gate), parts)
                if merged is not None:
                    self._joints[str(level)] = merged
                    gate.w_x = gate.w_g = nn.Sequential()  # it has them

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
    ) -> tuple[Entering, Tensor]:
        if str(level) not in self._joints:
            return super()._joined(level, skips, x, deep, edited)
        parts = [skips.pop(), self.ups[level](x)]
        joined: tuple[Entering, Tensor] = self._joints[str(level)](parts, edited)
        return joined

    def _together(self, level: int, skip: Tensor, up: Tensor) -> Entering:
        if level in self._paired:
            return [skip, up]
        return super()._together(level, skip, up)


def _replace(parent: nn.Module, chain: Chain, kinds: Sequence[type[Operation]]) -> None:
    """Put the best operation that agrees in the chain's place."""
    for kind in kinds:
        if kind.suits(chain):
            random = _random(chain.convolution)
            if _put(parent, chain, _tried(kind, chain, _apart(chain), random)):
                return


def _apart(chain: Chain) -> Callable[[Any], Tensor]:
    """Return what does the same by way of the chain's modules."""

    def computed(entering: Entering) -> Tensor:
        joined = entering if isinstance(entering, list) else [entering]
        x = torch.cat(joined, dim=1)
        for module in chain.modules:
            x = module(x.clone())  # some work in place
        return x

    return computed


def _put(parent: nn.Module, chain: Chain, operation: nn.Module | None) -> bool:
    """Put an operation in the chain's place, and return whether there is one."""
    if operation is None:
        return False
    first, *others = chain.names
    parent.register_module(first, operation)
    for name in others:
        parent.register_module(name, nn.Identity())
    return True


def _random(convolution: nn.Module, seed: int = 0) -> Tensor:
    """Return random numbers that a convolution can take."""
    weight = convolution.get_parameter("weight")
    channels = weight.shape[0 if isinstance(convolution, TRANSPOSED) else 1]
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
    except (AttributeError, RuntimeError) as failure:
        objection = _reason(failure)
    else:
        objection = _objection(made, apart, x, TOLERANCE)
        if not objection:
            return made
    name = what.label if isinstance(what, Chain) else type(what).__name__
    unfit = kind.__qualname__.partition(".")[0]  # a class, or a way to make one
    logger.warning("%s is not used for %s: %s", unfit, name, objection)
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
    except (AttributeError, RuntimeError) as failure:
        return _reason(failure)
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


def _reason(failure: Exception) -> str:
    """Return why an operation is not used; a full memory is no reason."""
    if is_full(failure):
        raise failure
    return _first_line(failure)


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
        if isinstance(one, list):  # side by side
            one = torch.cat(one, dim=1)
        if one.shape != other.shape:
            return math.inf
        largest = max(float(other.abs().max()), torch.finfo(other.dtype).tiny)
        error = float((one - other).abs().max()) / largest
        worst = error if math.isnan(error) else max(worst, error)
    return worst
