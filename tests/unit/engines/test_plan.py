"""What the daemon asks of the zygote survives the wire, and nothing else gets in."""

from __future__ import annotations

import json

import pytest

from nagaya.engines.plan import MAX_MESSAGE, Bind, LaunchPlan, encode

PLAN = LaunchPlan(
    machine="0123456789ab",
    executable="/linux",
    argv=("nagaya-uml:web", "mem=512M"),
    env={"TMPDIR": "/ram"},
    uid=61000,
    gid=61000,
    hostname="web",
    ram_bytes=2**29,
    exit_file="/run/exit.json",
    log="/state/engine.log",
    log_limit=4096,
    binds=(Bind("/a", "/a"), Bind("/b", "/c", True)),
    files={"/proc/cpuinfo": "flags : fpu\n"},
    cgroup="/sys/fs/cgroup/unified/x",
    tasks=("/sys/fs/cgroup/cpu/x/tasks",),
    cpu=1,
    rlimits={"core": 0},
    seccomp=(bytes(range(16)),),
    fixed_layout=True,
)


def test_a_plan_survives_the_wire() -> None:
    message = encode({"do": "launch", "plan": PLAN.to_json()})
    assert len(message) < MAX_MESSAGE
    assert LaunchPlan.from_json(json.loads(message)["plan"]) == PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"binds": [["/a"]]},
        {"seccomp": ["***"]},
        {"seccomp": ["AAAA"]},  # 3 bytes: not whole instructions
        {"argv": 3},
        {"unknown": 1},
    ],
)
def test_what_is_not_a_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        LaunchPlan.from_json({**PLAN.to_json(), **change})


def test_a_plan_without_its_fields_is_refused() -> None:
    with pytest.raises(TypeError):
        LaunchPlan.from_json({})
