#!/usr/bin/env bash
# Runs a command in an image as a cluster would, without a container engine: run.sh IMAGE FOLDER COMMAND...
# The root file system is read-only, the user one of no name with a high id, FOLDER is /state, /tmp is empty. As root.
set -euo pipefail
image=$1 state=$2
shift 2
export BUILDAH_ISOLATION=chroot
container=$(buildah from --pull-never "$image")
trap 'buildah rm "$container" > /dev/null' EXIT
root=$(buildah mount "$container")
mapfile -t variables < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep .)
chmod 1777 "$state"
# mounts of a namespace of its own: they are gone with the command
ROOT=$root STATE=$(realpath "$state") unshare --mount sh -euc '
    mount --bind "$ROOT" "$ROOT"
    mount --bind "$STATE" "$ROOT/state"
    mount -t tmpfs tmpfs "$ROOT/tmp"
    mount -t tmpfs tmpfs "$ROOT/dev"
    mkdir -m 1777 "$ROOT/dev/shm"
    for device in null zero random urandom; do
        touch "$ROOT/dev/$device"
        mount --bind "/dev/$device" "$ROOT/dev/$device"
    done
    mount -t proc proc "$ROOT/proc"
    mount -o remount,bind,ro "$ROOT"
    exec setpriv --no-new-privs chroot --userspec=1000700000:0 --groups=0 "$@"
' sh "$root" env -i -C /state "${variables[@]}" "$@"
