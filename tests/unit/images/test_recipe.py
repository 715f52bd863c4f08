"""Recipes: equal ones have equal keys, wrong ones are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nagaya.images.recipe import Recipe


def test_the_key_is_of_the_content_not_of_the_order() -> None:
    one = Recipe(packages=("bb", "aa"))
    two = Recipe(packages=("aa", "bb", "aa"))
    assert one.key("v1") == two.key("v1")
    assert one.key("v1") != one.key("v2")
    assert one.key() != Recipe(packages=("aa", "bb"), run=("true",)).key()


def test_a_size_written_out_is_the_default_size() -> None:
    assert Recipe(kind="busybox").key() == Recipe(kind="busybox", size=32 * 2**20).key()


@pytest.mark.parametrize("package", ["", "-y", "A", "a b", "a;b", "--option=x", "a=1 2"])
def test_what_apt_would_take_for_something_else_is_no_package(package: str) -> None:
    with pytest.raises(ValidationError, match="packages"):
        Recipe(packages=(package,))


def test_versions_and_architectures_are_packages() -> None:
    assert Recipe(packages=("libc6:amd64", "nginx=1.22.1-9+deb12u1", "g++")).packages


@pytest.mark.parametrize(
    ("kind", "size"), [("busybox", 2**20), ("debian", 64 * 2**20), ("debian", 2**30 + 1)]
)
def test_a_size_that_cannot_hold_it_is_refused(kind: str, size: int) -> None:
    with pytest.raises(ValidationError, match="multiple of 1MiB"):
        Recipe.model_validate({"kind": kind, "size": size})


def test_busybox_takes_no_packages() -> None:
    with pytest.raises(ValidationError, match="use kind debian"):
        Recipe(kind="busybox", packages=("nginx",))
