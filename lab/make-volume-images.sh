#!/bin/bash
# make-volume-images.sh GUEST-DIR [OUT-DIR]: makes the disks of arrays, thin pools, snapshots and encrypted volumes that
# the tests read, in a real guest under QEMU.
#
# GUEST-DIR holds the guest (lab/make-guest.sh makes it if it is not there). OUT-DIR gets, by default into
# crates/firn-format/tests/data/volumes: each set of disks as SET.raw.zst, one disk after the other, sets.txt with their
# sizes in MiB, and the truth as the guest saw it: volumes.sha256 (whole volumes), SET.sha256 (files), report.txt.
# PARTS names the guests to run, of md, md6, raid, lvm and luks. They are killed, not shut down: several file systems are mounted and have journals that were not replayed.
# Needs root, QEMU, sfdisk, zstd. About 6 minutes under TCG.
set -eu
lab=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; guest=$(cd "$1" && pwd)
out=${2:-$lab/../crates/firn-format/tests/data/volumes}; mkdir -p "$out"; out=$(cd "$out" && pwd)
[ -f "$guest/guest-base.qcow2" ] || "$lab/make-guest.sh" "$guest"

run=$guest/run/volumes; rm -rf "$run"; mkdir -p "$run"
# Which guest makes each set, and the sizes of its disks in MiB. There they are partitions, found by label: SET-0, SET-1…
cat >"$run/all.txt" <<'SETS'
md lin 2 3 1
md r0 2 2 2
md r0alt 1 2 4 2
md r0orig 1 2 4 2
md r1 2 2
md r1old 2 2 2
md r1stale 2 2
md r1spare 2 2 2
md r1name 2 2
md r10n2 2 2 2 2
md r10n3 2 2 2 2
md r10f2 2 2 2 2
md r10f3 2 2 2 2 2
md r10o2 2 2 2 2
md r10o3 2 2 2 2 2
md r4 2 2 2 2
md r5ls 2 2 2 2
md r5rs 2 2 2
md r5pf 2 2 2 2
md6 r6la 2 2 2 2 2
md6 r6ra 2 2 2 2 2
md6 r6ls 2 2 2 2 2
md6 r6rs 2 2 2 2 2 2
md6 r6pf 2 2 2 2 2
md6 r5dirty 8 8 8
md6 r5build 4 4 4
md6 r5grow 4 4 4 4
md6 r5log 6 6 6 6
raid lvraid 18 18 18 18 18
raid lvdeg 4 4 4
lvm thin 56
lvm snap 24
luks luks1 4
luks luks2 20
luks nest 24 24
luks mdluks 20 20 20
SETS

# make PART: one guest with the sets of PART.
make() {
  local part=$1 start=2048 at set size sizes disk args=() own=$guest/run/volumes-$1
  rm -rf "$own"; mkdir -p "$own"
  sed -n "s/^$part //p" "$run/all.txt" >"$own/sets.txt"
  {
    echo "label: gpt"; echo "table-length: 256"
    while read -r set sizes; do
      at=0
      for size in $sizes; do
        echo "start=$start, size=$((size * 2048)), name=$set-$at"
        start=$((start + size * 2048)); at=$((at + 1))
      done
    done <"$own/sets.txt"
    echo "$start" >"$own/end"
  } >"$own/table"
  truncate -s $(($(cat "$own/end") / 2048 + 2))M "$own/parts.raw"
  sfdisk -q "$own/parts.raw" <"$own/table"
  cat "$lab/guest/make-volumes.sh" "$lab/guest/make-volumes-$part.sh" >"$own/script.raw"
  truncate -s 64K "$own/script.raw"; truncate -s 4M "$own/results.raw"
  for disk in parts script results; do
    args+=(-drive "file=$own/$disk.raw,format=raw,if=none,id=$disk,cache=unsafe,discard=unmap"
      -device "virtio-blk-pci,drive=$disk,serial=$disk")
  done
  "$lab/vm.sh" "$guest" "volumes-$part" "${args[@]}"
  "$lab/guest-exec.py" "$own/ga.sock" \
    "tr -d '\0' < /dev/disk/by-id/virtio-script > /tmp/make-volumes.sh; bash /tmp/make-volumes.sh" 2400 \
    >"$own/log" 2>&1 || { echo "the guest of $part failed:"; tail -n 20 "$own/log"; kill -9 "$(cat "$own/pid")"; return 1; }
  # A power cut: what the guest had not written is lost, what it had fsynced is not.
  kill -9 "$(cat "$own/pid")"
  tar -xf "$own/results.raw" -C "$out"
  start=1
  while read -r set sizes; do
    size=0; for at in $sizes; do size=$((size + at)); done
    dd if="$own/parts.raw" bs=1M skip=$start count=$size status=none | zstd -q -f -19 --long=27 -o "$out/$set.raw.zst"
    start=$((start + size))
  done <"$own/sets.txt"
  rm -rf "$own"
}
parts=${PARTS:-md md6 raid lvm luks}
jobs=""; failed=0
for part in $parts; do make "$part" & jobs="$jobs $!"; done
for job in $jobs; do wait "$job" || failed=1; done
# What these guests noted goes before what earlier ones did; of two hashes of one volume the later one counts.
for part in "$out"/volumes-*.part; do [ ! -f "$part" ] || tac "$part"; done >"$run/new"
cat "$run/new" "$out/volumes.sha256" 2>/dev/null | awk '!seen[$2]++' >"$run/all" || true
mv "$run/all" "$out/volumes.sha256"; rm -f "$out"/volumes-*.part
sed 's/^[a-z0-9]* //' "$run/all.txt" | while read -r set sizes; do
  [ ! -f "$out/$set.raw.zst" ] || echo "$set $sizes"
done >"$out/sets.txt"
rm -rf "$run"
du -sh "$out"
exit $failed
