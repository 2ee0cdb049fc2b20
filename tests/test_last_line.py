"""The line with which a program ends."""

from lgd.ending import last_line


def test_it_is_one_line_that_a_terminal_shows():
    assert last_line("a\n  b\tc") == "a b c"
    assert last_line("a\0\x1b[31m\ud800é\u2028漢\u202e") == r"a\x00\x1b[31m\ud800é 漢\u202e"


def test_a_long_one_keeps_its_beginning_and_its_way_out():
    line = last_line("file: " + "x" * 10_000 + "; choose another")
    assert line.startswith("file: xxx")
    assert line.endswith("xxx; choose another")
    assert 1000 < len(line) < 2100
