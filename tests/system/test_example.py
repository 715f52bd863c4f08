"""examples/three-machines.yaml with BusyBox in all three: who gets an answer from whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nagaya import specfile
from nagaya.sdk import Client, Machine
from nagaya.specfile import SpecFile
from nagaya.testing.netns import Namespace

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
EXAMPLE = Path(__file__).parents[2] / "examples/three-machines.yaml"
PAGE = "a page of db"
PROXY = r"""mkdir -p /tmp/w/cgi-bin && cd /tmp/w/cgi-bin && chmod 755 . &&
printf '#!/bin/sh\nprintf "Content-Type: text/plain\r\n\r\n"; wget -q -O - http://db:8080/\n' >page &&
chmod 755 page && httpd -p 80 -h /tmp/w"""
SERVE = f"mkdir /tmp/w && echo {PAGE} >/tmp/w/index.html && httpd -p 8080 -h /tmp/w"


@pytest.fixture
def example() -> SpecFile:
    """The file, with another image in small machines."""
    file = specfile.load(EXAMPLE)
    machines = {}
    for name, spec in file.machines.items():
        body = spec.to_json() | {"memory": "96MiB", "disks": [{"image": "busybox"}]}
        machines[name] = spec.model_validate(body)
    return replace(file, images={}, machines=machines)


def bring_up(client: Client, file: SpecFile) -> dict[str, Machine]:
    client.apply(list(file.machines.values()), groups=list(file.groups.values())).wait()
    machines = {name: client.machines.get(name) for name in file.machines}
    for machine in machines.values():
        machine.wait("agent", 60)
        known = "until nslookup web && nslookup db; do sleep 0.2; done >/dev/null 2>&1"
        assert machine.exec(["timeout", "30", "sh", "-c", known]).exit_code == 0, "it has an address"
    return machines


def fetched(machine: Machine, url: str) -> str:
    return machine.exec(["timeout", "2", "wget", "-q", "-O", "-", url]).stdout.decode().strip()


def test_web_has_the_page_of_db_and_batch_only_what_the_file_allows(
    inside: Client, host: Namespace, example: SpecFile
) -> None:
    machines = bring_up(inside, example)
    assert machines["web"].exec(["sh", "-c", PROXY]).exit_code == 0
    assert machines["db"].exec(["sh", "-c", SERVE]).exit_code == 0
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/cgi-bin/page").strip() == PAGE
    assert fetched(machines["web"], "http://db:8080") == PAGE
    for url in ("http://web/cgi-bin/page", "http://db:8080"):
        assert not fetched(machines["batch"], url)
    batch = example.machines["batch"]
    nics = tuple(nic.model_copy(update={"isolated": False}) for nic in batch.nics or ())
    machines["batch"].stop()
    allowed = {"batch": batch.model_copy(update={"nics": nics})}
    machines = bring_up(inside, replace(example, machines=example.machines | allowed))
    assert fetched(machines["batch"], "http://web/cgi-bin/page") == PAGE
    assert not fetched(machines["batch"], "http://db:8080"), "that is for the group of web"
