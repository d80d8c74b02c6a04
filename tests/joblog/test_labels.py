"""Valid labels, as written by people, runners and the store."""

import pytest

from chronoverse.joblog.labels import MAX_LABELS, check_labels, has_labels, parse_label, read_labels

GOOD = {"branch": "main", "commit": "0" * 40, "a" * 63: "é" * 256, "team/build_1.x-y": "a=b c"}
#: Invalid keys, and invalid values of the label ``a``.
BAD_KEYS = ("", "A", "1", "a b", "a:b", "a=b", "ä", "a" * 64, "a\n", "_a")
BAD_VALUES = ("", "v" * 257, "a\nb", "\x1b[31m", "\x7f", "\x9b", "a\0", "\ud800")


def test_labels_are_read_as_they_are_written() -> None:
    assert check_labels(GOOD) == tuple(sorted(GOOD.items()))
    assert [parse_label(f"{key}={value}") for key, value in GOOD.items()] == list(GOOD.items())
    assert read_labels(GOOD) == check_labels(GOOD)
    assert check_labels({}) == ()


def test_what_is_no_label_is_refused_with_what_is_wrong_and_left_out_of_what_the_store_has() -> None:
    for key in BAD_KEYS:
        with pytest.raises(ValueError, match="key is 1 to 63"):
            check_labels({key: "v"})
    for value in BAD_VALUES:
        with pytest.raises(ValueError, match="value of the label a: expected 1 to 256 characters"):
            parse_label(f"a={value}")
    found: dict[object, object] = {**dict.fromkeys(BAD_KEYS, "v"), None: "v", "c": 1, "b": "v"}
    assert read_labels(found) == (("b", "v"),)
    assert all(read_labels({"a": value}) == () for value in BAD_VALUES)
    assert read_labels(["a"]) == read_labels(None) == ()
    for text in ("", "branch", "main"):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            parse_label(text)
    wrong: tuple[object, ...] = ([], "a=b", None, {"a": 1}, {"a": None}, {1: "a"})
    for labels in wrong:
        with pytest.raises(ValueError, match="object of strings"):
            check_labels(labels)


def test_a_job_has_sixteen_labels_at_most() -> None:
    many = {f"k{number:02}": "v" for number in range(MAX_LABELS + 1)}
    with pytest.raises(ValueError, match="16 labels"):
        check_labels(many)
    assert read_labels(many) == tuple(sorted(many.items()))[:MAX_LABELS]
    del many["k00"]
    assert check_labels(many) == tuple(many.items())


def test_a_job_has_labels_if_it_has_all_of_them_with_these_values() -> None:
    labels = check_labels({"branch": "main", "step": "test"})
    assert has_labels(labels, [])
    assert has_labels(labels, [["branch", "main"], ("step", "test")])
    assert not has_labels(labels, [("branch", "main"), ("branch", "next")])
    assert not has_labels(labels, [("os", "linux")])
    assert not has_labels((), [("branch", "main")])
