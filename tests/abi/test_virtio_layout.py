"""Virtio's constants against the system's headers, by its own compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nagaya.abi import virtio

HEADERS = ("config", "ids", "ring", "pci", "mmio", "balloon", "blk", "console")
OWN = {  # what the headers spell otherwise
    "VIRTIO_BALLOON_ACTUAL": "offsetof(struct virtio_balloon_config, actual)",
    "VIRTIO_BALLOON_POISON_VAL": "offsetof(struct virtio_balloon_config, poison_val)",
    "VIRTIO_CONSOLE_EMERG_WR": "offsetof(struct virtio_console_config, emerg_wr)",
    "VIRTIO_BLK_WCE": "offsetof(struct virtio_blk_config, wce)",
    "VIRTIO_ISR_QUEUE": "VIRTIO_MMIO_INT_VRING",
    "VIRTIO_ISR_CONFIG": "VIRTIO_MMIO_INT_CONFIG",
    "VIRTIO_PCI_CAP_SIZE": "sizeof(struct virtio_pci_cap)",
    "VIRTIO_PCI_NOTIFY_CAP_MULT": "offsetof(struct virtio_pci_notify_cap, notify_off_multiplier)",
    "VIRTIO_PCI_CFG_DATA": "offsetof(struct virtio_pci_cfg_cap, pci_cfg_data)",
    "VIRTIO_PCI_COMMON_SIZE": "sizeof(struct virtio_pci_common_cfg)",
}
NOT_IN_HEADERS = {
    "VIRTIO_PCI_VENDOR",
    "VIRTIO_PCI_DEVICE_BASE",
    "VIRTIO_PCI_REVISION",
    "VIRTIO_MMIO_MAGIC",
    "VIRTIO_TRANSPORT_F_END",  # grows with each version
}
STATUS = {
    "VIRTIO_CONFIG_S_ACKNOWLEDGE": virtio.Status.ACKNOWLEDGE.mask,
    "VIRTIO_CONFIG_S_DRIVER": virtio.Status.DRIVER.mask,
    "VIRTIO_CONFIG_S_DRIVER_OK": virtio.Status.DRIVER_OK.mask,
    "VIRTIO_CONFIG_S_FEATURES_OK": virtio.Status.FEATURES_OK.mask,
    "VIRTIO_CONFIG_S_NEEDS_RESET": virtio.Status.NEEDS_RESET.mask,
    "VIRTIO_CONFIG_S_FAILED": virtio.Status.FAILED.mask,
}


def test_constants_are_the_headers(tmp_path: Path) -> None:
    names = [name for name in vars(virtio) if name.startswith("VIRTIO_") and name not in NOT_IN_HEADERS]
    expected = [getattr(virtio, name) for name in names] + list(STATUS.values())
    spelled = [OWN.get(name, name) for name in names] + list(STATUS)
    lines = ["#include <stddef.h>", "#include <stdio.h>"]
    lines += [f"#include <linux/virtio_{name}.h>" for name in HEADERS]
    lines += ["int main(void) {", *(f'printf("%ld\\n", (long)({one}));' for one in spelled), "}"]
    source, program = tmp_path / "virtio.c", tmp_path / "virtio"
    source.write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert dict(zip(spelled, map(int, printed.split()), strict=True)) == dict(
        zip(spelled, expected, strict=True)
    )
