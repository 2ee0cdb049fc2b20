"""Convolutions: plain, and with their norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.layers.depthwise import depthwise_conv, depthwise_pays
from lgd.layers.norm import FrozenBatchNorm2d, frozen_copy, make_norm
from lgd.layers.pointwise import pointwise_conv, pointwise_pays
from lgd.layers.winograd import winograd_conv3x3, winograd_pays

_NARROW = 16
"""Input channels below which oneDNN, as torch 2.14 has it, writes beyond its memory when two or more threads
take the gradient of the weight of a 1x1 convolution with a stride."""


class Conv2d(nn.Conv2d):
    """torch's convolution, with a faster way to the same result on a CPU.

    Attributes:
        winograd: whether that way is taken where it pays (`lgd.layers.winograd`).
    """

    winograd: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, h, w)."""
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with a weight and bias in place of this layer's own, of the same shapes."""
        if self._is_narrow_and_strided() and x.is_cpu and torch.is_grad_enabled():
            return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], weight, bias)
        if self.winograd and self._is_plain_3x3() and winograd_pays(x, weight):
            return winograd_conv3x3(x, weight, bias)
        if self._is_pointwise() and pointwise_pays(x):
            return pointwise_conv(x, weight, bias)
        if self._is_depthwise() and depthwise_pays(x, weight, self.stride):
            assert not isinstance(self.padding, str)
            return depthwise_conv(x, weight, bias, self.stride, self.padding)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _is_pointwise(self) -> bool:
        settings = (self.kernel_size, self.stride, self.padding, self.groups)
        return settings == ((1, 1), (1, 1), (0, 0), 1)

    def _is_narrow_and_strided(self) -> bool:
        """Whether it is a 1x1 convolution that skips cells, of few channels."""
        settings = (self.kernel_size, self.padding, self.groups)
        return settings == ((1, 1), (0, 0), 1) and max(self.stride) > 1 and self.in_channels < _NARROW

    def _is_depthwise(self) -> bool:
        each = self.in_channels == self.out_channels == self.groups
        return each and self.dilation == (1, 1)

    def _is_plain_3x3(self) -> bool:
        settings = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def set_winograd(model: nn.Module, enabled: bool) -> None:
    """Let the convolutions of a model take the faster way on a CPU, or the usual one."""
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.winograd = enabled


class ConvNorm(Conv2d):
    """A convolution that pads to keep the size (at stride 1), and the norm that follows it.

    A frozen batch norm is multiplied into the convolution's weight: the weight is small and the
    activation large, and autograd then keeps no copy of the activation for it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
        stride: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        norm: a name for `make_norm`. The convolution has a bias only without a norm.
        norm_eps: what the norm adds to variances.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=not norm,
        )
        self.norm = make_norm(norm, out_channels, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        weight, bias = self.folded_parameters()
        return self.apply_unfolded_norm(self.convolve(x, weight, bias))

    def fold_norm(self) -> None:
        """Multiply a norm that no longer changes into the weight, in place; others stay.

        Constant are frozen batch norms, and batch norms in evaluation mode.
        """
        if isinstance(self.norm, nn.modules.batchnorm._BatchNorm) and not self.norm.training:
            self.norm = frozen_copy(self.norm)
        if self.norm_is_folded():
            weight, bias = self.folded_parameters()
            assert bias is not None
            self.weight = nn.Parameter(weight, requires_grad=False)
            self.bias = nn.Parameter(bias, requires_grad=False)
            self.norm = None

    def folded_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The convolution's weight and bias, with a frozen norm multiplied in."""
        if not isinstance(self.norm, FrozenBatchNorm2d) or not self.norm_is_folded():
            return self.weight, self.bias
        scale, shift = self.norm.scale_and_shift()
        return self.weight * scale[:, None, None, None], shift

    def apply_unfolded_norm(self, x: Tensor) -> Tensor:
        """Apply the norm, unless `folded_parameters` holds it already."""
        if self.norm is None or self.norm_is_folded():
            return x
        normalized: Tensor = self.norm(x)
        return normalized

    def norm_is_folded(self) -> bool:
        """Whether `folded_parameters` holds the norm."""
        return isinstance(self.norm, FrozenBatchNorm2d) and self.norm.folds
