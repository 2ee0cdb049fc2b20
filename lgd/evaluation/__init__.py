"""Evaluation: COCO AP and drawn detections."""
