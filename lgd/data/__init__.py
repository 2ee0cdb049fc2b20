"""Data: annotations, images, samplers, loaders."""
