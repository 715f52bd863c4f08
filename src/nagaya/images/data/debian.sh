#!/bin/sh -eu
# Runs in mount and pid namespaces of its own: what it mounts and starts ends with it.
# Arguments: the root directory, the package cache, our files, the hostname, the apt options' file, then packages.
# In the environment: RUN, the recipe's shell commands; EPOCH_FILE, where the newest package file's time goes.
root=$1 cache=$2 overlay=$3 hostname=$4 options=$5
shift 5
start=$(date +%s)
say() { echo "step: $*"; }
inside() { chroot "$root" env -i PATH="$path" HOME=/root LANG=C.UTF-8 TERM=dumb SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
    DEBIAN_FRONTEND=noninteractive "$@"; }
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/dev/shm" "$root/var/cache/apt/archives/partial"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount --bind "$cache" "$root/var/cache/apt/archives"
for file in /etc/resolv.conf /etc/hosts; do
    [ -e "$file" ] || continue
    rm -f "$root$file"
    : >"$root$file"
    mount --bind "$(readlink -f "$file")" "$root$file"
done
mkdir -p "$root/etc/apt/apt.conf.d"
cp "$options" "$root/etc/apt/apt.conf.d/99build"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

if [ $# -gt 0 ]; then
    say "read the package lists"
    inside apt-get -q update
    say "install packages"
    inside apt-get -q -y --no-install-recommends install "$@"
fi

say "configure"
cp -R --no-preserve=ownership,timestamps "$overlay/." "$root/"
chmod 755 "$root/usr/lib/nagaya/identity"
echo "$hostname" >"$root/etc/hostname"
ln -sf /lib/systemd/system/poweroff.target "$root/etc/systemd/system/ctrl-alt-del.target"
inside systemctl -q enable nagaya-identity.service ssh.socket
inside systemctl -q disable apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
    dpkg-db-backup.timer getty@tty1.service ssh.service systemd-networkd.service systemd-networkd.socket \
    systemd-network-generator.service systemd-networkd-wait-online.service systemd-resolved.service
inside systemctl -q mask systemd-pstore.service systemd-vconsole-setup.service
inside systemctl -q set-default multi-user.target
if [ -x "$root/usr/bin/pg_ctlcluster" ]; then
    # Root of the machine is who runs `psql` through the guest agent.
    for cluster in $(inside pg_lsclusters -h | awk '{print $1 "/" $2}'); do
        inside pg_ctlcluster "${cluster%/*}" "${cluster#*/}" start
        inside runuser -u postgres -- createuser -s root
        inside runuser -u postgres -- createdb -O root root
        inside pg_ctlcluster "${cluster%/*}" "${cluster#*/}" stop
    done
fi
if [ "$RUN" ]; then
    say "run the recipe's commands"
    inside sh -euxc "$RUN"
fi

say "clean up"
umount "$root/etc/resolv.conf" "$root/etc/hosts" "$root/var/cache/apt/archives" "$root/tmp" "$root/run" || true
printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost ip6-loopback\n' "$hostname" >"$root/etc/hosts"
rm -rf "$root/etc/resolv.conf" "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root/usr/sbin/policy-rc.d" \
    "$root"/etc/apt/apt.conf.d/99* "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed" \
    "$root"/var/cache/ldconfig/aux-cache "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/etc/*- \
    "$root"/var/lib/systemd/catalog/database
find "$root/var/log" -type f -exec sh -c ': >"$1"' _ {} \;
find "$root/usr" -name __pycache__ -prune -exec rm -rf {} +
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
mkdir -p "$root/var/lib/dbus"
ln -s /etc/machine-id "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
umount "$root/dev/shm" "$root/proc"

# What the build made gets the time of the newest file that came in a package: the same packages, the same image.
epoch=$(find "$root" -xdev ! -newermt "@$((start - 1))" -printf '%Ts\n' | sort -n | tail -n 1)
find "$root" -xdev -newermt "@$epoch" -exec touch -h -d "@$epoch" {} +
touch -d "@$epoch" "$root/etc/.updated" "$root/var/.updated"
touch -d "@$epoch" "$root/etc" "$root/var"
echo "$epoch" >"$EPOCH_FILE"
