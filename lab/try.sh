#!/bin/bash
# try.sh: firn's main job on a real disk image, told step by step. `make try` builds firn and calls this.
#
# Everything is made in ./try (TRY_DIR), needs no root, and stays there to be looked at. FIRN names the program.
# The last step reads the disk of a machine that lost its power: LVM on a partition in a VMDK, with journals not replayed.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
program=$(realpath "${FIRN:-$root/target/release/firn}")
work=$(realpath -m "${TRY_DIR:-$root/try}")
sample=$root/crates/firn-format/tests/data/lvm/web1.vmdk
sample_hashes=$root/crates/firn-format/tests/data/lvm/root.sha256 # taken in the machine before its power went

bold="" plain=""
if [ -t 1 ]; then
  bold=$'\033[1m' plain=$'\033[0m'
fi

say() {
  printf '\n%s%s%s\n' "$bold" "$*" "$plain"
}

# run COMMAND...: shows it as one would type it, and runs it.
run() {
  printf "    $ %s\n" "$*" >&2
  "$@"
}

fail() {
  echo "try: $*" >&2
  exit 1
}

firn() {
  "$program" "$@"
}

for tool in mkfs.ext4 debugfs qemu-img; do
  command -v "$tool" >/dev/null || fail "$tool is missing; run: make packages-try YES=1"
done
[ -x "$program" ] || fail "there is no $program; run: make build"

# Only a folder that an earlier run has made is emptied.
if [ -e "$work" ] && [ ! -e "$work/.made-by-firn-try" ]; then
  fail "$work is there but was not made by this; remove it or name another folder in TRY_DIR"
fi
rm -rf "$work"
mkdir -p "$work"
touch "$work/.made-by-firn-try"
cd "$work"
export FIRN_POOL=$work/pool

make_disk() {
  local folder limit=200000 # KiB
  mkdir -p tree/etc tree/var/log
  for folder in /usr/share/doc /usr/share/man /usr/share/locale /usr/share/perl /usr/share/zoneinfo /usr/lib/python3; do
    [ -d "$folder" ] || continue
    mkdir -p "tree$folder"
    # What this user may not read stays behind.
    cp -r --preserve=mode,timestamps,links "$folder/." "tree$folder" 2>/dev/null || true
    [ "$(du -sk tree | cut -f 1)" -lt $limit ] || break
  done
  printf 'server { listen 80; root /srv/www; }\n' >tree/etc/web.conf
  for number in $(seq 20000); do echo "line $number: all is well"; done >tree/var/log/web.log
  chmod -R u+rwX tree
  truncate -s 1G disk.raw
  mkfs.ext4 -q -F -L web1 -E root_owner=0:0 -d tree disk.raw
  echo "    $(find tree -type f | wc -l) files, $(du -sh tree | cut -f 1), in a disk of 1 GiB"
  rm -rf tree
}

change_disk() {
  printf 'server { listen 8080; root /srv/wrong; }\n' >web.conf
  for number in $(seq 30000); do echo "line $number: out of memory"; done >web.log
  head -c 3000000 /dev/urandom >upload.bin
  cat >changes <<END
rm /etc/web.conf
write web.conf /etc/web.conf
rm /var/log/web.log
mkdir /srv
write upload.bin /srv/upload.bin
write web.log /srv/web.log
END
  debugfs -w -f changes disk.raw >debugfs.log 2>&1 || fail "debugfs could not change the disk: $(cat debugfs.log)"
  rm changes web.conf web.log upload.bin
}

say "1. A disk: a real ext4 file system full of files of this machine"
make_disk

say "2. A pool, where snapshots are kept (without a password, for this trial only)"
run firn init "$FIRN_POOL" --no-password

say "3. The first snapshot of the machine web1"
run firn snap web1 vda=disk.raw
cp --sparse=always disk.raw as-it-was.raw

say "4. Things go wrong: a configuration is overwritten, a log is lost, 3 MB of new files arrive"
change_disk

say "5. The second snapshot: only what is new is stored"
run firn snap web1 vda=disk.raw

say "6. What is there now"
run firn list

say "7. One file as it was before, without restoring the disk"
run firn cat web1@first:/etc/web.conf
run firn cat web1@latest:/etc/web.conf
run firn cp web1@first:/var/log/web.log lost-and-found.log
[ "$(wc -l <lost-and-found.log)" -eq 20000 ] || fail "the lost log did not come back whole"

say "8. The first disk back as a VMDK, the second as a qcow2"
run firn restore web1@first first.vmdk
run firn restore web1@latest second.qcow2

say "9. qemu-img, which is none of ours, compares them with the originals, block by block"
run qemu-img compare -f vmdk -F raw first.vmdk as-it-was.raw
run qemu-img compare -f qcow2 -F raw second.qcow2 disk.raw
qemu-img compare -q -f vmdk -F qcow2 first.vmdk second.qcow2 && fail "the two snapshots are the same, and must not be"

say "10. Every byte of the pool is read and checked"
run firn verify

say "11. And a machine that lost its power: LVM on a partition in a VMDK, the newest files only in its journal"
cp "$sample" lost-power.vmdk
run firn look lost-power.vmdk
run firn ls lost-power.vmdk:/srv
run firn cp lost-power.vmdk:/srv/last.txt .
echo "    Every file of it, against the checksums that the machine itself took before its power went:"
run firn hash lost-power.vmdk#system/root >lost-power.sha256
cmp lost-power.sha256 "$sample_hashes" || fail "what came out of the journal is not what the machine had written"
echo "    $(wc -l <lost-power.sha256) files, all as they were. Without the journal there would be none of them:"
run firn ls -R --no-replay lost-power.vmdk#system/root:/

say "All of it worked."
cat <<END
Two snapshots of one machine lie in $FIRN_POOL ($(du -sh "$FIRN_POOL" | cut -f 1)); both came back bit for bit, as other
image formats than they went in, and single files came back without mounting anything and without root.

What to try next:
    export FIRN_POOL=$FIRN_POOL
    $program look $work/disk.raw              # what is in a disk; any image of yours will do
    $program ls -l web1@first:/etc            # files of a snapshot
    $program snap mine vda=YOUR-DISK.qcow2    # a machine of your own
    $program --help
END
