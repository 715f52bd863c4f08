"""The error tree, and its way through the API."""

from collections.abc import Iterator

import pytest

from nagaya.errors import NagayaError, NotFoundError, SpecError


def _tree(cls: type[NagayaError]) -> Iterator[type[NagayaError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == cls.__module__:  # a module's private refinements travel as their public parent
            yield from _tree(child)


ALL = list(_tree(NagayaError))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_error_comes_back_as_the_same_class_with_all_it_said(cls: type[NagayaError]) -> None:
    sent = cls("machine 'web' has no disk", hint="add one", machine="web", index=3)
    received = NagayaError.from_json(sent.to_json())
    assert type(received) is cls
    assert (received.message, received.hint, received.facts) == (sent.message, sent.hint, sent.facts)


def test_codes_and_exit_statuses_are_distinct() -> None:
    assert len({cls.code for cls in ALL}) == len(ALL)
    assert len({cls.exit_code for cls in ALL}) == len(ALL) - 1, "usage and spec errors share status 2"
    assert all(0 < cls.exit_code < 125 for cls in ALL), "125 and above belong to exec and to signals"
    assert SpecError.exit_code == 2


def test_a_code_of_a_newer_daemon_is_still_an_error() -> None:
    error = NagayaError.from_json({"code": "from-the-future", "message": "no"})
    assert type(error) is NagayaError
    assert error.message == "no"


def test_the_text_has_the_hint_on_a_line_of_its_own() -> None:
    assert str(NotFoundError("no machine 'x'", hint="`nagaya list` shows them")).splitlines() == [
        "no machine 'x'",
        "  `nagaya list` shows them",
    ]
