import os
from pathlib import Path

import pytest

import lgd.data.voc as voc
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.loader import train_loader
from tests.data.boxes_sets import voc_object, voc_xml, write_voc
from tests.data.sets import open_joined

HERE = Path()


def objects(*boxes: tuple[int, int, int, int]) -> list[str]:
    return [voc_object("cat", box) for box in boxes]


def test_boxes_classes_and_difficult_objects(tmp_path):
    spec = write_voc(
        tmp_path,
        {
            "000007": [
                voc_object("tvmonitor", (1, 1, 64, 48)),
                voc_object("aeroplane", (3.5, 4, 10, 12), difficult=1),
                voc_object("person", (2, 2, 2, 2), difficult=None),
            ],
            "000005": [],
        },
    )
    index = open_dataset(spec, HERE)
    assert (index.kind, index.class_names, index.category_ids) == (
        "voc",
        voc.CLASS_NAMES,
        tuple(range(1, 21)),
    )
    assert [index.file_name(i) for i in range(2)] == ["000007.jpg", "000005.jpg"]
    assert index.image_ids.tolist() == [1, 2]
    assert index.boxes(0).tolist() == [[0, 0, 64, 48], [2.5, 3, 10, 12], [1, 1, 2, 2]]
    assert index.labels(0).tolist() == [19, 0, 14]
    assert index.difficult(0).tolist() == [False, True, False]
    assert not index.crowd(0).any()
    assert index.area(0).tolist() == [64 * 48, 7.5 * 9, 1]
    assert index.counts.tolist() == [3, 0]
    assert index.warnings == ()


def test_difficult_objects_are_trained_on(tmp_path):
    spec = write_voc(tmp_path, {"1": [voc_object("cat", (3, 4, 10, 12), difficult=1)]})
    loader = train_loader(
        open_dataset(spec, HERE),
        batch_size=1,
        world_size=1,
        rank=0,
        seed=0,
        min_sizes=(0,),
        max_size=999,
        flip_prob=0,
        num_workers=0,
    )
    batch = next(iter(loader))
    assert batch.targets.boxes[0].tolist() == [[2, 3, 10, 12]]
    assert batch.targets.labels[0].tolist() == [voc.CLASS_NAMES.index("cat")]


def test_two_years_are_joined(tmp_path):
    specs = [
        write_voc(tmp_path / "VOC2007", {"000001": objects((1, 1, 9, 9))}),
        write_voc(tmp_path / "VOC2012", {"2008_000002": [voc_object("dog", (1, 1, 9, 9), 1)], "x": []}),
    ]
    joined = open_joined(specs, HERE)
    assert joined.kind == "voc"
    assert joined.counts.tolist() == [1, 1, 0]
    assert joined.difficult(1).tolist() == [True]
    assert joined.path(1) == tmp_path / "VOC2012" / "JPEGImages" / "2008_000002.jpg"


def test_classes_of_other_sets(tmp_path):
    spec = write_voc(tmp_path, {"1": [voc_object("helmet", (1, 1, 9, 9)), voc_object("axe", (1, 1, 9, 9))]})
    index = open_dataset(spec, HERE)
    assert index.class_names == ("axe", "helmet")
    assert index.labels(0).tolist() == [1, 0]
    assert (
        "other classes than VOC's 20, so those of this split (2) are taken in sorted order"
        in index.warnings[0]
    )
    (tmp_path / "classes.txt").write_text("helmet\n\nsaw\naxe\n")
    index = open_dataset(spec, HERE)
    assert index.class_names == ("helmet", "saw", "axe")
    assert index.labels(0).tolist() == [0, 2]
    assert index.warnings == ()
    (tmp_path / "classes.txt").write_text("helmets\naxe\n")
    with pytest.raises(DataError, match=r"1\.xml: the class 'helmet' .*classes\.txt; did you mean helmets\?"):
        open_dataset(spec, HERE)
    (tmp_path / "classes.txt").write_text("axe\naxe\n")
    with pytest.raises(DataError, match=r"classes\.txt is empty, names a class twice"):
        open_dataset(spec, HERE)


def test_pictures_of_another_format(tmp_path):
    spec = write_voc(tmp_path, {"a.b": objects((1, 1, 9, 9))}, suffix=".png")
    assert open_dataset(spec, HERE).file_name(0) == "a.b.png"


def test_lists_of_one_class_have_a_second_column(tmp_path):
    spec = write_voc(tmp_path, {"1": objects((1, 1, 9, 9)), "2": []}, split="cat_train")
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("1  1\n2 -1\n")
    assert len(open_dataset(spec, HERE)) == 2


