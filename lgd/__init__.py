"""LGD: label-guided self-distillation for object detectors, in plain PyTorch."""

__version__ = "0.1.0"
