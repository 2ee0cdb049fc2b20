import pytest

from tests.samples import VARIABLE, folder_of, further


def test_without_the_variable_there_are_no_further_sets(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv(VARIABLE, raising=False) if value is None else monkeypatch.setenv(VARIABLE, value)
        assert further("bccd", "nasty") == []


def test_those_of_the_folder_are_found_in_the_order_asked_for(tmp_path, monkeypatch):
    for name in ("nasty", "bccd", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert further("bccd", "dice", "nasty") == ["bccd", "nasty"]
    assert folder_of("bccd") == tmp_path / "bccd"


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_any_of_them_is_an_error(tmp_path, monkeypatch, folder):
    monkeypatch.setenv(VARIABLE, str(tmp_path / folder))
    with pytest.raises(ValueError, match=r"LGD_TEST_DATA is .*: a folder with some of bccd, .* expected"):
        further("bccd")
