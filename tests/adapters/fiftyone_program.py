"""Run by `test_fiftyone.py` where FiftyOne is installed: `python -m ... WEIGHTS FOLDER OUT`.

Does to each picture what `apply_model` does to the samples of a data set (which would need MongoDB):
the model as a context, FiftyOne's reader, `Sample.add_labels`; one by one, and in a batch with masks.
"""

import json
import sys
from pathlib import Path

import lgd
from tests.adapters.masked import with_masks

SCORE = 0.0103


def main(weights: str, folder: str, out: str) -> None:
    """Write what the samples then hold."""
    import fiftyone as fo
    from fiftyone.core.models import Model
    from fiftyone.utils.image import read

    from lgd.adapters.fiftyone import FiftyoneModel

    model, masked = (FiftyoneModel(each, SCORE) for each in (lgd.load(weights, "cpu"), _masked(weights)))
    assert isinstance(model, Model)
    assert model.media_type == "image"
    assert not model.has_logits
    assert not model.ragged_batches  # pictures of several sizes may share a batch
    assert model.transforms is None
    samples = [fo.Sample(filepath=str(path)) for path in sorted(Path(folder).iterdir())]
    with model, masked:
        labels = masked.predict_all([read(sample.filepath) for sample in samples])
        for sample, many in zip(samples, labels, strict=True):
            sample.add_labels(model.predict(read(sample.filepath)), label_field="found", confidence_thresh=0)
            sample.add_labels(many, label_field="masked")
    said = {sample.filename: [_say(*pair) for pair in _pairs(sample)] for sample in samples}
    Path(out).write_text(json.dumps(said))


def _masked(weights):
    return with_masks(lgd.load(weights, "cpu"))


def _pairs(sample):
    return zip(sample.found.detections, sample.masked.detections, strict=True)


def _say(found, masked):
    sides = zip(found.bounding_box, masked.bounding_box, strict=True)
    assert all(abs(one - other) < 1e-4 for one, other in sides)  # a batch changes the last digits
    return {
        "box": found.bounding_box,
        "score": found.confidence,
        "name": found.label,
        "mask": [*masked.mask.shape, int(masked.mask.sum())],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
