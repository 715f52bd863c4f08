"""Files for `nagaya up`: what they say, and how they are wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya import specfile, yamlfile
from nagaya.errors import NotFoundError, PermissionDeniedError, SpecError
from nagaya.specfile import parse

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
x-small: &small
  memory: 256MiB
images:
  web: {kind: debian, packages: [nginx-light]}
  batch: {kind: busybox}
machines:
  web:
    memory: 512MiB
    cpu: {weight: 200}
    disks: [{image: web, size: 4GiB}]
  batch:
    <<: *small
    disks:
      - image: batch
"""


def _refused(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(text, "f.yaml")
    assert len(caught.value.facts["problems"]) == len(caught.value.message.splitlines())  # type: ignore[arg-type]
    return caught.value.message.splitlines()


def test_a_file_holds_images_and_machines() -> None:
    file = parse(GOOD)
    assert file.images["web"].packages == ("nginx-light",)
    assert file.machines["web"].name == "web"
    assert file.machines["web"].cpu.weight == 200
    assert file.machines["web"].disks[0].size == 4 * 2**30
    assert file.machines["batch"].memory.size == 256 * 2**20
    assert list(file.machines) == ["web", "batch"]


def test_an_empty_file_asks_for_nothing() -> None:
    for text in ("", "# only a comment\n", "machines:\nimages:\n"):
        assert parse(text) == specfile.SpecFile("<text>")


def test_a_machine_without_fields_is_the_default() -> None:
    assert parse("machines:\n  plain:\n").machines["plain"].memory.size == 512 * 2**20


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "machines:\n  web:\n    memory: lots\n",
            "f.yaml:3: machines.web.memory: 'lots' is not a size; write for example 512MiB, 1.5GiB or 10GB",
        ),
        (
            "machines:\n  web:\n    memroy: 1GiB\n",
            "f.yaml:3: machines.web.memroy: unknown key 'memroy'; did you mean 'memory'?",
        ),
        (
            "machines:\n  web:\n    disks:\n      - {image: a}\n      - image: b\n        szie: 1GiB\n",
            "f.yaml:6: machines.web.disks[1].szie: unknown key 'szie'; did you mean 'size'?",
        ),
        ("machine:\n  web: {}\n", "f.yaml:1: machine: unknown key 'machine'; did you mean 'machines'?"),
        ("machines: [web]\n", "f.yaml:1: machines: ['web'] is not a mapping of keys to values"),
        ("machines:\n  web: 5\n", "f.yaml:2: machines.web: 5 is not a mapping of keys to values"),
        ("- a\n", "f.yaml:1: ['a'] is not a mapping of keys to values"),
        (
            "machines:\n  web: {}\n  Web: {}\n",
            "f.yaml:3: machines.Web: 'Web' cannot name a machine: "
            "use lower-case letters, digits and hyphens, 63 at most",
        ),
        (
            "machines:\n  web: {cpus: 1}\n  web: {cpus: 2}\n",
            "f.yaml:3: machines: the key 'web' is here a second time, after line 2",
        ),
        (
            "machines:\n  web: {engine: xen}\n",
            "f.yaml:2: machines.web.engine: 'xen' is not one of 'auto', 'kvm', 'uml' or 'qemu'",
        ),
        (
            "machines:\n  web:\n    name: db\n",
            "f.yaml:3: machines.web.name: 'db' differs from its key 'web'; leave it out",
        ),
        (
            "images:\n  web:\n    kind: windows\n",
            "f.yaml:3: images.web.kind: 'windows' is not one of 'debian' or 'busybox'",
        ),
        (
            "images:\n  web: {kind: debian, package: [x]}\n",
            "f.yaml:2: images.web.package: unknown key 'package'; did you mean 'packages'?",
        ),
        (
            "machines:\n  web:\n    memory:\n      size: 512MiB\n      reservation: 1GiB\n",
            "f.yaml:3: machines.web.memory: reservation 1GiB is above size 512MiB",
        ),
        ("machines:\n  web: {boot: [}\n", "f.yaml:2: not YAML: did not find expected node content "),
    ],
)
def test_an_error_names_file_line_field_value_and_remedy(text: str, complaint: str) -> None:
    assert _refused(text)[0].startswith(complaint)


def test_all_problems_come_at_once_in_the_files_order() -> None:
    lines = _refused("machines:\n  a: {cpus: 0, x: 1}\n  b:\n    memory: lots\n    memory: 1\nimages: 7\n")
    assert [line.split(": ")[0] for line in lines] == [
        "f.yaml:2",
        "f.yaml:2",
        "f.yaml:4",
        "f.yaml:5",
        "f.yaml:6",
    ]


def test_too_many_machines_are_refused() -> None:
    text = "machines:\n" + "".join(f"  m{number}:\n" for number in range(specfile.MAX_MACHINES + 1))
    assert "1001 machines, 1000 are allowed" in _refused(text)[0]


