"""Classes by name: derived sets, what the sets of a run agree on, and AP by name whatever the order."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from lgd.data.catalog import open_dataset
from lgd.data.classes import ClassOptions, agree, choose_classes
from lgd.data.concatenation import concatenate
from lgd.data.derived import crowds_as_objects, tidy, with_classes
from lgd.data.errors import DataError
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.score import score
from tests.data.boxes_sets import person, voc_object, write_crowdhuman, write_voc
from tests.data.sets import annotation, image_record, open_coco, open_joined, write_coco

TRIANGLE = [[4, 6, 24, 6, 24, 16]]
RUNS = {"size": [48, 64], "counts": [100, 20, 48 * 64 - 120]}


def categories(**ids):
    return [{"id": category_id, "name": name} for name, category_id in ids.items()]


def make(root, objects, *, split="train", images=2, with_files=False, **ids):
    """A set whose `objects` are (image, name) or (image, name, further keys), each at a place of its own."""
    annotations = []
    for number, (image, name, *other) in enumerate(objects, start=1):
        keys = {"segmentation": TRIANGLE, **(other[0] if other else {})}
        annotations.append(annotation(number, image, (number, 6, 20, 10), ids[name], **keys))
    records = [image_record(number) for number in range(1, images + 1)]
    path = write_coco(root, records, annotations, split=split, categories=categories(**ids), with_files=True)
    return open_coco(path, split)


def as_rows(index):
    """(image, class, x, is crowd) of every annotation."""
    names = [*index.class_names, "every class"]
    image = np.repeat(np.arange(len(index)), np.diff(index.columns["annotation_offsets"])).tolist()
    columns = (
        index.columns["labels"].tolist(),
        index.columns["xywh"][:, 0].tolist(),
        index.columns["crowd"].tolist(),
    )
    return [(i, names[label], x, crowd) for i, label, x, crowd in zip(image, *columns, strict=True)]


@pytest.fixture
def zoo(tmp_path):
    objects = [
        (1, "cat"), (1, "dog", {"segmentation": RUNS}), (1, "cow"), (2, "dog"), (2, "cat", {"iscrowd": 1}),
        (2, "cow", {"segmentation": [*TRIANGLE, *TRIANGLE]}),
    ]  # fmt: skip
    return make(tmp_path / "zoo", objects, cat=3, dog=1, cow=7)


def names(*classes):
    return {name: (name,) for name in classes}


def test_the_same_classes_are_the_same_set(zoo):
    assert zoo.class_names == ("dog", "cat", "cow")
    assert with_classes(zoo, names("dog", "cat", "cow"), other="ignore", ids={"dog": 9}) is zoo


def test_another_order(zoo):
    turned = with_classes(zoo, names("cow", "dog", "cat"))
    assert (turned.class_names, turned.category_ids) == (("cow", "dog", "cat"), (7, 1, 3))
    assert as_rows(turned) == as_rows(zoo)
    assert turned.warnings == zoo.warnings
    assert turned.content_hash != zoo.content_hash
    assert turned.cache_path.parent == zoo.cache_path.parent
    assert as_rows(pickle.loads(pickle.dumps(turned))) == as_rows(zoo)


def test_a_subset_leaves_nothing_of_the_others(zoo):
    some = with_classes(zoo, names("cow", "dog"))
    assert as_rows(some) == [row for row in as_rows(zoo) if row[1] != "cat"]
    assert (some.category_ids, some.counts.tolist(), len(some)) == ((7, 1), [2, 2], 2)
    kept = [(0, 1), (0, 2), (1, 0), (1, 2)]
    for (i, k), mask in zip(kept, some.segmentation(0) + some.segmentation(1), strict=True):
        expected = zoo.segmentation(i)[k]
        if isinstance(expected, tuple):
            assert [part.tolist() for part in mask] == [part.tolist() for part in expected]
        else:
            assert mask.counts.tolist() == expected.counts.tolist()
    assert some.annotation_ids(1).tolist() == [4, 6]
    *_, remark = some.remarks[0]
    assert (remark.kind, remark.count) == ("objects_of_other_classes_drop", 2)
    assert remark.text == "2 objects of other classes, left out: cat (2)"


def test_ignored_objects_are_crowds_of_every_class(zoo):
    some = with_classes(zoo, names("cow", "dog"), other="ignore")
    assert as_rows(some) == [
        (i, name if name != "cat" else "every class", x, crowd or name == "cat")
        for i, name, x, crowd in as_rows(zoo)
    ]
    assert some.counts.tolist() == [2, 2]
    assert [len(some.segmentation(i)) for i in range(2)] == [3, 3]
    assert some.warnings[-1].endswith("2 objects of other classes, regions to ignore in evaluations: cat (2)")


def test_merged_classes_have_the_id_of_the_first_that_the_file_has(zoo):
    merged = with_classes(zoo, {"pet": ("hamster", "cat", "dog"), "cow": ("cow",)})
    assert (merged.class_names, merged.category_ids) == (("pet", "cow"), (3, 7))
    assert as_rows(merged) == [
        (i, "cow" if name == "cow" else "pet", x, crowd) for i, name, x, crowd in as_rows(zoo)
    ]
    assert merged.warnings == zoo.warnings


def test_a_class_that_is_not_there_has_an_id_that_no_other_has(zoo):
    more = with_classes(zoo, names("rat", "dog", "bat", "cat", "cow"), ids={"rat": 5, "bat": 3})
    assert more.category_ids == (5, 1, 2, 3, 7)
    assert as_rows(more) == as_rows(zoo)
    *_, remark = more.remarks[0]
    assert (remark.kind, remark.count) == ("classes_lacking", 2)
    assert "its categories lack rat, bat, which the run has: there is no AP of it here" in remark.text
    file = with_classes(zoo, names("dog"), ids={"dog": 99})
    assert file.category_ids == (1,)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("shapes", "none"), ("square", "shapes"), ("dot", "shapes")], ["shapes"]),
        ([("background", None), ("square", ""), ("dot", "x")], ["background"]),
        ([("_BackGround_", 5), ("dot", "x"), ("square", None)], ["_BackGround_"]),
        ([("dot", "x"), ("__background__", "a"), ("square", None)], ["__background__"]),
        ([("square", "square"), ("dot", "dot")], []),  # as COCO's person of the supercategory person
        ([("square", "dot"), ("dot", "square")], []),  # both have objects
        ([("spare", "none"), ("square", "none"), ("dot", "none")], []),
    ],
)  # fmt: skip
def test_what_is_no_class_is_left_out(tmp_path, rows, expected):
    listed = [
        {"id": k, "name": name} | ({} if above is None else {"supercategory": above})
        for k, (name, above) in enumerate(rows)
    ]
    ids = {each["name"]: each["id"] for each in listed}
    objects = [annotation(1, 1, category=ids["dot"]), annotation(2, 1, category=ids["square"])]
    write_coco(tmp_path, [image_record(1)], objects, categories=listed)
    index = open_dataset(f"coco:{tmp_path}:train", Path())
    assert index.class_names == tuple(name for name, _ in rows if name not in expected)
    assert [index.category_ids[label] for label in index.labels(0)] == [ids["dot"], ids["square"]]
    assert index.metadata.get("left_out", {}) == {name: ids[name] for name in expected}
    remarks = [(remark.kind, remark.count) for remark in index.remarks[0]]
    assert remarks == ([("categories_left_out", len(expected))] if expected else [])
    assert tidy(index) is index
    if expected:
        chosen = with_classes(index, names(*ids))
        assert (chosen.class_names, chosen.category_ids) == (tuple(ids), tuple(ids.values()))
        assert chosen.warnings == index.warnings, "it is listed: nobody lacks it"


def test_a_group_with_objects_of_its_own_is_a_class_and_one_row_alone_too(tmp_path):
    listed = [{"id": 0, "name": "shapes"}, {"id": 1, "name": "dot", "supercategory": "shapes"}]
    write_coco(tmp_path, [image_record(1)], [annotation(1, 1, category=0)], categories=listed)
    assert open_dataset(f"coco:{tmp_path}:train", Path()).class_names == ("shapes", "dot")
    write_coco(tmp_path, [image_record(1)], [], categories=[{"id": 0, "name": "background"}])
    assert open_dataset(f"coco:{tmp_path}:train", Path()).class_names == ("background",)


def test_crowds_taken_for_objects(zoo, tmp_path):
    assert zoo.counts.tolist() == [3, 2]
    objects = crowds_as_objects(zoo)
    assert objects.counts.tolist() == [3, 3]
    assert not objects.columns["crowd"].any()
    assert (objects.remarks[0][-1].kind, objects.remarks[0][-1].count) == ("crowds_as_objects", 1)
    assert crowds_as_objects(objects) is objects
    people = open_dataset(write_crowdhuman(tmp_path, {"a": [person((1, 2, 9, 9), "mask")]}), Path())
    assert crowds_as_objects(people) is people


def test_training_sets_join_by_name(tmp_path):
    first = make(tmp_path / "a", [(1, "cat"), (2, "dog")], cat=3, dog=1)
    second = make(tmp_path / "b", [(1, "dog"), (1, "cat"), (2, "cat")], cat=1, dog=2)
    joined = concatenate([first, second])
    assert (joined.class_names, joined.category_ids) == (first.class_names, first.category_ids)
    assert [row[1] for row in as_rows(joined)] == ["cat", "dog", "dog", "cat", "cat"]
    specs = [f"coco:{tmp_path}/a:train", f"coco:{tmp_path}/b:train"]
    assert as_rows(open_joined(specs, tmp_path)) == as_rows(joined)


def test_sets_of_other_formats_join_by_name(tmp_path):
    cars = make(tmp_path / "cars", [(1, "person"), (2, "car")], car=1, person=2)
    voc = open_dataset(write_voc(tmp_path / "voc", {"a": [voc_object("person", (5, 6, 20, 30), 1)]}), Path())
    people = open_dataset(write_crowdhuman(tmp_path / "people", {"b": [person((1, 2, 9, 9))]}), Path())
    (*parts,), _ = agree([cars, voc, people], [], ClassOptions(names("person", "car")))
    joined = concatenate(parts)
    assert [row[1] for row in as_rows(joined)] == ["person", "car", "person", "person"]
    assert joined.columns["difficult"].tolist() == [False, False, True, False]


def test_a_class_that_a_training_set_lacks_is_an_error_with_ways_out(tmp_path):
    first = make(tmp_path / "a", [(1, "cat"), (2, "dog")], cat=3, dog=1)
    second = make(tmp_path / "b", [(1, "dog")], dog=2, bat=4)
    first.name, second.name = "one", "two"
    with pytest.raises(DataError) as error:
        choose_classes([first, second], [], {})
    assert str(error.value) == (
        "one does not list the class bat, which two has: any such object in its pictures would be trained on "
        f"as background. List it in the categories of {first.json_path} if there are none; else choose by "
        "DATASETS.CLASSES: '[dog, cat, bat]' takes the sets as they are, and '[dog]' trains on what all "
        "have; names for the same thing are merged as '{NAME: [ONE, OTHER]}'"
    )
    (first, second), _ = agree([first, second], [], ClassOptions(names("cat", "bat", "dog")))
    assert first.class_names == second.class_names == ("cat", "bat", "dog")
    assert "its categories lack bat" in first.warnings[-1]
    assert "its categories lack cat" in second.warnings[-1]


def test_a_test_set_may_lack_a_class_but_not_have_another(tmp_path):
    train = make(tmp_path / "train", [(1, "cat"), (2, "dog")], cat=3, dog=1)
    val = make(tmp_path / "val", [(1, "dog")], dog=1)
    ((same,), (val,)) = agree([train], [val], ClassOptions())
    assert same is train
    assert (val.class_names, val.category_ids) == (("dog", "cat"), (1, 3))
    assert f"{val.json_path}: its categories lack cat, which the run has" in val.warnings[-1]
    spare = make(tmp_path / "spare", [(1, "dog")], dog=1, cat=2, bat=9)
    (_, (spare,)) = agree([train], [spare], ClassOptions())
    assert spare.class_names == ("dog", "cat")
    assert "its categories bat are left out: they have no objects" in spare.warnings[-1]
    other = make(tmp_path / "other", [(1, "bat"), (2, "dog")], dog=1, bat=2)
    other.name = "another"
    with pytest.raises(DataError) as error:
        agree([train], [other], ClassOptions())
    assert str(error.value).startswith(
        "another has objects of the class bat, which no training set lists. Choose by DATASETS.CLASSES: "
        "'[dog, cat]' evaluates what is trained"
    )
    (_, (other,)) = agree([train], [other], ClassOptions(names("dog", "cat")))
    assert [row[1] for row in as_rows(other)] == ["dog"]


def test_a_test_set_without_annotations_lacks_nothing(tmp_path):
    train = make(tmp_path / "train", [(1, "cat"), (2, "dog")], cat=3, dog=1)
    path = write_coco(tmp_path / "dev", [image_record(1)], None, categories=categories(dog=8, bat=9))
    (_, (dev,)) = agree([train], [open_coco(path)], ClassOptions())
    assert (dev.class_names, dev.category_ids, dev.has_annotations) == (("dog", "cat"), (8, 3), False)
    assert [remark.kind for remark in dev.remarks[0]] == ["categories_left_out"]


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    train = make(tmp_path, [(1, "cat")], cat=3, Dog=1)
    with pytest.raises(DataError) as error:
        choose_classes([train], [], names("cat", "dogs"))
    assert str(error.value) == (
        "DATASETS.CLASSES names dogs, which no data set has: did you mean Dog? They have Dog, cat"
    )
    with pytest.raises(DataError, match="names zebu, which no data set has: They have Dog, cat"):
        choose_classes([train], [], names("zebu"))


def test_an_evaluation_alone_takes_the_classes_of_the_weights(tmp_path):
    first = make(tmp_path / "a", [(1, "cat")], cat=3)
    second = make(tmp_path / "b", [(1, "dog")], dog=2)
    assert list(choose_classes([], [first, second], {}, ["cow", "dog", "cat"])) == ["cow", "dog", "cat"]
    assert list(choose_classes([], [first, second], {}, ["cow", "dog"])) == ["cat", "dog"]
    assert list(choose_classes([], [first, second], {})) == ["cat", "dog"]
    assert list(choose_classes([], [first], names("mouse"), ["cat"])) == ["mouse"]


# AP by name


def detections(index, places):
    """One detection of each (image, class, x), at the objects of `make`; ids are those of the set."""
    return Predictions.from_results(
        [
            {"image_id": image, "category_id": index.category_ids[index.class_names.index(name)],
             "bbox": [x, 6, 20, 10], "score": 0.9 - 0.01 * k}
            for k, (image, name, x) in enumerate(places)
        ]
    )  # fmt: skip


def measure(index, places, backend="hotcoco"):
    found = {"student": detections(index, places)}
    metrics = score(index, found, with_masks=False, backend=backend)["student"]["bbox"]
    return {name.removeprefix("AP-"): value for name, value in metrics.items() if name.startswith("AP-")}


@pytest.fixture
def spaced(tmp_path):
    """Cats at x 1 and 4, dogs at 2 and 5, cows at 3: all far enough apart where images differ."""
    objects = [(1, "cat"), (2, "dog"), (3, "cow"), (4, "cat"), (5, "dog")]
    return make(tmp_path / "spaced", objects, images=5, cat=3, dog=1, cow=7)


FOUND = [(1, "cat", 1), (4, "cat", 4), (2, "dog", 2)]
"""Both cats, one of two dogs, no cow."""


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_ap_by_name_in_another_order(spaced, backend):
    expected = {"cat": 100.0, "dog": pytest.approx(50.5, abs=0.1), "cow": 0.0}
    assert measure(spaced, FOUND, backend) == expected
    turned = with_classes(spaced, names("cow", "cat", "dog"))
    found = measure(turned, FOUND, backend)
    assert (found, list(found)) == (expected, ["cow", "cat", "dog"])


def test_ap_of_a_class_that_is_lacking_is_absent(spaced):
    found = measure(with_classes(spaced, names("cow", "rat", "cat", "dog")), [*FOUND, (3, "rat", 3)])
    assert found == {"cow": 0.0, "rat": None, "cat": 100.0, "dog": pytest.approx(50.5, abs=0.1)}


def test_ap_of_a_subset_and_of_merged_classes(spaced):
    assert measure(with_classes(spaced, names("dog")), FOUND[2:]) == {"dog": pytest.approx(50.5, abs=0.1)}
    merged = with_classes(spaced, {"pet": ("dog", "cat"), "cow": ("cow",)})
    places = [(image, "pet", x) for image, _, x in FOUND]
    assert measure(merged, places) == {"pet": pytest.approx(100 * 76 / 101, abs=0.1), "cow": 0.0}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_what_lies_on_an_ignored_object_is_wrong_for_no_class(spaced, backend):
    places = [(3, "dog", 3), (3, "cat", 3), *FOUND]  # the first two on the cow
    dropped = with_classes(spaced, names("dog", "cat"))
    ignored = with_classes(spaced, names("dog", "cat"), other="ignore")
    assert measure(dropped, places, backend)["cat"] < 70
    expected = {"dog": pytest.approx(50.5, abs=0.1), "cat": 100.0}
    assert measure(ignored, places, backend) == expected
    path = spaced.json_path
    document = json.loads(path.read_text())
    cow = next(each for each in document["annotations"] if each["category_id"] == 7)
    for number, category_id in ((100, 1), (101, 3)):
        document["annotations"].append({**cow, "id": number, "category_id": category_id, "iscrowd": 1})
    document["annotations"].remove(cow)
    path.write_text(json.dumps(document))
    by_hand = open_coco(path)
    assert measure(with_classes(by_hand, names("dog", "cat")), places, backend) == expected


def test_rules_of_other_kinds_by_name(tmp_path):
    objects = [voc_object("cat", (2, 7, 21, 16)), voc_object("dog", (31, 7, 50, 16))]
    voc = open_dataset(write_voc(tmp_path / "voc", {"a": objects}), Path())
    some = with_classes(voc, names("rat", "dog"), other="ignore")
    found = detections(some, [(1, "rat", 1), (1, "dog", 1), (1, "dog", 30)])
    metrics = score(some, {"student": found}, with_masks=False, backend="hotcoco")["student"]["bbox"]
    assert (metrics["AP50-dog"], metrics["AP50-rat"], metrics["AP50"]) == (100.0, None, 100.0)
    people = open_dataset(write_crowdhuman(tmp_path / "people", {"a": [person((1, 6, 20, 10))]}), Path())
    more = with_classes(people, names("car", "person"), ids={"car": 1})
    assert more.category_ids == (2, 1)
    found = detections(more, [(1, "car", 30), (1, "person", 1)])
    metrics = score(more, {"student": found}, with_masks=False, backend="hotcoco")["student"]["bbox"]
    assert (metrics["AP50"], metrics["mMR"], metrics["AP-car"]) == (100.0, pytest.approx(0, abs=1e-3), None)
