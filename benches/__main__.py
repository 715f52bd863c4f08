"""`python -m benches [NAME ...]`: all benches, or those named, one after the other, into one report."""

from __future__ import annotations

import importlib
import sys

BENCHES = {
    "cpu": "benches.guest.cpu",
    "start": "benches.guest.start",
    "boot": "benches.guest.boot",
    "idle": "benches.guest.idle",
    "memory-reporting": "benches.memory.reporting",
    "memory-relocation": "benches.memory.relocation",
    "disk": "benches.disk.run",
    "disk-cached": "benches.disk.run --disk cached",
    "disk-null": "benches.disk.run --disk null",
    "disk-qcow2": "benches.disk.run --disk qcow2",
    "disk-first-writes": "benches.disk.run --disk first-writes",
    "disk-arbiter": "benches.disk.arbiter",
    "arbitration": "benches.arbitration.run",
    "network-throughput": "benches.network.throughput",
    "network-latency": "benches.network.latency",
    "network-killed": "benches.network.killed",
    "network-qemu": "benches.network.qemu",
    "network-shares": "benches.network.shares",
    "network-ports": "benches.network.ports",
    "network-packets": "benches.network.packets",
    "plan": "benches.plan.accuracy",
    "cpu-shares": "benches.cpu.shares",
    "memory-broker": "benches.memory.broker",
    "memory-fleet": "benches.memory.fleet",
    "restart": "benches.restart",
    "kvm-start": "benches.kvm.start",
    "kvm-idle": "benches.kvm.idle",
    "kvm-compute": "benches.kvm.compute",
    "kvm-kicks": "benches.kvm.kicks",
    "kvm-io": "benches.kvm.io",
    "kvm-plug": "benches.kvm.plug",
}


def main(names: list[str]) -> int:
    """Run them; 0 if every promise held."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"error: no bench {unknown[0]!r}; there are: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    missed = []
    for name in names or list(BENCHES):
        print(f"\n== {name}", flush=True)
        module, *arguments = BENCHES[name].split()
        rows = importlib.import_module(module).main(arguments)
        missed += [
            f"{name}: {row.name} beside {peer}" for row in rows for peer in row.targets if not row.meets(peer)
        ]
    print("\nevery promise held" if not missed else "\nmissed:\n  " + "\n  ".join(missed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
