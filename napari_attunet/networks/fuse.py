"""The same network rewritten for inference: fewer operations, the same answer.

A chain of modules that follow one another becomes one operation where algebra allows:

- Batch normalisation, which in inference is a scale and a shift, goes into the weights
  of the convolution before it.
- Repeating pixels and convolving 3x3 is one transposed convolution (`_repeated`): of
  the nine multiplications for a pixel, four are left in 2D, eight of 27 in 3D.
- A 1x1 convolution is a matrix product, where channels lie last in memory.
- A ReLU is applied while the convolution's result is still in the processor.

Each operation is compared with the modules that it is to replace, on random numbers; if
it fails or disagrees, the next simpler one is tried, and at last the modules stay.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from napari_attunet.networks.blocks import ConvBlock
from napari_attunet.networks.unet import AttentionUNet

__all__ = ["fused"]

logger = logging.getLogger(__name__)

#: Relative to the largest value, by how much an operation may differ from what it
#: replaces. Rounding alone brings 1e-6; a wrong tap or sign brings 1e-2 and more.
TOLERANCE = 1e-4

#: Edge of the random images on which that is judged.
EDGE = 12

_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def fused(network: AttentionUNet) -> AttentionUNet:
    """Return a network that computes the same faster, for inference only.

    Gates, attention and edits are as in the network given; weights that stay as they
    are, are shared with it.

    Parameters
    ----------
    network : AttentionUNet
        In evaluation mode; left as it is.
    """
    if network.training:
        raise ValueError("Only a network in evaluation mode can be fused.")
    with torch.device("meta"):
        faster = AttentionUNet(network.spec)
    faster.load_state_dict(network.state_dict(), assign=True)
    faster.eval().requires_grad_(False)
    for parent in list(faster.modules()):
        for chain in list(_chains(parent)):
            _replace(parent, chain)
    return faster.channels_last()


@dataclass(frozen=True, slots=True)
class _Chain:
    """Modules that follow one another and can become one operation.

    Attributes
    ----------
    names : tuple of str
        In their parent.
    modules : tuple of Module
    convolution : Module
        What they amount to, but for what comes before and after.
    repeats : tuple of int, optional
        How often pixels are repeated along each axis before.
    relu : bool
        Whether a ReLU comes after.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    convolution: nn.Module
    repeats: tuple[int, ...] | None
    relu: bool

    @property
    def label(self) -> str:
        """What is replaced, in words."""
        return " + ".join(type(m).__name__ for m in self.modules)


def _chains(parent: nn.Module) -> Iterator[_Chain]:
    """Yield what of a module can become one operation each."""
    if isinstance(parent, ConvBlock):
        names = list(parent.chain)
    elif isinstance(parent, nn.Sequential):
        names = [name for name, _ in parent.named_children()]
    else:  # each of its modules is called by itself
        for name, module in parent.named_children():
            if _is_plain(module, kernel=1):
                yield _Chain((name,), (module,), module, None, relu=False)
        return
    while names:
        chain = _first_chain(parent, names)
        if chain is None:
            names = names[1:]
        else:
            yield chain
            names = names[len(chain.names) :]


def _first_chain(parent: nn.Module, names: Sequence[str]) -> _Chain | None:
    """Return the chain that these modules begin with, if they do."""
    modules = [parent.get_submodule(name) for name in names]
    end, repeats = 0, None
    if isinstance(modules[0], nn.Upsample) and len(modules) > 1:
        factors: tuple[float, ...] = modules[0].scale_factor  # type: ignore[assignment]
        end, repeats = 1, tuple(int(f) for f in factors)
    convolution = modules[end]
    kinds = _CONVOLUTIONS if repeats else _CONVOLUTIONS + _TRANSPOSED
    if not isinstance(convolution, kinds):
        return None
    end += 1
    norm = modules[end] if end < len(modules) else None
    if isinstance(norm, _NORMS):
        transposed = isinstance(convolution, _TRANSPOSED)
        convolution = fuse_conv_bn_eval(convolution, norm, transposed)
        end += 1
    relu = end < len(modules) and isinstance(modules[end], nn.ReLU)
    end += relu
    return _Chain(tuple(names[:end]), tuple(modules[:end]), convolution, repeats, relu)


def _replace(parent: nn.Module, chain: _Chain) -> None:
    """Put the best operation that agrees in the chain's place."""
    for kind in _Operation.kinds:
        if not kind.suits(chain):
            continue
        try:
            operation = kind(chain)
            error = _disagreement(operation, chain)
        except (AttributeError, NotImplementedError, RuntimeError) as failure:
            reason = str(failure).partition("\n")[0]
        else:
            if error <= TOLERANCE:  # False for what is no number
                break
            reason = f"it differs by {error:.1e}"
        logger.warning("%s is not used for %s: %s", kind.__name__, chain.label, reason)
    else:
        return
    first, *others = chain.names
    parent.register_module(first, operation)
    for name in others:
        parent.register_module(name, nn.Identity())


def _disagreement(operation: _Operation, chain: _Chain) -> float:
    """Return the largest difference, relative to the largest value."""
    weight = chain.convolution.get_parameter("weight")
    axis = 0 if isinstance(chain.convolution, _TRANSPOSED) else 1
    ndim = weight.ndim - 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, weight.shape[axis], *(EDGE,) * ndim, generator=generator)
    x = x.to(weight).contiguous(memory_format=_LAYOUTS[ndim])
    with torch.inference_mode():
        found = operation(x)
        expected = x
        for module in chain.modules:
            # a copy, since what works in place must not reach the other
            expected = module(expected.clone())
        if found.shape != expected.shape:
            return float("inf")
        largest = max(float(expected.abs().max()), torch.finfo(weight.dtype).tiny)
        return float((found - expected).abs().max()) / largest