def test_a_file_is_read_or_the_reason_is_told(tmp_path: Path) -> None:
    file = tmp_path / "nagaya.yaml"
    with pytest.raises(NotFoundError, match="there is no file"):
        specfile.load(file)
    file.write_text(GOOD)
    assert specfile.load(file).source == str(file)
    file.write_bytes(b"machines:\n  \xff: {}\n")
    with pytest.raises(SpecError, match=r"nagaya\.yaml:2: byte 0xff is not UTF-8"):
        specfile.load(file)
    file.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(SpecError, match="larger than 1048576 bytes"):
        specfile.load(file)
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        specfile.load(tmp_path)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nagaya.yaml"
    file.touch(mode=0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionDeniedError, match="may not be read by you"):
            specfile.load(file)
    finally:
        os.seteuid(user)


def test_the_schema_knows_every_field_and_takes_the_short_forms() -> None:
    schema = specfile.json_schema()
    json.dumps(schema)
    machine = schema["properties"]["machines"]["additionalProperties"]
    assert "name" not in machine["properties"]
    assert {"type": ["string", "integer"]} in machine["properties"]["memory"]["anyOf"]
    assert machine["additionalProperties"] is False


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (GOOD, True),
        ("machines: {web: {memory: 1073741824}}", True),
        ("machines: {web: {memory: {size: 1GiB, weight: 7}}}", True),
        ("machines: {Web: {}}", False),
        ("machines: {web: {memroy: 1GiB}}", False),
        ("machines: {web: {disks: [{image: a, szie: 1GiB}]}}", False),
        ("images: {web: {kind: windows}}", False),
        ("machine: {}", False),
    ],
)
def test_the_schema_and_the_reader_agree(text: str, valid: bool) -> None:
    checker = jsonschema_rs.validator_for(specfile.json_schema())
    assert checker.is_valid(yamlfile.read(text).value) is valid
    if valid:
        parse(text)
    else:
        assert _refused(text)


def test_the_example_is_valid() -> None:
    file = specfile.load(ROOT / "examples/three-machines.yaml")
    assert list(file.machines) == ["web", "db", "batch"]
    assert {machine.disks[0].image for machine in file.machines.values()} == set(file.images)


_KEYS = [
    "images",
    "machines",
    "web",
    "memory",
    "disks",
    "image",
    "kind",
    "cpu",
    "size",
    "nics",
    "name",
    "boot",
]
_leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_KEYS), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("key", ["\x85", "\n\x1b[2J"])
def test_a_key_of_control_characters_is_said_on_one_line(key: str) -> None:
    with pytest.raises(SpecError) as failure:
        parse(json.dumps({"images": {key: None}}), "f")
    [line] = failure.value.message.splitlines()
    assert line.startswith("f:1: ") and line.isprintable()


@given(st.text(max_size=120))
def test_any_text_is_a_file_or_a_spec_error(text: str) -> None:
    try:
        parse(text)
    except SpecError as error:
        assert error.message


@given(st.dictionaries(st.sampled_from(["images", "machines", "x-a", "other"]), _trees, max_size=3))
def test_any_tree_is_a_file_or_a_spec_error_with_lines(tree: object) -> None:
    try:
        parse(json.dumps(tree), "f")
    except SpecError as error:
        assert all(line.startswith("f:1: ") for line in error.message.splitlines())


def test_tenants_have_their_knobs_and_mistakes_in_them_their_line() -> None:
    text = "tenants:\n  acme: {disk: {weight: 300, limit: 9000iops}}\nmachines:\n  db: {tenant: acme}\n"
    found = parse(text)
    assert found.tenants["acme"].disk.limit_iops == 9000
    assert found.machines["db"].tenant == "acme"
    with pytest.raises(SpecError, match=r"2: tenants\.acme\.disk\.weight: 0 must be at least 1"):
        parse(text.replace("300", "0"), "f")


def test_networks_and_groups_are_sections_of_their_own() -> None:
    file = parse(
        "networks:\n  back: {mode: isolated, ipv4: 10.9.0.0/24}\n"
        "groups:\n  web: {in: [tcp:80]}\n"
        "machines:\n  db: {nics: [{network: back, groups: [web]}]}\n"
    )
    assert file.networks["back"].ipv4 == "10.9.0.0/24"
    assert file.groups["web"].inbound == ("tcp:80",)
    with pytest.raises(SpecError) as failure:
        parse("networks:\n  back:\n    mode: wire\ngroups:\n  web:\n    in:\n      - tcp:http\n", "f")
    first, second = failure.value.message.splitlines()
    assert first.startswith("f:3: networks.back.mode: 'wire' is not one of")
    assert second.startswith("f:7: groups.web.in[0]: 'tcp:http' is no rule")
