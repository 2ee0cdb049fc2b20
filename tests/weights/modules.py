"""Small modules with the names of the real ones."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lgd.backbones.resnet import ResNet


def module_of(state: Mapping[str, Tensor]) -> nn.Module:
    """A module whose state dict has the names and shapes of `state`, all zero."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.register_buffer(last, torch.zeros_like(tensor))
    return root


def small_resnet(depth: int = 50, **settings) -> ResNet:
    widths = {"stem_out_channels": 4, "res2_out_channels": 8, "width_per_group": 4}
    return ResNet(depth=depth, **(widths | settings))


def student_with(backbone: nn.Module) -> nn.Module:
    """A model whose student has `backbone`, and a neck and a head of one layer each."""
    model = nn.Module()
    model.student = nn.Module()
    model.student.backbone = backbone
    model.student.neck = nn.Linear(2, 2)
    model.student.head = nn.Linear(2, 2)
    return model


def randomise(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Random values of the same shapes; variances positive."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.5
        if name.endswith("running_var")
        else torch.randn(tensor.shape, generator=generator)
        for name, tensor in state.items()
    }
