#!/bin/bash
# make-lvm-images.sh GUEST-DIR [OUT-DIR]: makes the LVM disks that the tests read, in a real guest under QEMU.
#
# GUEST-DIR holds the guest (lab/make-guest.sh makes it if it is not there). OUT-DIR gets, by default into
# crates/firn-format/tests/data/lvm: each disk as NAME.raw.zst, web1.vmdk, and the truth as the guest saw it:
# volumes.sha256 (whole logical volumes), root.sha256 and old.sha256 (files), report.txt (what lvm said).
# The guest is killed, not shut down: two file systems are mounted and have journals that were not replayed.
# Needs root, QEMU, zstd. 3 to 7 minutes under TCG.
set -eu
lab=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; guest=$(cd "$1" && pwd)
out=${2:-$lab/../crates/firn-format/tests/data/lvm}; mkdir -p "$out"; out=$(cd "$out" && pwd)
[ -f "$guest/guest-base.qcow2" ] || "$lab/make-guest.sh" "$guest"

run=$guest/run/lvm; rm -rf "$run"; mkdir -p "$run"
# Name and size in MiB of each disk. The guest finds them by their serial numbers.
disks="linear0:12 linear1:12 stripe0:12 stripe1:12 stripe2:12 mirror0:12 mirror1:12 mirror2:12 raid0:12 raid1:12
 ring0:6 ring1:6 twin0:6 twin1:6 other0:24 gone0:4 gone1:4
 md090:4 md10:4 md11:4 md12:4 web1:56"
args=()
attach() { # NAME FILE
  args+=(-drive "file=$2,format=raw,if=none,id=$1,cache=unsafe,discard=unmap" -device "virtio-blk-pci,drive=$1,serial=$1")
}
for disk in $disks; do
  truncate -s "${disk#*:}M" "$run/${disk%:*}.raw"
  attach "${disk%:*}" "$run/${disk%:*}.raw"
done
cp "$lab/guest/make-lvm.sh" "$run/script.raw"; truncate -s 64K "$run/script.raw"; attach script "$run/script.raw"
truncate -s 4M "$run/results.raw"; attach results "$run/results.raw"

"$lab/vm.sh" "$guest" lvm "${args[@]}"
trap 'kill -9 "$(cat "$run/pid")" 2>/dev/null || true' EXIT
# The agent answers some 20 s after the start.
for try in $(seq 60); do
  "$lab/guest-exec.py" "$run/ga.sock" true 5 >/dev/null 2>&1 && break
  [ "$try" -lt 60 ] || { echo "the guest did not come up: see $run/con.log" >&2; exit 1; }
  sleep 2
done
"$lab/guest-exec.py" "$run/ga.sock" "tr -d '\0' < /dev/disk/by-id/virtio-script > /tmp/make-lvm.sh; bash /tmp/make-lvm.sh" 900
# A power cut: what the guest had not written is lost, what it had fsynced is not.
kill -9 "$(cat "$run/pid")"; trap - EXIT

rm -f "$out"/*.zst "$out"/*.sha256 "$out"/report.txt "$out"/web1.vmdk
tar -xf "$run/results.raw" -C "$out"
for disk in $disks; do
  zstd -q -19 --long=27 "$run/${disk%:*}.raw" -o "$out/${disk%:*}.raw.zst"
done
qemu-img convert -O vmdk -o subformat=streamOptimized "$run/web1.raw" "$out/web1.vmdk"
du -sh "$out"
