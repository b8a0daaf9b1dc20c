# Runs inside the guest as root; see make-volume-images.sh, which puts the make-volumes-*.sh together in this order.
# Every disk is the partition with its name as label.
set -eu
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; cat /proc/mdstat; dmesg | tail -5' ERR; set -E
exec 2>&1
out=/tmp/out; mkdir -p $out; : > $out/volumes.sha256
# Dirty pages stay in memory unless something is fsynced.
sysctl -q vm.dirty_writeback_centisecs=60000 vm.dirty_expire_centisecs=60000
udevadm settle
p() { readlink -f "/dev/disk/by-partlabel/$1"; }
all() { # SET: its disks
  local at=0; while [ -e "/dev/disk/by-partlabel/$1-$at" ]; do p "$1-$at"; at=$((at + 1)); done
}
# fill DEVICE TEXT [FROM TO]: a record in each sector that says where it stands, from byte FROM to TO, fsynced.
fill() {
  python3 - "$@" <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.lseek(fd, 0, os.SEEK_END)
start, end = (int(sys.argv[3]), int(sys.argv[4])) if len(sys.argv) > 3 else (0, size)
step = 1 << 20
for at in range(start, end, step):
    stop = min(at + step, end)
    os.pwrite(fd, b"".join(f"{sys.argv[2]} {n // 512:x}\n".encode().ljust(512, b"\0") for n in range(at, stop, 512)), at)
os.fsync(fd)
PY
}
# note DEVICE NAME: the hash of all bytes of a volume, read from the device and not from memory.
note() {
  blockdev --flushbufs "$1"; echo 3 > /proc/sys/vm/drop_caches
  echo "$(sha256sum < "$1" | cut -d' ' -f1)  $2" >> $out/volumes.sha256
}
# tree FOLDER: files that are fsynced and never written back, in FOLDER and folders below it.
tree() {
  python3 - "$1" <<'PY'
import os, sys
top = sys.argv[1]
def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644); os.write(fd, data); os.fsync(fd); os.close(fd)
    folder = os.path.dirname(path)
    while True:
        fd = os.open(folder, os.O_RDONLY); os.fsync(fd); os.close(fd)
        if folder == top: break
        folder = os.path.dirname(folder)
for n in range(12):
    write(f"{top}/srv/{n:02}.txt", f"file {n} of {top}, fsynced, never written back\n".encode() * (n * n * 3 + 1))
os.rename(f"{top}/srv/07.txt", f"{top}/srv/renamed.txt")
write(f"{top}/etc/os-release", b'NAME="firn lab"\nID=lab\n')
folder = os.open(f"{top}/srv", os.O_RDONLY); os.fsync(folder)
PY
}
# ext4 DEVICE SET: a file system with files that only its journal knows, mounted, and what is in it.
ext4() {
  mkfs.ext4 -q -b 1024 -E lazy_itable_init=0 -J size=1 -O ^resize_inode -N 256 -L "$2" "$1"
  mkdir -p "/mnt/$2"; mount "$1" "/mnt/$2"; tree "/mnt/$2"
  (cd "/mnt/$2" && find . -type f -print0 | sort -z | xargs -0 sha256sum) > "$out/$2.sha256"
}

