"""Layers shared by backbones and detectors."""
