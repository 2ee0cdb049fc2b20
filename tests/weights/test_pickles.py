import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from lgd.weights.pickles import read_numeric_pickle
from lgd.weights.report import WeightsError

VALUES = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "scalar": np.float32(2.5),
    "zero_dimensions": np.array(7, dtype=np.int64),
    "big_endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 4), dtype=np.uint8),
    "text": "MSRA",
    "nested": [1, (2.0, None), {"deep": np.ones(2, dtype=bool)}],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_reads_arrays_of_every_protocol_and_numpy(tmp_path, protocol, module):
    content = pickle.dumps(VALUES, protocol=protocol)
    if protocol < 4:  # the older protocols end names by a newline, so that one can be put for the other
        for part in (b"multiarray", b"numeric"):
            for old in (b"numpy._core.", b"numpy.core."):
                content = content.replace(b"c" + old + part, b"c" + module.encode() + b"." + part)
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    found = read_numeric_pickle(path)
    assert list(found) == list(VALUES)
    for name in ("matrix", "columns", "scalar", "zero_dimensions", "big_endian", "empty"):
        np.testing.assert_array_equal(found[name], VALUES[name])
        assert found[name].shape == np.shape(VALUES[name])
    assert found["text"] == "MSRA"
    assert found["nested"][1] == (2.0, None)
    np.testing.assert_array_equal(found["nested"][2]["deep"], [True, True])


def test_reads_what_python_2_wrote(tmp_path):
    data = struct.pack("<6f", *range(6))
    content = (
        b"\x80\x02}U\x07conv1_w"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_numeric_pickle(path)["conv1_w"], np.arange(6.0).reshape(2, 3))


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluates:
    def __reduce__(self):
        return eval, ("__import__('os').getcwd()",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_runs_code_is_refused(tmp_path, protocol):
    path, trace = tmp_path / "evil.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"conv1_w": RunsACommand(f"touch {trace}")}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"evil\.pkl: refused .*(posix|nt)\.system"):
        read_numeric_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Evaluates(), r"(__builtin__|builtins)\.eval"),
        (collections.Counter("ab"), r"collections\.Counter"),
        (torch.ones(2), r"torch\._utils\._rebuild_tensor_v2"),
        (np.array([{"a": 1}], dtype=object), "array of type 'O8?'"),
        (np.array(["text"]), "array of type 'U4'"),
    ],
)
def test_other_classes_are_refused_by_name(tmp_path, value, named):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": value}, protocol=2))
    with pytest.raises(WeightsError, match=named):
        read_numeric_pickle(path)


def test_a_string_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    with pytest.raises(WeightsError, match="encoding 'rot13'"):
        read_numeric_pickle(path)


def test_data_outside_the_file_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(WeightsError, match="outside the file"):
        read_numeric_pickle(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"no pickle at all", b"\x80\x02}U\x07conv"])
def test_damaged_files_are_one_clear_line(tmp_path, content):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pkl: ") as caught:
        read_numeric_pickle(path)
    assert "\n" not in str(caught.value)


def test_an_array_with_too_few_bytes_is_damaged(tmp_path):
    content = pickle.dumps({"conv1_w": np.zeros(4, dtype=np.float32)}, protocol=4)
    path = tmp_path / "weights.pkl"
    path.write_bytes(content.replace(b"K\x04\x85", b"K\x05\x85"))
    with pytest.raises(WeightsError, match="reshape"):
        read_numeric_pickle(path)


def test_one_container_many_times_stays_one(tmp_path):
    """Forty lists of the list before, twice: written out they would have more items than there are atoms."""
    value = [np.ones(1)]
    for _ in range(40):
        value = [value, value]
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(value))
    found = read_numeric_pickle(path)
    for _ in range(40):
        assert found[0] is found[1]
        found = found[0]


@pytest.mark.parametrize("content", [b"]r\xff\xff\xff\x7f.", b"]q\xff.", b"(lp999999999\n."])
def test_room_for_objects_that_do_not_come(tmp_path, content):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"refused as a pickle of weights: it wants room for \d+ objects and"
    ):
        read_numeric_pickle(path)
