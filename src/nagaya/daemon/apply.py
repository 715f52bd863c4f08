"""`up` and `down`: many machines and their images from one request, idempotent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.nics import MAIN
from nagaya.daemon.shares import only_knobs_differ
from nagaya.daemon.supervised import ALIVE, DOWN, Supervised
from nagaya.errors import ConflictError, NagayaError, NotFoundError
from nagaya.progress import Progress
from nagaya.spec import MachineSpec, NetworkSpec, SecurityGroup, Tenant

Action = Literal["create", "start", "change", "set", "recreate", "unchanged", "delete"]

_IMAGES_SHARE = 0.9  # of the whole, while there are images to build: minutes, where a start takes none
_TOGETHER = 8  # machines that are started or stopped at once


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants to be so. `images` are parsed recipes."""

    machines: Sequence[MachineSpec]
    images: Mapping[str, Any]
    source: str = ""
    recreate: bool = False
    prune: bool = False
    tenants: Sequence[Tenant] = ()
    networks: Sequence[NetworkSpec] = ()
    groups: Sequence[SecurityGroup] = ()


def plan(daemon: Daemon, request: Request) -> dict[str, Action]:
    """What to do with each machine. Raises `ConflictError` naming those that would have to be recreated."""
    _check_names(daemon, request)
    known = {one.name: one for one in daemon.supervisor.all()}
    actions: dict[str, Action] = {}
    for spec in request.machines:
        actions[spec.name] = _action(known.get(spec.name), spec)
    changed = [name for name, action in actions.items() if action == "recreate"]
    if changed and not request.recreate:
        raise ConflictError(
            f"{', '.join(changed)}: the spec changed while the machine runs, it needs a restart",
            hint="allow it with --recreate: machines are stopped, changed and started again; "
            "a disk whose entry is the same keeps its content",
            machines=changed,
        )
    if request.prune:
        for one in known.values():
            if request.source and one.row.source == request.source and one.name not in actions:
                actions[one.name] = "delete"
    return actions


async def up(daemon: Daemon, request: Request, progress: Progress) -> dict[str, Any]:
    """Make it so."""
    actions = plan(daemon, request)  # refuse before minutes of image building
    supervisor = daemon.supervisor
    await supervisor.networks.check_ports(
        [spec for spec in request.machines if actions[spec.name] != "unchanged"]
    )
    networks = [(one.name, await supervisor.networks.give(one)) for one in request.networks]
    groups = [(one.name, await supervisor.groups.put(one)) for one in request.groups]
    missing = [
        name for name, recipe in request.images.items() if not daemon.parts.images.is_current(name, recipe)
    ]
    share = _IMAGES_SHARE if missing else 0.0
    await _build_images(daemon, {name: request.images[name] for name in missing}, share, progress)
    tenants = [(one.name, await supervisor.shares.give_tenant(one)) for one in request.tenants]
    actions = plan(daemon, request)
    specs = {spec.name: spec for spec in request.machines}
    todo = [name for name, action in actions.items() if action != "unchanged"]
    done: list[str] = []
    gate = asyncio.Semaphore(_TOGETHER)

    async def carry_out(name: str) -> None:
        async with gate:
            await _carry_out(daemon, name, actions[name], specs.get(name), request.source)
        done.append(name)
        progress(f"{actions[name]} {name}", share + (1 - share) * len(done) / len(todo))

    await _all_or_first_error([carry_out(name) for name in todo])
    return {
        "machines": [{"name": name, "action": action} for name, action in actions.items()],
        "networks": [{"name": name, "action": action} for name, action in networks],
        "groups": [{"name": name, "action": "set" if changed else "unchanged"} for name, changed in groups],
        "tenants": [{"name": name, "action": "set" if changes else "unchanged"} for name, changes in tenants],
        "images": [
            {"name": name, "action": "build" if name in missing else "unchanged"} for name in request.images
        ],
    }


async def down(
    daemon: Daemon, names: Sequence[str], *, keep: bool, seconds: float, progress: Progress
) -> dict[str, Any]:
    """Stop the named machines, and delete them unless `keep`."""
    actions: dict[str, str] = {}

    async def end(name: str) -> None:
        try:
            one = daemon.supervisor.get(name)
            if one.row.state in ALIVE:
                await daemon.supervisor.stop(name, seconds)
            if not keep:
                await daemon.supervisor.delete(name, force=True)
            actions[name] = "stop" if keep else "delete"
        except NotFoundError:
            actions[name] = "absent"
        progress(f"{actions[name]} {name}", len(actions) / len(names))

    await _all_or_first_error([end(name) for name in dict.fromkeys(names)])
    return {"machines": [{"name": name, "action": action} for name, action in sorted(actions.items())]}


def _check_names(daemon: Daemon, request: Request) -> None:
    """Raise `NotFoundError` for a network or a group of a machine that is neither there nor asked for."""
    networks = {one.name for one in request.networks} | {MAIN}
    groups = {one.name for one in request.groups}
    for spec in request.machines:
        for nic in spec.nics or ():
            if nic.network not in networks:
                daemon.supervisor.networks.get(nic.network)
            for group in set(nic.groups) - groups:
                daemon.supervisor.groups.get(group)


async def _build_images(daemon: Daemon, recipes: Mapping[str, Any], share: float, progress: Progress) -> None:
    for number, (name, recipe) in enumerate(recipes.items()):

        def part(step: str, fraction: float | None, name: str = name, number: int = number) -> None:
            whole = None if fraction is None else share * (number + fraction) / len(recipes)
            progress(f"image {name}: {step}", whole)

        await daemon.parts.images.build(name, recipe, part)


def _action(one: Supervised | None, spec: MachineSpec) -> Action:
    if one is None:
        return "create"
    if one.spec == spec:
        return "start" if one.row.state in DOWN else "unchanged"
    if one.row.state in DOWN:
        return "change"
    return "set" if only_knobs_differ(one.spec, spec) else "recreate"


async def _carry_out(
    daemon: Daemon, name: str, action: Action, spec: MachineSpec | None, source: str
) -> None:
    supervisor = daemon.supervisor
    if action == "delete":
        await supervisor.delete(name, force=True)
        return
    if spec is None:
        return
    if action == "set":
        await supervisor.shares.give(name, spec)
        return
    if action == "create":
        await supervisor.create(spec, source)
    elif action in ("change", "recreate"):
        if action == "recreate":
            await supervisor.stop(name)
        await supervisor.change(supervisor.get(name), spec, source)
    await supervisor.start(name)


async def _all_or_first_error(works: Sequence[Any]) -> None:
    """Let each machine have its turn even if another fails, then raise what failed first."""
    results = await asyncio.gather(*works, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        first = failures[0]
        if len(failures) > 1 and isinstance(first, NagayaError):
            first.message += f" (and {len(failures) - 1} more failed)"
        raise first
