"""Modules that follow one another and amount to one convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from napari_attunet.networks.blocks import ConvBlock

__all__ = ["CONVOLUTIONS", "TRANSPOSED", "Chain", "chains", "folded", "is_plain"]

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Chain:
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


def is_plain(module: nn.Module, *, kernel: int) -> bool:
    """Return whether it is a convolution of that size, without any finesse."""
    return (
        isinstance(module, CONVOLUTIONS)
        and set(module.kernel_size) == {kernel}
        and set(module.stride) == set(module.dilation) == {1}
        and set(module.padding) == {kernel // 2}
        and (module.groups, module.padding_mode) == (1, "zeros")
    )


def folded(module: nn.Module) -> nn.Module:
    """Return the convolution that a sequence of it and its normalisation amounts to."""
    (chain,) = chains(module)
    return chain.convolution


def chains(parent: nn.Module) -> Iterator[Chain]:
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
    if not isinstance(convolution, CONVOLUTIONS + TRANSPOSED):
        return None
    repeats = getattr(convolution, "repeats", None)
    norm = modules[end] if end < len(modules) else None
    if isinstance(norm, _NORMS):
        transposed = isinstance(convolution, TRANSPOSED)
        convolution = fuse_conv_bn_eval(convolution, norm, transposed)
        end += 1
    relu = end < len(modules) and isinstance(modules[end], nn.ReLU)
    end += relu
    return Chain(tuple(names[:end]), tuple(modules[:end]), convolution, repeats, relu)
