"""Swin transformer (arXiv 2103.14030).

Legend: B images; h x w the map of a stage; M side of a window; W windows of an image, the map padded to whole
ones; L = M^2 tokens of a window; C channels; N heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lgd.backbones.backbone import Backbone
from lgd.layers.window_attention import WindowAttention, join_windows, make_shift_mask, split_windows

_PATCH_SIZE = 4
_POSITIONS = 56  # a side of the absolute position embedding: patches of the 224 pixels of ImageNet's images


class PatchEmbedding(nn.Module):
    """Turns patches of 4 x 4 pixels into tokens.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, _PATCH_SIZE, stride=_PATCH_SIZE)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, h, w, C), h and w a quarter of that, rounded up."""
        tokens: Tensor = self.proj(_pad_to_multiple(x, _PATCH_SIZE, dims=(2, 3)))
        normalized: Tensor = self.norm(tokens.permute(0, 2, 3, 1))
        return normalized


class PatchMerging(nn.Module):
    """Merges 2 x 2 neighbours into one token of twice the channels.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h/2, w/2, 2 C), sizes rounded up; odd maps are padded with zeros."""
        x = _pad_to_multiple(x, 2, dims=(1, 2))
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(quarters, dim=-1)))
        return merged


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, token by token.

    Args:
        channels: C.
        hidden_channels: channels between the two layers.
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        hidden: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return hidden


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normalised first and added to its input.

    Args:
        channels: C.
        num_heads: N.
        window_size: M.
        shift: cells by which the windows are moved down and right.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability that a branch is left out for an image, in training.
        reference_order: see `WindowAttention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        reference_order: bool = False,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window_size, reference_order=reference_order)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, shift_mask: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C).

        Args:
            x: the map.
            shift_mask: (W, L, L) from `make_shift_mask`; not looked at by a block without shift.
        """
        x = x + self.drop_path(self._attend(self.norm1(x), shift_mask))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attend(self, x: Tensor, shift_mask: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        # The padding is attended to like any token, as the published weights were trained.
        x = _pad_to_multiple(x, self.window_size, dims=(1, 2))
        padded_height, padded_width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(split_windows(x, self.window_size), shift_mask if self.shift else None)
        x = join_windows(windows, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class SwinStage(nn.Module):
    """Blocks, every second one with its windows shifted by half a window.

    Args:
        channels: C.
        num_heads: N.
        window_size: M.
        mlp_ratio: see `SwinBlock`.
        drop_paths: of each block.
        downsample: whether the stage holds the merging that leads to the next; its owner applies it.
        reference_order: see `WindowAttention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        downsample: bool,
        reference_order: bool = False,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                num_heads=num_heads,
                window_size=window_size,
                shift=window_size // 2 if index % 2 else 0,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path,
                reference_order=reference_order,
            )
            for index, drop_path in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C), without the merging."""
        shift_mask = make_shift_mask(x, self.window_size)
        for block in self.blocks:
            x = block(x, shift_mask)
        return x


class SwinTransformer(Backbone):
    """Patch embedding and stages, each of twice the stride and channels of the one before.

    Linear layers start as truncated normals of deviation 0.02 with bias 0, as the paper's authors intend.

    Args:
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        window_size: M.
        mlp_ratio: see `SwinBlock`.
        drop_path_rate: of the last block; those before rise to it linearly from 0.
        absolute_positions: add a learnt embedding of the position, resized to the map, to the patches.
        out_features: maps to return, of "stage2" (stride 4), "stage3" ...; each through a norm of its own.
        freeze_at: what does not train: -1 nothing, 0 the patch embedding, 1 also the absolute positions, 2
            also the first stage, which then does not drop branches either, ...
        reference_order: round as the reference, see `WindowAttention`.

    Attributes:
        channels: channels by returned map, fine to coarse.
        strides: pixels per cell by returned map.

    Raises:
        ValueError: a map that there is not, lists that don't match, heads that don't divide their channels.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        absolute_positions: bool = False,
        out_features: Sequence[str] = ("stage2", "stage3", "stage4", "stage5"),
        freeze_at: int = -1,
        reference_order: bool = False,
    ) -> None:
        super().__init__()
        self.reference_order = reference_order
        channels = [embed_dim * 2**index for index in range(len(depths))]
        names = [f"stage{index + 2}" for index in range(len(depths))]
        _check(names, out_features, channels, num_heads)
        num_stages = max(map(names.index, out_features)) + 1
        drop_paths = _drop_paths(drop_path_rate, depths, num_frozen=max(freeze_at - 1, 0))
        self.patch_embed = PatchEmbedding(embed_dim)
        self.absolute_pos_embed = None
        if absolute_positions:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, _POSITIONS, _POSITIONS))
        self.layers = nn.ModuleList(
            SwinStage(
                channels[index],
                num_heads=num_heads[index],
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                drop_paths=drop_paths[index],
                downsample=index < num_stages - 1,
                reference_order=reference_order,
            )
            for index in range(num_stages)
        )
        ordered = [index for index in range(num_stages) if names[index] in out_features]
        self.channels = {names[index]: channels[index] for index in ordered}
        self.strides = {names[index]: _PATCH_SIZE * 2**index for index in ordered}
        for index in ordered:
            self.add_module(f"norm{index}", nn.LayerNorm(channels[index]))
        self._init_weights()
        self._freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, channels[name], H / strides[name], W / strides[name])}, rounded up."""
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            positions = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + positions.permute(0, 2, 3, 1)
        maps = {}
        for index, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            x = stage(x)
            name = f"stage{index + 2}"
            if name in self.channels:
                maps[name] = self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2)
                if self.reference_order:  # convolutions round otherwise where the channels lie last
                    maps[name] = maps[name].contiguous()
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at >= 0:
            self.patch_embed.requires_grad_(False)
        if freeze_at >= 1 and self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        for stage in self.layers[: max(freeze_at - 1, 0)]:
            stage.requires_grad_(False)


def _pad_to_multiple(x: Tensor, divisor: int, dims: tuple[int, int]) -> Tensor:
    """Pad the two neighbouring dimensions with zeros at their ends."""
    height, width = (-x.shape[dim] % divisor for dim in dims)
    if not height and not width:
        return x
    return F.pad(x, (0, 0) * (x.ndim - 1 - dims[1]) + (0, width, 0, height))


def _drop_paths(rate: float, depths: Sequence[int], num_frozen: int) -> list[list[float]]:
    """The rate of every block by stage, none in the first `num_frozen` stages."""
    last = max(sum(depths) - 1, 1)
    rates = [rate * block / last for block in range(sum(depths))]
    starts = [sum(depths[:index]) for index in range(len(depths))]
    by_stage = [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]
    return [[0.0] * len(stage) if index < num_frozen else stage for index, stage in enumerate(by_stage)]


def _check(
    names: Sequence[str], out_features: Sequence[str], channels: Sequence[int], num_heads: Sequence[int]
) -> None:
    unknown = [name for name in out_features if name not in names]
    if unknown or not out_features:
        raise ValueError(f"this Swin transformer has no maps {unknown}; choose some of {list(names)}")
    if len(num_heads) != len(channels):
        raise ValueError(f"{len(channels)} depths of a Swin transformer need as many heads, not {num_heads}")
    for width, heads in zip(channels, num_heads, strict=True):
        if width % heads:
            raise ValueError(f"{heads} heads don't divide the {width} channels of a Swin transformer's stage")