def _is_plain(module: nn.Module, *, kernel: int) -> bool:
    """Return whether it is a convolution of that size, without any finesse."""
    return (
        isinstance(module, _CONVOLUTIONS)
        and set(module.kernel_size) == {kernel}
        and set(module.stride) == set(module.dilation) == {1}
        and set(module.padding) == {kernel // 2}
        and (module.groups, module.padding_mode) == (1, "zeros")
    )


class _Operation(nn.Module):
    """What can take a chain's place; defining one adds it, the fastest ones first."""

    kinds: ClassVar[list[type[_Operation]]] = []

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kinds.append(cls)

    def __init__(self, chain: _Chain) -> None:
        super().__init__()
        self._relu = chain.relu

    @classmethod
    def suits(cls, chain: _Chain) -> bool:
        """Return whether the chain is of the right form for it."""
        raise NotImplementedError

    def _hold(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.ndim in (4, 5):
            layout = _LAYOUTS[weight.ndim - 2]
            weight = weight.contiguous(memory_format=layout)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def _activated(self, x: Tensor) -> Tensor:
        return x.relu_() if self._relu else x


class _Matrix(_Operation):
    """A 1x1 convolution as a product of all pixels with one matrix."""

    def __init__(self, chain: _Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        weight = convolution.get_parameter("weight").flatten(1).contiguous()
        self._hold(weight, convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: _Chain) -> bool:
        """Return whether that is what it is."""
        return chain.repeats is None and _is_plain(chain.convolution, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of x, (N, C, *spatial)."""
        mixed = F.linear(x.movedim(1, -1), self.weight, self.bias)
        return self._activated(mixed).movedim(-1, 1)


class _Repeated(_Operation):
    """Repeated pixels under a 3x3 convolution, as one transposed convolution."""

    def __init__(self, chain: _Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        self._stride = chain.repeats or ()
        weight = repeated_kernel(convolution.get_parameter("weight"), self._stride)
        self._hold(weight, convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: _Chain) -> bool:
        """Return whether pixels are repeated before a 3x3 convolution."""
        return chain.repeats is not None and _is_plain(chain.convolution, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge and convolve x, (N, C, *spatial)."""
        transposed = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d
        y = transposed(x, self.weight, self.bias, self._stride, padding=1)
        return self._activated(y)


def repeated_kernel(weight: Tensor, repeats: Sequence[int]) -> Tensor:
    """Return the kernel of the transposed convolution that needs no repeated pixels.

    A pixel repeated s times meets, in the output pixel that lies j - 1 beyond its
    first copy, those taps of the 3x3 kernel that fall on any of its copies::

        copies of the pixel      0   1            s = 2
        output at j = 0  w0 w1  w2                K0 = w2
        output at j = 1      w0 w1  w2            K1 = w1 + w2
        output at j = 2         w0  w1 w2         K2 = w0 + w1
        output at j = 3             w0 w1 w2      K3 = w0

    Parameters
    ----------
    weight : Tensor, (out, in, 3, 3) or (out, in, 3, 3, 3)
    repeats : sequence of int
        s, along each spatial axis.

    Returns
    -------
    Tensor, (in, out, *(s + 2))
        For a stride of s and a padding of 1.
    """
    for axis, count in enumerate(repeats, start=2):
        taps = weight.unbind(axis)
        sums = []
        for j in range(count + 2):
            first, last = max(0, 2 - j), min(2, count + 1 - j)
            sums.append(torch.stack(taps[first : last + 1]).sum(0))
        weight = torch.stack(sums, axis)
    return weight.transpose(0, 1)


class _OneDNN(_Operation):
    """A convolution that applies its ReLU itself (oneDNN, on the CPU)."""

    def __init__(self, chain: _Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        self._padding: list[int] = list(convolution.padding)  # type: ignore[arg-type]
        self._stride: list[int] = list(convolution.stride)  # type: ignore[arg-type]
        self._hold(convolution.get_parameter("weight"), convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: _Chain) -> bool:
        """Return whether it is one plain convolution on the CPU."""
        convolution = chain.convolution
        return (
            chain.repeats is None
            and isinstance(convolution, _CONVOLUTIONS)
            and (convolution.groups, set(convolution.dilation)) == (1, {1})
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
            and convolution.weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, C, *spatial)."""
        # What PyTorch's own compiler calls: no public name has it.
        convolve = torch.ops.mkldnn._convolution_pointwise
        ones = [1] * (x.ndim - 2)
        kind = "relu" if self._relu else "none"
        y: Tensor = convolve(
            *(x, self.weight, self.bias, self._padding, self._stride, ones, 1),
            *(kind, [], ""),
        )
        return y


class _Folded(_Operation):
    """What is left of a chain once its normalisation is in the weights."""

    def __init__(self, chain: _Chain) -> None:
        super().__init__(chain)
        self.repeat = chain.modules[0] if chain.repeats else nn.Identity()
        self.convolution = chain.convolution.requires_grad_(False)

    @classmethod
    def suits(cls, chain: _Chain) -> bool:
        """Return whether that saves anything."""
        return len(chain.modules) > 1

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, C, *spatial)."""
        return self._activated(self.convolution(self.repeat(x)))
