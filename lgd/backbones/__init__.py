"""Backbones: images to a dict of feature maps."""
