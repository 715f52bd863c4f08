#!/bin/sh -eu
# Packs a fresh minimal system. Arguments: its root directory, the archive, when its build began (seconds).
# What the build made gets the time of the newest file that came in a package.
root=$1 archive=$2 start=$3
epoch=$(find "$root" -xdev ! -newermt "@$((start - 1))" -printf '%Ts\n' | sort -n | tail -n 1)
find "$root" -xdev -newermt "@$epoch" -exec touch -h -d "@$epoch" {} +
tar -C "$root" --sort=name --numeric-owner --acls --xattrs --xattrs-include='*' -cf "$archive" .