def test_a_changed_file_is_noticed(tmp_path, monkeypatch):
    spec = write_voc(tmp_path, {"1": objects((1, 1, 9, 9)), "2": objects((1, 1, 9, 9))})
    first = open_dataset(spec, HERE)
    with monkeypatch.context() as patch:
        patch.setattr(voc, "read_voc_xml", None)
        assert open_dataset(spec, HERE).content_hash == first.content_hash
    (tmp_path / "Annotations" / "2.xml").write_text(voc_xml("2", objects((1, 1, 8, 9))))
    second = open_dataset(spec, HERE)
    assert second.boxes(1).tolist() == [[0, 0, 8, 9]]
    assert second.content_hash != first.content_hash


def test_boxes_without_extent_are_dropped(tmp_path):
    spec = write_voc(tmp_path, {"1": objects((5, 5, 4, 9), (1, 1, 9, 9)), "2": objects((90, 1, 99, 9))})
    index = open_dataset(spec, HERE)
    assert index.counts.tolist() == [1, 0]
    assert [warning.partition(": ")[2] for warning in index.warnings] == [
        "dropped 1 box without a positive size (in 1.jpg)",
        "dropped 1 box wholly outside the image (in 2.jpg)",
    ]


BOMB = (
    '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">'
    '<!ENTITY c SYSTEM "file:///etc/passwd">]><annotation><folder>&b;</folder></annotation>'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused(tmp_path, encoding):
    spec = write_voc(tmp_path, {"1": []})
    (tmp_path / "Annotations" / "1.xml").write_text(BOMB, encoding=encoding)
    with pytest.raises(DataError, match=r"1\.xml: it has a document type definition"):
        open_dataset(spec, HERE)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><size>", "not whole XML: no element found"),
        ("", "not whole XML: no element found"),
        ("<annotation></annotation>", "it has no size (height) of the image"),
        (
            "<annotation><size><height>4</height><width>-1</width></size></annotation>",
            "the image's width is '-1', not a positive whole number",
        ),
        (
            "<annotation><size><height>0</height><width>1</width></size></annotation>",
            "the image's height is '0', not a positive whole number",
        ),
        (voc_xml("1", [voc_object("", (1, 2, 3, 4))]), "object 0 has no name"),
        (
            voc_xml("1", [voc_object("cat", (1, 2, "x", 4))]),  # type: ignore[arg-type]
            "object 0 (cat) has xmax 'x', not a number",
        ),
        (
            voc_xml("1", [voc_object("cat", (1, float("nan"), 3, 4))]),
            "object 0 (cat) has ymin 'nan', not a number",
        ),
        (
            voc_xml("1", ["<object><name>cat</name></object>"]),
            "object 0 (cat) has xmin None, not a number",
        ),
    ],
)
def test_broken_xml(tmp_path, xml, message):
    spec = write_voc(tmp_path, {"1": []})
    (tmp_path / "Annotations" / "1.xml").write_text(xml)
    with pytest.raises(DataError) as caught:
        open_dataset(spec, HERE)
    assert str(caught.value).startswith(f"{tmp_path / 'Annotations' / '1.xml'}: {message}")
    assert "\n" not in str(caught.value)


