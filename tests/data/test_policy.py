"""Lists of augmentations on a loader: chance hangs on the place in the epoch alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.augmentations import ColorJitter, CutOut, LargeScaleJitter, QuarterTurn, VerticalFlip
from lgd.data.errors import ImageError
from lgd.data.loader import train_loader
from lgd.data.mixing import CopyPaste, Mosaic
from lgd.data.samples import Preparation, TrainingImages
from lgd.data.transforms import Resize
from tests.data.sets import annotation, image_record, open_coco, write_coco
from tests.data.test_loader import TRAIN, make, make_with_masks, same, take

RANGES = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))


def everything(probability=0.5):
    return (
        LargeScaleJitter(probability, (0.5, 1.5), None, 0.1),
        Mosaic(probability, (0.5, 1.0), (0.3, 0.7), 0.1),
        CopyPaste(probability, (1, 3), 0.1),
        QuarterTurn(probability, (1, 3)),
        VerticalFlip(probability),
        CutOut(probability, (1, 2), (0.02, 0.1), (0.3, 3.3), 0.1),
        ColorJitter(probability, *RANGES, image_format="BGR"),
    )


@pytest.fixture(params=[make, make_with_masks], ids=["boxes", "masks"])
def index(request, tmp_path):
    return request.param(tmp_path)


def loader(index, **changes):
    settings = (
        TRAIN | {"augmentations": everything(), "with_masks": len(index.columns["points"]) > 0} | changes
    )
    return train_loader(index, **settings)


def test_batches_hang_on_no_worker_no_rank_and_no_start(index):
    alone = take(loader(index), 6)
    assert same(take(loader(index, num_workers=2), 6), alone)
    assert same(take(loader(index, start=4), 2), alone[4:])
    ranks = [take(loader(index, batch_size=2, world_size=2, rank=rank), 6) for rank in (0, 1)]
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert torch.cat([share.image_ids for share in shares]).tolist() == batch.image_ids.tolist()
        for k in range(4):
            share = shares[k // 2]
            height, width = batch.sizes[k].tolist()
            assert share.sizes[k % 2].tolist() == [height, width]
            assert torch.equal(share.images[k % 2, :, :height, :width], batch.images[k, :, :height, :width])
            count = int(batch.targets.valid[k].sum())
            assert torch.equal(share.targets.boxes[k % 2, :count], batch.targets.boxes[k, :count])


def test_other_seeds_give_other_samples(index):
    assert not same(take(loader(index, seed=4), 2), take(loader(index), 2))


def test_never_is_as_if_there_were_no_list(tmp_path):
    index = make_with_masks(tmp_path)
    for masks in (False, True):
        plain = take(train_loader(index, **TRAIN, with_masks=masks), 6)
        assert same(
            take(train_loader(index, **TRAIN, with_masks=masks, augmentations=everything(0.0)), 6), plain
        )


def test_always_is_every_time(index):
    class Counting:
        needs_others = enlarges = False
        probability = 1.0
        calls = 0

        def __call__(self, sample, generator, draw):
            self.calls += 1
            assert sample.boxes.dtype == torch.float64
            return sample

    counting, never = Counting(), Counting()
    never.probability = 0.0
    often = Counting()
    often.probability = 0.5
    take(loader(index, augmentations=(counting, never, often)), 50)
    assert counting.calls == 200
    assert never.calls == 0
    assert 70 < often.calls < 130


def test_what_comes_out_is_a_sample_like_others(index):
    for batch in take(loader(index, augmentations=everything(0.8), with_masks=False), 12):
        assert batch.targets.outlines is None
        assert batch.targets.boxes.dtype == torch.float32
        boxes, valid = batch.targets.boxes, batch.targets.valid
        limits = batch.sizes.flip(1).repeat(1, 2)[:, None].expand_as(boxes)
        assert (boxes >= 0).all()
        assert (boxes <= limits).all()
        assert (boxes[..., 2:] > boxes[..., :2])[valid].all()


class Asking:
    """Takes another sample and keeps it."""

    needs_others, enlarges, probability = True, False, 1.0

    def __init__(self):
        self.others = []

    def __call__(self, sample, generator, draw):
        self.others.append(draw())
        return sample


def training_images(index, augmentations, on_bad_image="fail", **changes):
    settings = {
        "candidates": np.arange(len(index)), "resize": Resize((48,), 64), "crop": None, "flip_prob": 0.5,
        "seed": 1, "on_bad_image": on_bad_image, "augmentations": augmentations,
    }  # fmt: skip
    return TrainingImages(Preparation(index, "RGB", 64, torch.float32), **settings | changes)


def test_others_have_come_as_far_as_the_list_went(tmp_path):
    """One turns, then asks, then flips: what is asked for is turned, not flipped, and asks for no more."""
    index = make(tmp_path)
    first, asking, second = Asking(), Asking(), Asking()
    turn = QuarterTurn(1.0, (1, 1))
    images = training_images(index, (first, turn, asking, VerticalFlip(1.0), second), flip_prob=0.0)
    for position in range(20):
        images[position % 12, position]
    assert [len(each.others) for each in (first, asking, second)] == [20, 20, 20]

    def straight(sample):
        i = index.image_ids.tolist().index(sample.image_id)
        plain = training_images(index, (Asking(),), flip_prob=0.0)._prepare(i, min_size=48, flip=False)
        return plain.image.show()

    for other in first.others:
        assert torch.equal(other.image.show(), straight(other))
    for other in asking.others:
        assert torch.equal(other.image, straight(other).rot90(1, (1, 2)))
    for other in second.others:
        assert torch.equal(other.image, straight(other).rot90(1, (1, 2)).flip(1))
    assert len({other.image_id for other in asking.others}) > 5


def test_an_unreadable_other_picture_is_named_or_replaced(tmp_path):
    index = make(tmp_path)
    (tmp_path / "train" / "003.png").write_bytes(b"no picture")
    images = training_images(index, (Asking(),))
    answers = [images[0, position] for position in range(60)]
    errors = [answer for answer in answers if isinstance(answer, ImageError)]
    assert 0 < len(errors) < 60
    assert all("003.png" in str(error) for error in errors)
    skipping = training_images(index, (Asking(),), "skip")
    answers = [skipping[0, position] for position in range(60)]
    assert [bool(sample.skipped) for sample in answers] == [
        isinstance(answer, ImageError) for answer in map(images.__getitem__, [(0, p) for p in range(60)])
    ]
    assert all("003.png" in text for sample in answers for text in sample.skipped)


def test_large_photographs_come_whole_where_they_may_be_enlarged(tmp_path):
    index = open_coco(write_coco(tmp_path, [image_record(1, 1200, 1000)], [annotation(1, 1)]))
    path = tmp_path / "train" / "001.png"
    with Image.open(path) as picture:
        picture.save(path, format="JPEG")
    for enlarges, height in ((True, 1000), (False, 125)):
        asking = Asking()
        asking.enlarges = enlarges
        sample = training_images(index, (asking,))[0, 0]
        (other,) = asking.others
        assert other.image.pixels.shape[1] == height
        assert other.size == sample.size == (48, 58)
        assert isinstance(sample.image, torch.Tensor)  # not the whole photograph until there is a batch


@pytest.mark.parametrize(
    ("augmentation", "enlarges"),
    [
        (LargeScaleJitter(0.5, (0.1, 1.0), None, 0.1), False),
        (LargeScaleJitter(0.5, (0.1, 1.1), None, 0.1), True),
        (LargeScaleJitter(0.5, (0.1, 1.0), (9, 9), 0.1), True),
        (Mosaic(0.5, (0.5, 1.0), (0.3, 0.7), 0.1), False),
        (Mosaic(0.5, (0.5, 1.5), (0.3, 0.7), 0.1), True),
        (VerticalFlip(0.5), False),
    ],
)
def test_what_may_enlarge_says_so(augmentation, enlarges):
    assert augmentation.enlarges is enlarges


def test_pictures_that_are_decoded_elsewhere_are_refused(tmp_path):
    with pytest.raises(ValueError, match="decode_on"):
        loader(make(tmp_path), decode_on=torch.device("cpu"))
