"""The kvm engine beside QEMU's microvm and beside C with the same ioctls; guests are payloads in ring 3."""
