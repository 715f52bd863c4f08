"""Tables, JSON, YAML, CSV."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
import yaml

from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session

ROWS: list[dict[str, Any]] = [
    {"name": "web", "memory": 512, "inner": {"uid": 7}, "list": [1, 2]},
    {"name": "db\x1b[31m", "memory": None, "inner": {}, "list": []},
]
COLUMNS = (
    Column("NAME", field("name")),
    Column("MEMORY", field("memory"), lambda size: f"{size} MiB", right=True),
    Column("UID", field("inner.uid")),
    Column("LIST", field("list")),
)


def _printed(capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    session = Session()
    for name, value in settings.items():
        setattr(session, name, value)
    print_rows(session, ROWS, COLUMNS)
    return capsys.readouterr().out


def test_a_table_is_aligned_and_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert _printed(capsys).splitlines() == [
        "NAME      MEMORY  UID  LIST",
        "web      512 MiB  7    [1, 2]",
        "db�[31m        -  -    []",
    ]


def test_json_and_yaml_hold_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(_printed(capsys, format="json")) == ROWS
    assert yaml.safe_load(_printed(capsys, format="yaml")) == ROWS


def test_csv_holds_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.reader(_printed(capsys, format="csv").splitlines()))
    assert rows[0] == ["name", "memory", "uid", "list"]
    assert rows[1] == ["web", "512", "7", "[1, 2]"]


def test_quiet_is_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert _printed(capsys, quiet=True) == "web\ndb�[31m\n"


def test_an_empty_table_is_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(Session(), [], COLUMNS)
    assert capsys.readouterr().out == "NAME  MEMORY  UID  LIST\n"


def test_one_thing_as_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    thing = {"name": "web", "disks": [{"image": "web"}]}
    print_value(Session(), thing)
    assert capsys.readouterr().out == "name: web\ndisks:\n- image: web\n"
    print_value(Session(format="json"), thing)
    assert json.loads(capsys.readouterr().out) == thing
    print_value(Session(format="csv"), thing)
    assert capsys.readouterr().out.splitlines()[0] == "name,web"