# --- md: every level and layout
settled() { # DEVICE: no resync or rebuild left
  local try; for try in $(seq 300); do
    case "$(cat "/sys/block/${1#/dev/}/md/sync_action" 2>/dev/null || echo idle)" in idle) return;; esac; sleep 0.2
  done; echo "$1 does not settle"; cat /proc/mdstat; exit 1
}
number=0
# array SET LEVEL VERSION [OPTIONS]: makes the next array of all disks of SET, filled and settled, as $md.
array() {
  local set=$1 level=$2 version=$3; shift 3
  local disks; disks=$(all "$set")
  md=/dev/md$number; number=$((number + 1))
  mdadm -C $md --run --force -R -e "$version" --homehost=lab -l "$level" -n "$(echo "$disks" | wc -w)" "$@" $disks >/dev/null
  fill $md "$set"; settled $md
}
finish() { note "$md" "$1"; mdadm -q -S "$md"; }
small="--data-offset=128K"
one() { array "$@" && finish "$1" || echo "FAILED: $1"; }
sysctl -q dev.raid.speed_limit_min=100000 dev.raid.speed_limit_max=200000
for module in linear raid0 raid1 raid10 raid456; do modprobe $module; done
array lin linear 1.2 $small --rounding=64; finish lin
one r0 0 1.2 $small -c 16
one r0alt 0 1.2 $small -c 4 --layout=alternate
one r0orig 0 1.2 $small -c 4 --layout=original
one r1 1 1.0
one r1old 1 0.90
array r1stale 1 1.2 $small; mdadm -q -S $md
mdadm -q -A --run $md $(p r1stale-0); fill $md after; finish r1stale
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run -e 1.2 $small --homehost=lab -l 1 -n 2 -x 1 $(all r1spare) >/dev/null; fill $md r1spare; settled $md; finish r1spare
md=/dev/md/data
mdadm -C $md --run -e 1.1 $small --homehost=web --name=data -l 1 -n 2 $(all r1name) >/dev/null
md=$(readlink -f $md); fill $md r1name; settled $md; finish r1name
one r10n2 10 1.2 $small -c 4 --layout=n2
one r10n2odd 10 1.0 -c 16 --layout=n2
one r10n3 10 1.2 $small -c 16 --layout=n3
one r10f2 10 1.2 $small -c 4 --layout=f2
one r10f3 10 1.2 $small -c 16 --layout=f3
one r10o2 10 1.2 $small -c 4 --layout=o2
one r10o3 10 1.2 $small -c 16 --layout=o3
one r4 4 1.2 $small -c 16
one r5la 5 1.1 $small -c 4 --layout=la
one r5ra 5 1.2 $small -c 16 --layout=ra
one r5ls 5 0.90 -c 64 --layout=ls
one r5rs 5 1.0 -c 4 --layout=rs
one r5pf 5 1.2 $small -c 4 --layout=parity-first
one r5pl 5 1.2 $small -c 4 --layout=parity-last
one r6la 6 1.2 $small -c 4 --layout=la
one r6ra 6 1.2 $small -c 16 --layout=ra
one r6ls 6 1.2 $small -c 4 --layout=ls
one r6rs 6 1.0 -c 4 --layout=rs
one r6pf 6 1.2 $small -c 4 --layout=parity-first
one r6pl 6 1.2 $small -c 4 --layout=parity-last
one r6zr 6 1.2 $small -c 4 --layout=ddf-zero-restart
one r6nr 6 1.2 $small -c 4 --layout=ddf-N-restart
one r6nc 6 1.2 $small -c 4 --layout=ddf-N-continue
one r6la6 6 1.2 $small -c 4 --layout=left-asymmetric-6
one r6ra6 6 1.2 $small -c 4 --layout=right-asymmetric-6
one r6ls6 6 1.2 $small -c 4 --layout=left-symmetric-6
one r6rs6 6 1.2 $small -c 4 --layout=right-symmetric-6
one r6pf6 6 1.2 $small -c 4 --layout=parity-first-6
# With a journal device, which is refused.
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run -e 1.2 $small --homehost=lab -l 5 -n 3 -c 16 --write-journal $(p r5log-3) $(p r5log-0) $(p r5log-1) $(p r5log-2) >/dev/null
fill $md r5log; settled $md; mdadm -q -S $md
# Mounted and running when the power goes.
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run --force -e 1.2 $small --homehost=lab -l 5 -n 3 -c 16 $(all r5dirty) >/dev/null; settled $md
ext4 $md r5dirty
# A disk that is being rebuilt, and a disk that is being added; at 1 KiB/s both take longer than the guest lives.
array r5build 5 1.2 $small -c 16; note $md r5build
building=$md; mdadm -q $md --fail $(p r5build-1); mdadm -q $md --remove $(p r5build-1); mdadm -q --zero-superblock $(p r5build-1)
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run --force -e 1.2 --data-offset=1M --homehost=lab -l 5 -n 3 -c 16 $(p r5grow-0) $(p r5grow-1) $(p r5grow-2) >/dev/null
fill $md r5grow; settled $md; note $md r5grow
sysctl -q dev.raid.speed_limit_min=1 dev.raid.speed_limit_max=1
mdadm -q $building --add $(p r5build-1)
mdadm -q $md --add $(p r5grow-3); mdadm -q --grow $md -n 4 || echo "r5grow is not reshaping"
cat /proc/mdstat

# --- LVM: raid of every kind
on() { # DISK…: restricts lvm to these disks
  local list="" disk; for disk; do list="$list,$disk"; done; scope="--devices ${list#,}"
}
lv() { local command=$1; shift; $command $scope --yes -q "$@" >/dev/null; }
synced() { # VG/LV
  local try; for try in $(seq 300); do
    case "$(lvs $scope --noheadings -o copy_percent "$1" | tr -d ' ')" in 100.00) return;; esac; sleep 0.3
  done; echo "$1 does not get in sync"; exit 1
}
sysctl -q dev.raid.speed_limit_min=100000 dev.raid.speed_limit_max=200000
on $(all lvraid)
lv pvcreate --dataalignment 128k $(all lvraid); lv vgcreate -s 128k lvraid $(all lvraid)
make() { # NAME OPTIONS
  local name=$1; shift
  lv lvcreate -n "$name" -L 1152k "$@" lvraid; fill /dev/lvraid/"$name" "$name"
}
make zero --type raid0 -i 3 -I 4; make zerometa --type raid0_meta -i 2 -I 16
make one --type raid1 -m 2; make ten --type raid10 -i 2 -m 1 -I 4
for kind in raid4 raid5_n raid5_la raid5_ra raid5_ls raid5_rs; do make $kind --type $kind -i 3 -I 4; done
for kind in raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_la_6 raid6_ra_6 raid6_ls_6 raid6_rs_6; do make $kind --type $kind -i 3 -I 4; done
for name in one ten raid4 raid5_n raid5_la raid5_ra raid5_ls raid5_rs raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_la_6 raid6_ra_6 raid6_ls_6 raid6_rs_6; do
  synced lvraid/$name
