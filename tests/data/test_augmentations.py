"""What augmentations make of pixels, boxes and masks, against references that go through every pixel.

The pictures say of each pixel where it comes from: (number of the picture, row, column). So after turns,
cuts and pastes a reference knows what is in sight of each object without knowing what was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from lgd.data.augmentations import ColorJitter, CutOut, LargeScaleJitter, QuarterTurn, VerticalFlip
from lgd.data.mixing import CopyPaste, Mosaic
from lgd.data.outlines import ImageOutlines, close_outlines, pad_outlines, polygons_to_outlines
from lgd.data.samples import Sample, SmallImage
from lgd.data.sight import FILL, draw_masks, put_in_frame, stay_in_sight
from lgd.data.transforms import View, Window
from lgd.ops.polygons import mask_edges, rasterize_on_grid

NO_EDGES = torch.zeros(0, 4, dtype=torch.float64)


@dataclass
class World:
    """Pictures that tell where their pixels are from, and every object's pixels in its own picture."""

    generator: np.random.Generator
    masks: dict[int, np.ndarray]
    has_mask: dict[int, bool]
    pictures: int = 0

    def draw(self) -> Sample:
        """Make a picture of about 30 x 40 with up to six objects that do not overlap, 10 x 10 at most."""
        generator, number = self.generator, self.pictures
        self.pictures += 1
        height, width = (int(side) for side in generator.integers(24, 44, size=2))
        rows, columns = np.mgrid[:height, :width]
        image = torch.from_numpy(np.stack([np.full_like(rows, number), rows, columns]).astype(np.uint8))
        labels, boxes, edges = [], [], []
        for y in range(0, height - 11, 12):
            for x in range(0, width - 11, 12):
                if generator.random() < 0.4:
                    continue
                mask = np.zeros((height, width), dtype=bool)
                bottom, right = y + generator.integers(1, 11), x + generator.integers(1, 11)
                kind = generator.integers(3)
                if kind < 2:  # a box alone, or its outline as a polygon
                    mask[y:bottom, x:right] = True
                    sides = [[x, y, right, y], [right, y, right, bottom], [right, bottom, x, bottom]]
                    polygon = torch.tensor([*sides, [x, bottom, x, y]], dtype=torch.float64)
                    edges.append(polygon if kind else NO_EDGES)
                else:  # run lengths of noise
                    mask[y:bottom, x:right] = generator.random((bottom - y, right - x)) < 0.6
                    mask[y, x] = True
                    edges.append(mask_edges(torch.from_numpy(mask)))
                label = len(self.masks)
                self.masks[label], self.has_mask[label] = mask, kind > 0
                labels.append(label)
                boxes.append(bounds(mask))
        return Sample(
            image=image,
            boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            original_size=(height, width),
            image_id=number,
            outlines=ImageOutlines(
                torch.cat([NO_EDGES, *edges]),
                torch.zeros(sum(map(len, edges)), dtype=torch.int64),
                torch.tensor([len(each) for each in edges], dtype=torch.int64),
            ),
        )

    def in_sight(self, sample: Sample) -> dict[int, np.ndarray]:
        """Of each object of which a pixel is seen, all that are, found pixel by pixel."""
        image = pixels(sample)
        seen: dict[int, np.ndarray] = {}
        owner = {}
        for label, mask in self.masks.items():
            picture = self.picture_of[label]
            owner |= {(picture, int(y), int(x)): label for y, x in np.argwhere(mask)}
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                label = owner.get(tuple(image[:, y, x].tolist()))
                if label is not None:
                    seen.setdefault(label, np.zeros(image.shape[1:], dtype=bool))[y, x] = True
        return seen

    def sample(self) -> Sample:
        """Make a picture, and remember of which its objects are."""
        sample = self.draw()
        self.picture_of |= dict.fromkeys(sample.labels.tolist(), sample.image_id)
        return sample

    def __post_init__(self) -> None:
        self.picture_of: dict[int, int] = {}


def world(seed):
    return World(np.random.default_rng(seed), {}, {})


