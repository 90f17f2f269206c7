"""What a stranger wrote: limits that hold before anything is parsed, and names that are safe on every disk."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data.errors import IntegrityError
from ensadv_data.untrusted import ENVELOPE, Limits, check_keys, check_portable, parse_json, quoted

SMALL = Limits(2**20, depth=8)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def depth_of(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@settings(max_examples=60, deadline=None)
@given(values, st.booleans())
def test_it_reads_what_the_standard_library_wrote(value, is_ascii):
    raw = json.dumps(value, ensure_ascii=is_ascii).encode()
    if depth_of(value) <= 8:
        assert parse_json(raw, what="it", limits=SMALL) == value
    else:
        with pytest.raises(IntegrityError, match="at most 8 lists and objects"):
            parse_json(raw, what="it", limits=SMALL)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0d8 1e.-\n', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_line(raw):
    said = ""
    try:
        found = parse_json(raw, what="it", limits=SMALL)
    except IntegrityError as error:
        said, found = str(error), None
    assert "\n" not in said
    json.dumps(found, ensure_ascii=False).encode()  # whatever was read can be printed


REFUSED = {
    "too many bytes": (b" " * (2**20 + 1), "at most 1,048,576 bytes"),
    "too deep": (b"[" * 9 + b"]" * 9, "at most 8 lists"),
    "too deep, never closed": (b"[" * 10**6, "at most 8 lists"),
    "brackets after a quoted quote": (rb'["\"", ' + b"[" * 20, "at most 8 lists"),
    "too many values": (b"[" + b"1," * 400_000 + b"1]", "values in"),
    "a key twice": (b'{"a": 1, "a": 1}', "'a' is there twice"),
    "NaN": (b"[NaN]", "NaN is no number"),
    "infinity": (b"[-Infinity]", "-Infinity is no number"),
    "a float that is infinite": (b"[1e999]", "too large or too long"),
    "a whole number of 5,000 digits": (b"9" * 5000, "of 5,000 digits"),
    "a long float": (b"0." + b"1" * 50, "too large or too long"),
    "half of a pair": (rb'"\ud800"', "halves of a character"),
    "half of a pair as a key": (rb'{"\uDFFF": 1}', "halves of a character"),
    "Latin-1": (b'"\xe9"', "utf-8"),
    "UTF-16": ('"a"'.encode("utf-16"), "utf-8"),
    "a mark of the byte order": (b'\xef\xbb\xbf"a"', "BOM"),
    "nothing": (b"", "Expecting value"),
    "two values": (b"1 2", "Extra data"),
    "a string without an end": (b'"abc', "Unterminated"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what):
    raw, said = REFUSED[what]
    with pytest.raises(IntegrityError, match=said):
        parse_json(raw, what="it", limits=SMALL)


def test_it_takes_linear_time_whatever_comes():
    began = time.process_time()
    for raw in (b'"' + b'\\"' * 500_000, b'"\\' * 500_000, b'"' * 1_000_000, b"\\" * 1_000_000, b"]" * 1_000_000):
        with pytest.raises(IntegrityError):
            parse_json(raw, what="it", limits=ENVELOPE)
    assert time.process_time() - began < 5  # 0.1 s; quadratic it would be hours


def test_a_document_as_large_as_the_limit_is_read():
    raw = json.dumps("x" * (2**20 - 2)).encode()
    assert len(parse_json(raw, what="it", limits=SMALL)) == 2**20 - 2


GOOD = [
    "a",
    "a/b",
    "c/r-fgsm/direction/c/0/1/0",
    ".hidden",
    "b*/x",
    "a b",
    "x" * 255,
    "/".join(["x" * 100] * 10),
    "a..b",
]
BAD = [
    "",
    "/a",
    "a//b",
    "a/",
    "./a",
    "a/.",
    "..",
    "a/../b",
    "a\\b",
    "c:",
    "C:/x",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "é",
    "x" * 256,
]
BAD += ["/".join(["x" * 100] * 11), "\u202egnp.exe"]


@pytest.mark.parametrize("key", GOOD)
def test_plain_relative_paths_are_keys(key):
    check_keys([key], what="it")
    check_portable([key], what="it")


@pytest.mark.parametrize("key", BAD)
@pytest.mark.parametrize("check", [check_keys, check_portable])
def test_others_are_not(key, check):
    with pytest.raises(IntegrityError, match="plain relative paths") as caught:
        check(["fine", key], what="it")
    assert str(caught.value).isprintable()


COLLIDING = [
    (["a/b", "A/c"], "the same"),
    (["a/b", "a/B"], "the same"),
    (["a", "a"], "the same"),
    (["a", "a/b"], "both"),
    (["a/b/c", "A/B"], "both|the same"),
]


@pytest.mark.parametrize(("keys", "said"), COLLIDING)
def test_keys_that_get_in_each_others_way_are_refused(keys, said):
    for names in (keys, keys[::-1]):
        check_keys(names, what="it")
        with pytest.raises(IntegrityError, match=said):
            check_portable(names, what="it")


def test_what_is_quoted_does_nothing_to_a_terminal():
    assert quoted("\x1b[2J\u202ex") == "'\\x1b[2J\\u202ex'"
    assert len(quoted("x" * 10**6)) == 82