done
for name in zero zerometa one ten raid4 raid5_n raid5_la raid5_ra raid5_ls raid5_rs raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_la_6 raid6_ra_6 raid6_ls_6 raid6_rs_6; do
  note /dev/lvraid/$name lvraid/$name
done
lvs $scope -a -o +devices,stripes,raid_mismatch_count lvraid > $out/report.txt
dmsetup table >> $out/report.txt
lv vgchange -an lvraid
# Written to while a disk was away; and whole, mounted and running when the power goes.
on $(all lvdeg)
lv pvcreate --dataalignment 128k $(all lvdeg); lv vgcreate -s 128k lvdeg $(all lvdeg)
lv lvcreate -n five --type raid5 -i 2 -I 4 -L 1m lvdeg; fill /dev/lvdeg/five before; synced lvdeg/five
lv lvcreate -n busy --type raid5 -i 2 -I 4 -L 1m lvdeg; fill /dev/lvdeg/busy busy; synced lvdeg/busy
lv vgchange -an lvdeg
on $(p lvdeg-0) $(p lvdeg-2); lv lvchange -ay --activationmode degraded lvdeg/five
fill /dev/lvdeg/five after; note /dev/lvdeg/five lvdeg/five; lv lvchange -an lvdeg/five
on $(all lvdeg); lv lvchange -ay lvdeg/busy; fill /dev/lvdeg/busy again 262144 524288; note /dev/lvdeg/busy lvdeg/busy
