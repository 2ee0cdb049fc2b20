"""What a user points at, and which files that means."""

import pytest

from lgd.data.errors import DataError
from lgd.inference.sources import find_sources, means_one_picture


@pytest.fixture
def folder(tmp_path):
    names = ("b.jpg", "a.PNG", "cam/1/x.tif", "cam/clip.mp4", "notes.md", ".hidden.jpg", "cam/.jpg")
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    return tmp_path / "data"


def names_of(*texts, **options):
    return [source.name for source in find_sources(texts, **options)]


def test_a_folder_means_the_pictures_and_videos_in_it_and_below(folder):
    assert names_of(folder) == ["a.PNG", "b.jpg", "cam/clip.mp4", "cam/1/x.tif"]
    assert [source.is_video for source in find_sources([folder])] == [False, False, True, False]


def test_ones_own_output_is_no_source(folder):
    (folder / "out").mkdir()
    (folder / "out" / "b.jpg").touch()
    assert "out/b.jpg" in names_of(folder)
    assert "out/b.jpg" not in names_of(folder, leave_out=folder / "out")


def test_links_in_a_circle_are_followed_once(folder):
    (folder / "cam" / "up").symlink_to(folder)
    (folder.parent / "link").symlink_to(folder / "cam")
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "linked").symlink_to(folder / "cam" / "1")
    assert len(names_of(folder)) == 4
    assert names_of(folder.parent / "other") == ["linked/x.tif"]


def test_several_folders_keep_their_names_apart(folder, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.jpg").touch()
    assert names_of(folder / "cam", tmp_path / "more", folder / "b.jpg") == [
        "cam/clip.mp4",
        "cam/1/x.tif",
        "more/b.jpg",
        "b.jpg",
    ]


def test_files_of_one_name_get_two(folder, tmp_path):
    (tmp_path / "b.jpg").touch()
    assert names_of(folder / "b.jpg", tmp_path / "b.jpg", folder / "b.jpg") == ["b.jpg", "b-2.jpg"]


def test_a_glob_is_relative_to_its_fixed_part(folder):
    assert names_of(f"{folder}/**/*.tif") == ["cam/1/x.tif"]
    assert names_of(f"{folder}/*.*") == ["a.PNG", "b.jpg", "notes.md"]


def test_a_file_may_be_called_like_a_glob(folder):
    (folder / "a[1].jpg").touch()
    assert names_of(folder / "a[1].jpg") == ["a[1].jpg"]


def test_a_list_is_relative_to_where_it_lies(folder, tmp_path):
    (tmp_path / "list.txt").write_text(
        f"data/cam/1/x.tif\n\n  data/b.jpg \n{folder}/a.PNG\ndata/../gone.jpg\n"
    )
    found = find_sources([tmp_path / "list.txt"])
    assert [source.name for source in found] == ["data/cam/1/x.tif", "data/b.jpg", "a.PNG", "gone.jpg"]
    assert found[0].path.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("*.none", "there are no pictures"),
        ("https://host/a.jpg", "not fetched from addresses"),
    ],
)
def test_what_means_nothing_is_said_in_a_line(text, says):
    with pytest.raises(DataError, match=says.replace("*", r"\*")):
        find_sources([text])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no pictures or videos"):
        find_sources([tmp_path])


def test_a_binary_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text in UTF-8"):
        find_sources([tmp_path / "list.txt"])


def test_which_texts_mean_one_picture(folder):
    assert means_one_picture(folder / "b.jpg")
    assert means_one_picture("no-ending")
    for text in (folder, f"{folder}/*.jpg", "list.txt", "clip.mp4"):
        assert not means_one_picture(text)
