#!/bin/bash
# make-volume-images.sh GUEST-DIR [OUT-DIR]: makes the disks of arrays, thin pools, snapshots and encrypted volumes that
# the tests read, in a real guest under QEMU.
#
# GUEST-DIR holds the guest (lab/make-guest.sh makes it if it is not there). OUT-DIR gets, by default into
# crates/firn-format/tests/data/volumes: each set of disks as SET.raw.zst, one disk after the other, sets.txt with their
# sizes in MiB, and the truth as the guest saw it: volumes.sha256 (whole volumes), SET.sha256 (files), report.txt.
# The guest is killed, not shut down: several file systems are mounted and have journals that were not replayed.
# Needs root, QEMU, sfdisk, zstd. About 6 minutes under TCG.
set -eu
lab=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; guest=$(cd "$1" && pwd)
out=${2:-$lab/../crates/firn-format/tests/data/volumes}; mkdir -p "$out"; out=$(cd "$out" && pwd)
[ -f "$guest/guest-base.qcow2" ] || "$lab/make-guest.sh" "$guest"

run=$guest/run/volumes; rm -rf "$run"; mkdir -p "$run"
# Each set with the sizes of its disks in MiB. In the guest they are partitions, found by label: SET-0, SET-1…
cat >"$run/sets.txt" <<'SETS'
lin 2 3 1
r0 2 2 2
r0alt 1 2 4 2
r0orig 1 2 4 2
r1 2 2
r1old 2 2 2
r1stale 2 2
r1spare 2 2 2
r1name 2 2
r10n2 2 2 2 2
r10n2odd 2 2 2
r10n3 2 2 2 2
r10f2 2 2 2 2
r10f3 2 2 2 2 2
r10o2 2 2 2 2
r10o3 2 2 2 2 2
r4 2 2 2 2
r5la 2 2 2 2
r5ra 2 2 2 2
r5ls 2 2 2 2
r5rs 2 2 2
r5pf 2 2 2 2
r5pl 2 2 2 2
r6la 2 2 2 2 2
r6ra 2 2 2 2 2
r6ls 2 2 2 2 2
r6rs 2 2 2 2 2 2
r6pf 2 2 2 2 2
r6pl 2 2 2 2 2
r6zr 2 2 2 2 2
r6nr 2 2 2 2 2
r6nc 2 2 2 2 2
r6la6 2 2 2 2 2
r6ra6 2 2 2 2 2
r6ls6 2 2 2 2 2
r6rs6 2 2 2 2 2
r6pf6 2 2 2 2 2
r5dirty 8 8 8
r5build 4 4 4
r5grow 4 4 4 4
r5log 6 6 6 6
lvraid 18 18 18 18 18
lvdeg 4 4 4
thin 56
snap 24
luks1 4
luks2 20
nest 24 24
mdluks 20 20 20
SETS
start=2048; number=0
{
  echo "label: gpt"; echo "table-length: 256"
  while read -r set sizes; do
    at=0
    for size in $sizes; do
      echo "start=$start, size=$((size * 2048)), name=$set-$at"
      start=$((start + size * 2048)); at=$((at + 1)); number=$((number + 1))
    done
  done <"$run/sets.txt"
} >"$run/table"
truncate -s $((start / 2048 + 2))M "$run/parts.raw"
sfdisk -q "$run/parts.raw" <"$run/table"
# The guest's scripts, as a disk.
for part in "$lab"/guest/make-volumes*.sh; do cat "$part"; done >"$run/script.raw"
truncate -s 64K "$run/script.raw"; truncate -s 4M "$run/results.raw"
args=()
for disk in parts script results; do
  args+=(-drive "file=$run/$disk.raw,format=raw,if=none,id=$disk,cache=unsafe,discard=unmap"
    -device "virtio-blk-pci,drive=$disk,serial=$disk")
done

"$lab/vm.sh" "$guest" volumes "${args[@]}"
trap 'kill -9 "$(cat "$run/pid")" 2>/dev/null || true' EXIT
"$lab/guest-exec.py" "$run/ga.sock" \
  "tr -d '\0' < /dev/disk/by-id/virtio-script > /tmp/make-volumes.sh; bash /tmp/make-volumes.sh" 1500
# A power cut: what the guest had not written is lost, what it had fsynced is not.
kill -9 "$(cat "$run/pid")"; trap - EXIT

rm -f "$out"/*.zst "$out"/*.sha256 "$out"/*.txt "$out"/*.key
tar -xf "$run/results.raw" -C "$out"
cp "$run/sets.txt" "$out"
start=1
while read -r set sizes; do
  total=0; for size in $sizes; do total=$((total + size)); done
  dd if="$run/parts.raw" bs=1M skip=$start count=$total status=none | zstd -q -19 --long=27 -o "$out/$set.raw.zst"
  start=$((start + total))
done <"$run/sets.txt"
rm -rf "$run"
du -sh "$out"
