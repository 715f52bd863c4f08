"""Bounded YAML with line numbers."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nagaya import yamlfile
from nagaya.yamlfile import YamlError, read


def test_values_are_those_of_the_core_schema_and_lines_are_known() -> None:
    document = read("a: 1\nb:\n  - no\n  - 52:54:00:12:34:56\n  - '7'\n  - 010\n  - 1.5\n  - ~\n  - true\n")
    assert document.value == {"a": 1, "b": ["no", "52:54:00:12:34:56", "7", 10, 1.5, None, True]}
    assert document.line(("b", 2)) == 5
    assert document.line(("b", 2, "deeper", "than", "written")) == 5
    assert document.errors == []


def test_an_anchor_may_be_merged_and_the_own_key_wins() -> None:
    document = read("a: &a {x: 1, y: 2}\nb: &b {y: 3}\nc:\n  <<: [*b, *a]\n  x: 9\n")
    assert document.value["c"] == {"y": 3, "x": 9}
    assert document.line(("c", "x")) == 5
    assert document.line(("c", "y")) == 2, "where the value is written"


def test_a_key_written_twice_is_told_with_both_lines() -> None:
    document = read("a: 1\nb: 2\na: 3\n")
    assert [(error.line, error.message) for error in document.errors] == [
        (3, "the key 'a' is here a second time, after line 1")
    ]


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("a: [", 2, "not YAML"),
        ("x: 1\n\ta: b", 2, "not YAML"),
        ("a: &a [*a]", 1, "an anchor contains itself"),
        ("a: &a {<<: *a}", 1, "an anchor contains itself"),
        ("a: 1\nb: !!python/object:os.system x", 2, "the tag .* is not taken"),
        ("a: *u", 1, "undefined alias"),
        ("[" * 100, 1, "nested deeper than 32"),
        ("---\na\n---\nb", 3, "a second document"),
        ("a: \x00", 1, "not YAML"),
        ("x" * (yamlfile.MAX_BYTES + 1), 1, "characters, 1048576 are allowed"),
    ],
)
def test_what_is_not_taken_is_refused_with_its_line(text: str, line: int, complaint: str) -> None:
    with pytest.raises(YamlError, match=complaint) as caught:
        read(text)
    assert caught.value.line == line


def test_a_billion_laughs_ends_soon() -> None:
    lines = ["a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    begun = time.monotonic()
    with pytest.raises(YamlError, match="more than 100000 values"):
        read("\n".join(lines))
    assert time.monotonic() - begun < 2


def test_merges_of_merges_end_soon() -> None:
    lines = ["a: &a {k: 1}"]
    for before, name in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True):
        lines.append(f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}")
    with pytest.raises(YamlError, match="more than 100000 values"):
        read("\n".join(lines))


@given(st.text(alphabet=st.characters(), max_size=200))
@example("\ud800")
@example("? [a]\n: b")
@example("? ? ? ? a")
@example("a: 1" + "0" * 5000)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read(text)
    except YamlError as error:
        assert error.line >= 1


@given(
    st.lists(st.sampled_from([*"&a*a<<:[]{},-?|>'\"!% \n\t#", "a: ", "- ", "<<: *a", "---\n"]), max_size=40)
)
def test_any_mix_of_the_signs_is_read_or_refused(parts: list[str]) -> None:
    try:
        read("".join(parts))
    except YamlError as error:
        assert error.line >= 1
