"""`/v1/machines/NAME/nics/NIC/...`: faults of its link, its connections, and its frames."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from nagaya.daemon import captures, links
from nagaya.daemon.api.faults import Rate
from nagaya.daemon.api.machines import Name
from nagaya.daemon.api.networks import NicName
from nagaya.daemon.captures import Capture, Limits
from nagaya.daemon.daemon import Daemon
from nagaya.models.fault import NicFaults
from nagaya.models.network import CaptureInfo, FlowInfo

PCAP = "application/vnd.tcpdump.pcap"  # as registered with IANA
MAX_FLOWS = 128  # what the plane tells at once
SNAPLEN = 262_144  # bytes; more than the largest frame
Delay = Annotated[int, Field(ge=0, le=10_000_000, description="µs")]


class NicFaultsBody(BaseModel):
    """What the frames of a NIC shall suffer, those that it sends and those that it gets."""

    model_config = ConfigDict(extra="forbid")

    loss: Annotated[Rate, Field(description="part of the frames that are lost")] = 0.0
    delay_us: Annotated[Delay, Field(description="µs that every frame is under way")] = 0
    jitter_us: Annotated[Delay, Field(description="µs that it is longer at most, at random, in order")] = 0
    duplicate: Annotated[Rate, Field(description="part of the frames that come twice")] = 0.0
    reorder: Annotated[Rate, Field(description="part of the frames that others overtake")] = 0.0
    partition: Annotated[
        bool | Annotated[list[Annotated[str, Field(max_length=80)]], Field(max_length=64)],
        Field(description="no frame passes; or none to and from these: db, db/net1, uplink"),
    ] = False
    seed: Annotated[int, Field(ge=0, lt=2**63, description="the same frames meet the same faults again")] = 0


class _Pcap(StreamingResponse):
    """A capture, which ends with its client."""

    media_type = PCAP

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture.pieces())
        self._capture = capture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._capture.close)
            await super().__call__(scope, receive, send)


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/machines", tags=["networks"])
    _faults(routes, daemon)
    _captures(routes, daemon)

    @routes.get("/{name}/nics/{nic}/flows")
    async def flows(
        name: Name, nic: NicName, limit: Annotated[int, Query(ge=1, le=MAX_FLOWS)] = 20
    ) -> list[FlowInfo]:
        """Its connections with the most bytes. Without security groups they are counted from the first time
        that this is asked, for a minute."""
        return await links.flows(daemon.supervisor, name, nic, limit)

    return routes


def _faults(routes: APIRouter, daemon: Daemon) -> None:
    supervisor = daemon.supervisor

    @routes.get("/{name}/nics/faults")
    async def list_(name: Name) -> list[NicFaults]:
        """The NICs upon whose links there are faults, and how many frames these have cost."""
        return await links.list_faults(supervisor, name)

    @routes.put("/{name}/nics/{nic}/faults", status_code=204)
    async def put(name: Name, nic: NicName, body: NicFaultsBody) -> None:
        """Lay faults upon a link in the place of those that are there; in effect when this answers."""
        await links.set_faults(supervisor, name, nic, body.model_dump())

    @routes.delete("/{name}/nics/{nic}/faults", status_code=204)
    async def delete(name: Name, nic: NicName) -> None:
        """End them."""
        await links.set_faults(supervisor, name, nic, None)


def _captures(routes: APIRouter, daemon: Daemon) -> None:
    @routes.get(
        "/{name}/nics/{nic}/capture",
        response_class=StreamingResponse,
        responses={200: {"description": "The frames, with times in nanoseconds", "content": {PCAP: {}}}},
    )
    async def capture(
        name: Name,
        nic: NicName,
        *,
        snaplen: Annotated[int, Query(ge=64, le=SNAPLEN, description="bytes of each frame")] = SNAPLEN,
        limit: Annotated[int | None, Query(ge=24, description="bytes in all")] = None,
        packets: Annotated[int | None, Query(ge=1, description="frames in all")] = None,
        seconds: Annotated[float | None, Query(gt=0, le=10**7, description="how long")] = None,
    ) -> _Pcap:
        """What it sends and gets, as a pcap file, until something ends it; the machine's end does, too."""
        return _Pcap(await captures.begin(daemon, name, nic, Limits(snaplen, limit, packets, seconds)))

    @routes.delete("/{name}/nics/{nic}/capture")
    async def end(name: Name, nic: NicName) -> CaptureInfo:
        """End its capture; what that, or the last one, has come to."""
        return await captures.end(daemon, name, nic)
