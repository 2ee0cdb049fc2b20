"""Detectors for other runtimes: ONNX and torch.export, from raw pixels to detections."""
