"""Data with labels of which every one is known, and detections on it that are wrong in known ways."""

import json

import numpy as np

from tests.data.sets import annotation, image_record, open_coco, write_coco

DOG, CAT, COW = range(3)
"""Labels go by category ids."""

IDS = (1, 3, 7)


def write_scene(folder, count=8, **options):
    """`count` pictures of 64 x 48, each with a cat at (4, 4, 20, 20) and a dog at (36, 20, 20, 20)."""
    images = [image_record(number) for number in range(1, count + 1)]
    objects = [
        annotation(2 * number + place, number, box, category)
        for number in range(1, count + 1)
        for place, (box, category) in enumerate([((4, 4, 20, 20), 3), ((36, 20, 20, 20), 1)])
    ]
    return write_coco(folder, images, objects, split="val", **options)


def scene(folder, count=8):
    return open_coco(write_scene(folder, count), "val")


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def right_ones(count=8, score=0.9):
    """What finds every object of `write_scene`."""
    return [
        detection(number, category, box, score)
        for number in range(1, count + 1)
        for box, category in (((4, 4, 20, 20), 3), ((36, 20, 20, 20), 1))
    ]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def random_truth_and_detections(seed, classes=3, images=40):
    """Labels of `images` pictures at random, and detections about them: kinds of all sorts."""
    generator = np.random.default_rng(seed)
    objects, found = [], []
    for number in range(1, images + 1):
        for _ in range(generator.integers(0, 6)):
            box = [*generator.uniform(0, 40, 2), *generator.uniform(8, 24, 2)]
            category = int(generator.integers(0, classes))
            objects.append((number, category, box))
            for _ in range(generator.integers(0, 4)):
                moved = np.array(box) + generator.normal(0, 3, 4)
                other = int(generator.integers(0, classes)) if generator.random() < 0.3 else category
                found.append((number, other, [*moved[:2], *moved[2:].clip(2)], generator.random()))
        if generator.random() < 0.5:
            found.append((number, 0, [*generator.uniform(0, 40, 2), 10, 10], generator.random()))
    return objects, found