def bounds(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def pixels(sample):
    return sample.image.show() if isinstance(sample.image, SmallImage) else sample.image


def drawn_masks(sample):
    """The masks as the models' targets have them, (G, h, w)."""
    padded = pad_outlines([sample.outlines], len(sample.labels), torch.float64)
    size = sample.size
    return rasterize_on_grid(padded.edges, padded.parts, padded.num_parts, torch.tensor([size]), size, size)[
        0
    ]


def assert_labels_say_what_is_in_sight(world, sample, chosen=None):
    expected = world.in_sight(sample)
    if chosen is not None:
        expected = {label: mask for label, mask in expected.items() if label in chosen}
    assert sorted(sample.labels.tolist()) == sorted(expected)
    if len(sample.labels) == 0:
        return
    masks = drawn_masks(sample).numpy()
    for k, label in enumerate(sample.labels.tolist()):
        assert sample.boxes[k].tolist() == bounds(expected[label])
        if world.has_mask[label]:
            assert np.array_equal(masks[k], expected[label])
        else:
            assert sample.outlines.counts[k] == 0


ALWAYS = {
    "vertical flip": VerticalFlip(1.0),
    "quarter turn": QuarterTurn(1.0, (1, 1)),
    "quarter turns": QuarterTurn(1.0, (1, 3)),
    "half turn": QuarterTurn(1.0, (2, 2)),
    "large-scale jitter": LargeScaleJitter(1.0, (1.0, 1.0), None, 0.0),
    "copy-paste": CopyPaste(1.0, (1, 4), 0.0),
    "mosaic": Mosaic(1.0, (1.0, 1.0), (0.2, 0.8), 0.0),
    "cut-out": CutOut(1.0, (1, 3), (0.02, 0.2), (0.3, 3.3), 0.0),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_boxes_and_masks_are_what_every_pixel_says(name):
    for seed in range(12):
        places = world(seed)
        sample = places.sample()
        changed = ALWAYS[name](sample, np.random.default_rng(seed), places.sample)
        assert_labels_say_what_is_in_sight(places, changed)
        assert changed.image_id == sample.image_id


def test_one_after_another_in_any_order():
    names = [name for name in ALWAYS if name != "quarter turn"]
    for seed in range(20):
        places, chance = world(seed), np.random.default_rng(seed)
        sample = places.sample()
        for place in chance.permutation(len(names)).tolist():
            sample = ALWAYS[names[place]](sample, chance, places.sample)
        assert_labels_say_what_is_in_sight(places, sample)


def test_frames_cut_and_fill():
    for seed in range(30):
        places, chance = world(seed), np.random.default_rng(seed)
        sample = places.sample()
        frame = tuple(chance.integers(5, 60, size=2).tolist())
        corner = tuple(chance.integers(-30, 30, size=2).tolist())
        framed = put_in_frame(sample, size=sample.size, frame=frame, corner=corner, min_visible=0)
        assert framed.size == frame
        assert_labels_say_what_is_in_sight(places, framed)
        expected = np.full((3, *frame), FILL, dtype=np.uint8)
        for y in range(frame[0]):
            for x in range(frame[1]):
                row, column = y - corner[0], x - corner[1]
                if 0 <= row < sample.size[0] and 0 <= column < sample.size[1]:
                    expected[:, y, x] = sample.image[:, row, column]
        assert np.array_equal(framed.image, expected)


def test_turned_pixels_follow_numpy():
    sample = world(0).sample()
    for turns in (1, 2, 3):
        turned = QuarterTurn(1.0, (turns, turns))(sample, np.random.default_rng(0), None)
        assert np.array_equal(turned.image, np.rot90(sample.image, turns, axes=(1, 2)))
    flipped = VerticalFlip(1.0)(sample, np.random.default_rng(0), None)
    assert np.array_equal(flipped.image, sample.image.numpy()[:, ::-1])


def test_four_quarter_turns_change_nothing_but_that_outlines_are_closed():
    sample = world(3).sample()
    turned = sample
    for _ in range(4):
        turned = QuarterTurn(1.0, (1, 1))(turned, np.random.default_rng(0), None)
    assert torch.equal(turned.boxes, sample.boxes)
    assert torch.equal(turned.image, sample.image)
    assert torch.equal(turned.outlines.edges, close_outlines(sample.outlines).edges)


def test_closing_adds_nothing_to_polygons():
    triangles = [[[0.1, 0.2, 5.3, 1.7, 2.2, 7.9], [5.3, 1.7, 8, 8, 3, 9]], [[0, 0, 4, 0, 4, 4, 0, 4]]]
    padded = polygons_to_outlines([triangles], 2, torch.float64)
    counts = torch.tensor([6, 4])
    outlines = ImageOutlines(
        torch.cat([padded.edges[0, 0], padded.edges[0, 1, :4]]),
        torch.cat([padded.parts[0, 0], padded.parts[0, 1, :4]]),
        counts,
    )
    closed = close_outlines(outlines)
    assert torch.equal(closed.edges, outlines.edges)
    assert torch.equal(closed.counts, counts)


def test_masks_to_edges_and_back():
    generator = np.random.default_rng(0)
    for density in np.linspace(0, 1, 40):
        mask = generator.random((9, 14)) < density
        edges = mask_edges(torch.from_numpy(mask))
        outlines = ImageOutlines(
            edges, torch.zeros(len(edges), dtype=torch.int64), torch.tensor([len(edges)])
        )
        for turns, given in ((0, outlines), (0, close_outlines(outlines))):
            padded = pad_outlines([given], 1, torch.float64)
            size = mask.shape
            back = rasterize_on_grid(padded.edges, padded.parts, 1, torch.tensor([size]), size, size)[0, 0]
            assert np.array_equal(back, np.rot90(mask, turns))


def fixed(uniform, integers):
    """A generator that gives what it is told to."""
    values = iter(integers)
    return SimpleNamespace(uniform=lambda low, high: uniform, integers=lambda low, high: next(values))


def test_jittered_to_twice_the_size():
    """Row and column of a picture of twice the size, from the sixth row and the tenth column on."""
    for seed in range(10):
        places = world(seed)
        sample = places.sample()
        height, width = sample.size
        jitter = LargeScaleJitter(1.0, (0.1, 2.0), None, 0.0)
        changed = jitter(sample, fixed(2.0, [-6, -10]), None)
        assert changed.size == (height, width)
        expected = {}
        for label in sample.labels.tolist():
            mask = places.masks[label].repeat(2, 0).repeat(2, 1)[6 : 6 + height, 10 : 10 + width]
            if mask.any():
                expected[label] = mask
        assert changed.labels.tolist() == list(expected)
        masks = drawn_masks(changed).numpy() if expected else []
        for k, label in enumerate(expected):
            assert changed.boxes[k].tolist() == bounds(expected[label])
            assert not places.has_mask[label] or np.array_equal(masks[k], expected[label])


def test_jittered_into_a_fixed_size():
    """30 x 40 just fits into 60 x 100 at twice its size; half of that is its own."""
    sample = replace(world(0).sample(), image=torch.zeros(3, 30, 40, dtype=torch.uint8))
    jitter = LargeScaleJitter(1.0, (0.1, 2.0), (60, 100), 0.0)
    changed = jitter(sample, fixed(0.5, [7, 11]), None)
    assert changed.size == (60, 100)
    inside = changed.image[:, 7:37, 11:51]
    assert not inside.any()
    assert (changed.image == FILL).sum() == 3 * (60 * 100 - 30 * 40)
    assert torch.equal(changed.boxes, sample.boxes + torch.tensor([11, 7, 11, 7]))


def test_a_picture_that_is_not_made_yet_is_enlarged_from_its_own_pixels():
    picture = torch.randint(0, 255, (3, 60, 80), generator=torch.Generator().manual_seed(0)).byte()
    small = SmallImage(picture, View(Window(0, 0, 60, 80), (30, 40), False, "RGB"))
    sample = replace(world(0).sample(), image=small)
    jitter = LargeScaleJitter(1.0, (2.0, 2.0), None, 0.0)
    changed = jitter(sample, fixed(2.0, [-30, -40]), None)
    assert torch.equal(changed.image, picture[:, 30:, 40:])


def box_sample(boxes, height=20, width=20):
    count = len(boxes)
    return Sample(
        image=torch.zeros(3, height, width, dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        labels=torch.arange(count),
        original_size=(height, width),
        image_id=1,
        outlines=ImageOutlines(
            NO_EDGES, torch.zeros(0, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        ),
    )


def cover(top, left, bottom, right, size=(20, 20)):
    covered = np.zeros(size, dtype=bool)
    covered[top:bottom, left:right] = True
    return covered


def test_boxes_between_pixels_shrink_to_what_is_left_of_them():
    """Of the first a corner is covered, of the second the left to 8, the third wholly, the fourth not."""
    sample = box_sample([[0.5, 0.5, 8.5, 8.5], [4.25, 10.5, 12.75, 14.5], [4, 16, 6, 18], [15, 1, 19.5, 3]])
    covered = cover(0, 0, 4, 4) | cover(9, 2, 20, 8)
    seen = stay_in_sight(sample, covered=covered, min_visible=0)
    assert seen.labels.tolist() == [0, 1, 3]
    assert seen.boxes.tolist() == [[0.5, 0.5, 8.5, 8.5], [8, 10.5, 12.75, 14.5], [15, 1, 19.5, 3]]


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, 2), (0.49, 2), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_objects_of_which_little_is_left_go(min_visible, kept):
    """Half of one box is covered; a tenth of the other reaches beyond, and of the rest a tenth is covered."""
    sample = box_sample([[0, 0, 10, 10], [10, 11, 20, 21]])
    covered = cover(0, 0, 5, 10) | cover(11, 10, 12, 19)
    seen = stay_in_sight(sample, covered=covered, min_visible=min_visible)
    assert len(seen.labels) == kept
    share = 0.9 * (90 - 9) / 90
    assert len(stay_in_sight(sample, covered=covered, min_visible=share - 1e-9).labels) == 1
    assert len(stay_in_sight(sample, covered=covered, min_visible=share + 1e-9).labels) == 0


def test_a_mask_out_of_sight_takes_its_box_along():
    """Of the outline only the right half counts, whatever the box says."""
    edges = torch.tensor([[12, 2, 18, 2], [12, 9, 18, 9]], dtype=torch.float64)
    outlines = ImageOutlines(edges, torch.zeros(2, dtype=torch.int64), torch.tensor([2]))
    sample = replace(box_sample([[2, 2, 18, 9]]), outlines=outlines)
    assert len(stay_in_sight(sample, covered=cover(0, 12, 20, 20), min_visible=0).labels) == 0
    cut = stay_in_sight(sample, covered=cover(0, 0, 20, 15), min_visible=0)
    assert cut.boxes.tolist() == [[15, 2, 18, 9]]
    untouched = stay_in_sight(sample, covered=cover(0, 0, 20, 12), min_visible=0)
    assert untouched.boxes.tolist() == [[2, 2, 18, 9]]
    assert torch.equal(untouched.outlines.edges, edges)


def test_outlines_that_nothing_comes_over_stay_as_they_are():
    edges = torch.tensor(
        [[1.3, 1.1, 7.7, 2.2], [7.7, 2.2, 3.1, 8.8], [3.1, 8.8, 1.3, 1.1]], dtype=torch.float64
    )
    outlines = ImageOutlines(edges, torch.zeros(3, dtype=torch.int64), torch.tensor([3]))
    sample = replace(box_sample([[1.3, 1.1, 7.7, 8.8]]), outlines=outlines)
    seen = stay_in_sight(sample, covered=cover(10, 0, 20, 20), min_visible=1)
    assert torch.equal(seen.boxes, sample.boxes)
    assert torch.equal(seen.outlines.edges, edges)


def polygon_sample(polygons, height=40, width=40):
    """Objects of one polygon each."""
    padded = polygons_to_outlines([[[polygon] for polygon in polygons]], len(polygons), torch.float64)
    corners = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    counts = torch.tensor([len(each) for each in corners])
    return replace(
        box_sample([[*each.min(axis=0), *each.max(axis=0)] for each in corners], height, width),
        outlines=ImageOutlines(
            torch.cat([padded.edges[0, k, :count] for k, count in enumerate(counts.tolist())]),
            torch.zeros(int(counts.sum()), dtype=torch.int64),
            counts,
        ),
    )


def coco_mask(polygon, height, width):
    """Pixels as the COCO API draws them."""
    (encoded,) = mask_api.frPyObjects([list(polygon)], height, width)
    return mask_api.decode(encoded).astype(bool)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_any_polygons_flipped_turned_cut_and_covered_are_what_the_coco_api_draws():
    """The reference moves the corners, lets the API draw them in the frame, and takes out pixels."""
    chance = np.random.default_rng(0)
    for _ in range(40):
        corners = chance.integers(0, 161, size=(3, 6, 2)) / 4
        sample = polygon_sample([each.reshape(-1).tolist() for each in corners])
        sample = VerticalFlip(1.0)(sample, chance, None)
        corners = np.stack([corners[..., 0], 40 - corners[..., 1]], axis=-1)
        sample = QuarterTurn(1.0, (1, 1))(sample, chance, None)
        corners = np.stack([corners[..., 1], 40 - corners[..., 0]], axis=-1)
        top, left = chance.integers(-20, 10, size=2).tolist()
        rows, columns = chance.integers(20, 50, size=2).tolist()
        sample = put_in_frame(
            sample, size=(80, 120), frame=(rows, columns), corner=(top, left), min_visible=0
        )
        corners = corners * [3, 2] + [left, top]
        covered = chance.random((rows, columns)) < 0.2
        sample = stay_in_sight(sample, covered=covered, min_visible=0)
        expected = [coco_mask(each.reshape(-1), rows, columns) & ~covered for each in corners]
        seen = [k for k, mask in enumerate(expected) if mask.any()]
        assert sample.labels.tolist() == seen
        masks = drawn_masks(sample).numpy() if seen else []
        for place, k in enumerate(seen):
            assert np.array_equal(masks[place], expected[k])
            assert sample.boxes[place].tolist() == bounds(expected[k])


def test_pasted_is_what_lies_in_masks_and_no_more():
    places = world(5)
    sample, other = places.sample(), places.sample()
    pasted = CopyPaste(1.0, (1, 99), 0.0)(sample, np.random.default_rng(1), lambda: other)
    from_other = pasted.image[0] == other.image_id
    new = pasted.labels >= other.labels.min()
    assert set(pasted.labels[new].tolist()) == set(other.labels.tolist())
    only_new = replace(pasted, boxes=pasted.boxes[new], labels=pasted.labels[new])
    counts = pasted.outlines.counts
    kept = new.repeat_interleave(counts)
    outlines = ImageOutlines(pasted.outlines.edges[kept], pasted.outlines.parts[kept], counts[new])
    assert np.array_equal(draw_masks(replace(only_new, outlines=outlines)), from_other)


def test_nothing_is_pasted_of_a_picture_without_objects():
    sample = world(0).sample()
    assert CopyPaste(1.0, (1, 3), 0.0)(sample, np.random.default_rng(0), lambda: box_sample([])) is sample


def test_a_mosaic_is_of_four_and_as_large_as_the_first():
    places = world(2)
    sample = places.sample()
    mosaic = Mosaic(1.0, (1.0, 1.0), (0.5, 0.5), 0.0)(sample, np.random.default_rng(0), places.sample)
    assert mosaic.size == sample.size
    assert places.pictures == 4
    y, x = (round(side / 2) for side in sample.size)
    corners = [(y - 1, x - 1), (y - 1, x), (y, x - 1), (y, x)]
    assert [int(mosaic.image[0, row, column]) for row, column in corners] == [0, 1, 2, 3]
    assert mosaic.image[1:, y, x].tolist() == [0, 0]  # its top left corner lies in the point
    height, width = sample.size
    assert mosaic.image[1:, y - 1, x - 1].tolist() == [height - 1, width - 1]


def test_a_mosaic_of_the_smallest_pictures():
    for size in ((1, 1), (1, 5), (2, 2)):
        mosaic = Mosaic(1.0, (0.1, 2.0), (0.0, 1.0), 0.0)
        made = mosaic(box_sample([], *size), np.random.default_rng(0), lambda: box_sample([], 3, 3))
        assert made.size == size


def test_cut_outs_cover_the_share_they_are_told():
    sample = box_sample([], 100, 200)
    for seed in range(10):
        cut = CutOut(1.0, (1, 1), (0.1, 0.1), (0.5, 2.0), 0.0)(sample, np.random.default_rng(seed), None)
        assert (cut.image[0] == FILL).float().mean() == pytest.approx(0.1, rel=0.03)
    assert not sample.image.any()


def jitter(image_format="RGB", **changes):
    still = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
    return ColorJitter(1.0, **still | changes, image_format=image_format)


def noise(seed=0):
    image = torch.randint(0, 256, (3, 20, 20), generator=torch.Generator().manual_seed(seed)).byte()
    return replace(box_sample([[1, 2, 3, 4]]), image=image)


def test_colours_stay_where_factors_are_one():
    sample = noise()
    assert torch.equal(jitter()(sample, np.random.default_rng(0), None).image, sample.image)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colours_by_hand(image_format):
    sample, generator = noise(), np.random.default_rng(0)
    values = sample.image.double()
    darker = jitter(image_format, brightness=(0.5, 0.5))(sample, generator, None)
    assert (darker.image - values * 0.5).abs().max() <= 0.5 + 1e-4
    grey = jitter(image_format, saturation=(0.0, 0.0))(sample, generator, None).image.double()
    weights = [0.2989, 0.587, 0.114][:: 1 if image_format == "RGB" else -1]
    luma = sum(weight * channel for weight, channel in zip(weights, values, strict=True))
    assert (grey - luma).abs().max() <= 1
    turned = jitter(image_format, hue=(0.5, 0.5))(sample, generator, None).image
    assert (turned.amax(0).int() - sample.image.amax(0).int()).abs().max() <= 1  # the value of HSV stays
    assert torch.equal(darker.boxes, sample.boxes)
