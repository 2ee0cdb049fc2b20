"""From a COCO-style JSON and a folder of images to batches."""
