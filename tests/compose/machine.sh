#!/bin/sh
# Becomes the first process of the machine whose files are in the folder $1: Docker's daemon, with its
# containers in the control group $2. machine.py starts it in namespaces of its own.
set -e
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
ip link set lo up
# A container's runtime changes its root, and can't do that in a chroot.
mkdir "$root/old"
cd "$root"
pivot_root . old
umount --lazy /old
exec docker-init -- dockerd --cgroup-parent "$2"