def test_what_is_absent(tmp_path):
    write_voc(tmp_path / "VOC2007", {"1": [], "2": []})
    with pytest.raises(DataError, match=r"is not laid out like that; did you mean voc:.*/VOC2007:trainval\?"):
        open_dataset(f"voc:{tmp_path}:trainval", HERE)
    root = tmp_path / "VOC2007"
    with pytest.raises(DataError, match=r"has no split tset; it has voc:.*:trainval "):
        open_dataset(f"voc:{root}:tset", HERE)
    spec = f"voc:{root}:trainval"
    (root / "JPEGImages" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"lists images that are not in .*JPEGImages: 2\.jpg"):
        open_dataset(spec, HERE)
    (root / "Annotations" / "1.xml").unlink()
    with pytest.raises(DataError, match=r"trainval\.txt lists 1, but there is no .*Annotations/1\.xml"):
        open_dataset(spec, HERE)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("2\n2\n")
    with pytest.raises(DataError, match=r"trainval\.txt lists 2 more than once"):
        open_dataset(spec, HERE)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("\n")
    with pytest.raises(DataError, match=r"trainval\.txt is empty"):
        open_dataset(spec, HERE)
    (root / "Annotations").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"there is no folder .*Annotations"):
        open_dataset(spec, HERE)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (("9" * 5000, 3), "the image's width is '99999"),
        (
            (2**20 + 1, 3),
            "the image's size, 1048577 x 3, is beyond 1048576 pixels a side or 2147483647 in all",
        ),
        (
            (65536, 65536),
            "the image's size, 65536 x 65536, is beyond 1048576 pixels a side or 2147483647 in all",
        ),
        (("²", 3), "the image's width is '²', not a positive whole number"),
    ],
)
def test_sizes_are_bounded(tmp_path, size, message):
    spec = write_voc(tmp_path, {"1": []})
    (tmp_path / "Annotations" / "1.xml").write_text(voc_xml("1", [], size))
    with pytest.raises(DataError) as caught:
        open_dataset(spec, HERE)
    assert str(caught.value).startswith(f"{tmp_path / 'Annotations' / '1.xml'}: {message}")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (
            [voc_object("cat", (1, 1, "1e10", 9))],
            "object 0 (cat) has xmax '1e10', not a number of at most 2147483648",
        ),
        ([voc_object("c\tat", (1, 1, 9, 9))], "the name of object 0 is 'c\\tat', which is no name"),
        ([voc_object("c" * 10**5, (1, 1, 9, 9))], "the name of object 0 is 'ccc"),
        ([voc_object("cat", (1, 1, 9, 9))] * 30_000, "is of "),
        (["<a>" * 10**4], "not whole XML: mismatched tag"),
    ],
)
def test_objects_beyond_reason(tmp_path, objects, message):
    spec = write_voc(tmp_path, {"1": []})
    (tmp_path / "Annotations" / "1.xml").write_text(voc_xml("1", objects))
    with pytest.raises(DataError) as caught:
        open_dataset(spec, HERE)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    if message == "is of ":
        assert str(caught.value).endswith(" bytes; at most 4194304 are read")


@pytest.mark.parametrize("file", ["classes.txt", "ImageSets/Main/trainval.txt"])
def test_lists_that_are_no_text(tmp_path, file):
    spec = write_voc(tmp_path, {"1": []})
    (tmp_path / file).write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match=r"\.txt is not UTF-8 text: invalid start byte at byte 0"):
        open_dataset(spec, HERE)


def test_a_list_cannot_lead_out_of_the_set(tmp_path):
    spec = write_voc(tmp_path, {"1": []})
    (tmp_path / "2.xml").write_text(voc_xml("2", []))
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("../2\n")
    with pytest.raises(DataError, match=r"trainval\.txt lists \.\./2, which is no name below"):
        open_dataset(spec, HERE)


def test_a_pipe_among_the_annotations_is_not_waited_for(tmp_path):
    spec = write_voc(tmp_path, {"1": []})
    path = tmp_path / "Annotations" / "1.xml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"1\.xml is no regular file"):
        open_dataset(spec, HERE)


def test_corners_counted_from_0(tmp_path):
    spec = write_voc(tmp_path, {"1": objects((0, 5, 20, 30)), "2": objects((7, 8, 20, 30), (7, 8, 20, 30))})
    index = open_dataset(spec, Path())
    assert index.boxes(0).tolist() == [[0, 5, 20, 30]]
    assert index.boxes(1).tolist() == [[7, 8, 20, 30]] * 2
    said = {remark.kind: (remark.count, remark.text) for remark in index.remarks[0]}
    assert said["corners_from_zero"][0] == 1
    assert "counts pixels from 0" in said["corners_from_zero"][1]
    assert "(1.xml)" in said["corners_from_zero"][1]
    assert said["boxes_repeated"][0] == 1
    assert "in 2.jpg" in said["boxes_repeated"][1]


def test_corners_counted_from_1(tmp_path):
    index = open_dataset(write_voc(tmp_path, {"1": objects((1, 5, 20, 30))}), Path())
    assert index.boxes(0).tolist() == [[0, 4, 20, 30]]
    assert "corners_from_zero" not in {remark.kind for remark in index.remarks[0]}


@pytest.mark.parametrize(("text", "expected"), [("false", False), ("True", True), ("", False), ("1", True)])
def test_difficult_is_what_its_text_says(tmp_path, text, expected):
    spec = write_voc(tmp_path, {"1": [voc_object("cat", (1, 2, 3, 4), difficult=text)]})
    assert open_dataset(spec, Path()).difficult(0).tolist() == [expected]


def test_difficult_that_says_nothing(tmp_path):
    spec = write_voc(tmp_path, {"1": [voc_object("cat", (1, 2, 3, 4), difficult=-1)]})
    with pytest.raises(DataError, match=r"1\.xml: object 0 \(cat\) has difficult '-1', neither 0 nor 1"):
        open_dataset(spec, Path())
