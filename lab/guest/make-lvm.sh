# Runs inside the guest as root; see make-lvm-images.sh. Every disk is /dev/disk/by-id/virtio-NAME.
set -eu
exec 2>&1
d() { readlink -f "/dev/disk/by-id/virtio-$1"; }
out=/tmp/out; mkdir -p $out; : > $out/volumes.sha256
# Dirty pages stay in memory unless something is fsynced.
sysctl -q vm.dirty_writeback_centisecs=60000 vm.dirty_expire_centisecs=60000
on() { # DISK…: restricts lvm to these disks, so that groups of one name do not meet
  local list="" disk; for disk; do list="$list,$disk"; done; scope="--devices ${list#,}"
}
lv() { local command=$1; shift; $command $scope --yes -q "$@"; }
# fill VG/LV TEXT: a record every 4 KiB that says where it stands, to the end, fsynced.
fill() {
  python3 - "/dev/$1" "$2" <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.lseek(fd, 0, os.SEEK_END)
for at in range(0, size, 4096):
    os.pwrite(fd, f"{sys.argv[2]} {at}\n".encode().ljust(64, b"."), at)
os.fsync(fd)
PY
}
# note VG/LV NAME: the hash of all bytes of a volume, read from the device and not from memory.
note() {
  blockdev --flushbufs "/dev/$1"; echo 3 > /proc/sys/vm/drop_caches
  echo "$(sha256sum < "/dev/$1" | cut -d' ' -f1)  $2" >> $out/volumes.sha256
}

# --- linear, over a partition of a GPT disk and a whole disk; one volume in two pieces
sgdisk -o -n 1:2048:+1M -t 1:ef00 -c 1:boot -n 2:0:0 -t 2:8e00 -c 2:system $(d linear0) >/dev/null; partprobe $(d linear0); udevadm settle
on $(d linear0-part2) $(d linear1)
lv pvcreate $(d linear0-part2) $(d linear1); lv vgcreate -s 256k vg0 $(d linear0-part2) $(d linear1)
lv lvcreate -n first -L 4m vg0 $(d linear1); lv lvcreate -n wide -L 3m vg0 $(d linear0-part2)
lv lvcreate -n mid -l 1 vg0 $(d linear0-part2); lv lvextend -L 11m vg0/wide
for name in first wide; do fill vg0/$name $name; note vg0/$name vg0/$name; done

# --- stripes of two sizes, and a raid5 that is to be refused
on $(d stripe0) $(d stripe1) $(d stripe2)
lv pvcreate $(d stripe0) $(d stripe1) $(d stripe2); lv vgcreate -s 256k vgs $(d stripe0) $(d stripe1) $(d stripe2)
lv lvcreate -n two -i 2 -I 64 -L 6m vgs; lv lvcreate -n three -i 3 -I 4 -L 6m vgs
lv lvcreate -n five --type raid5 -i 2 -L 2m vgs
for name in two three; do fill vgs/$name $name; note vgs/$name vgs/$name; done

# --- old mirrors: log on a disk, and log in memory
on $(d mirror0) $(d mirror1) $(d mirror2)
lv pvcreate $(d mirror0) $(d mirror1) $(d mirror2); lv vgcreate -s 256k vgm $(d mirror0) $(d mirror1) $(d mirror2)
lv lvcreate -n logged --type mirror -m 1 --mirrorlog disk -L 4m vgm $(d mirror0) $(d mirror1) $(d mirror2)
lv lvcreate -n core --type mirror -m 1 --mirrorlog core -L 4m vgm $(d mirror0) $(d mirror1)
for name in logged core; do fill vgm/$name $name; done
synced() { # VG/LV
  for try in $(seq 120); do
    case "$(lvs $scope --noheadings -o copy_percent "$1" | tr -d ' ')" in 100.00) return;; esac; sleep 1
  done; echo "$1 does not get in sync"; exit 1
}
for name in logged core; do synced vgm/$name; note vgm/$name vgm/$name; done

# --- raid1: in sync; with a stale copy; with a copy that is being made when the power goes
on $(d raid0) $(d raid1)
lv pvcreate $(d raid0) $(d raid1); lv vgcreate -s 256k vgr $(d raid0) $(d raid1)
lv lvcreate -n good --type raid1 -m 1 -L 3m vgr; fill vgr/good good; synced vgr/good; note vgr/good vgr/good
lv lvcreate -n stale --type raid1 -m 1 -L 2m vgr; fill vgr/stale before; synced vgr/stale
lv lvcreate -n making -L 2m vgr $(d raid1); fill vgr/making making
lv vgchange -an vgr
# The second copy of "stale" misses what is written while its disk is away.
on $(d raid1); lv lvchange -ay --activationmode degraded vgr/stale; fill vgr/stale after; note vgr/stale vgr/stale
lv lvchange -an vgr/stale
on $(d raid0) $(d raid1)
lv lvchange -ay vgr/good vgr/making
# At 1 KiB/s it takes longer than the guest lives.
sysctl -q dev.raid.speed_limit_min=1 dev.raid.speed_limit_max=1
lv lvconvert --type raid1 -m 1 vgr/making $(d raid0)
note vgr/making vgr/making

# --- metadata at both ends, small, and changed until its text goes around the end of the ring
on $(d ring0) $(d ring1)
lv pvcreate --metadatacopies 2 --metadatasize 64k --dataalignment 128k $(d ring0)
lv pvcreate --metadatacopies 1 --metadatasize 64k --dataalignment 128k $(d ring1)
lv vgcreate -s 128k ring $(d ring0) $(d ring1); lv lvcreate -n data -L 3m ring; fill ring/data ring
wrapped() { python3 - $(d ring0) <<'PY'
import os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
head = os.pread(fd, 64, 4096)
size, = struct.unpack_from("<Q", head, 32); at, length = struct.unpack_from("<QQ", head, 40)
sys.exit(0 if at + length > size else 1)
PY
}
for change in $(seq 200); do
  lv lvchange --addtag change$change ring/data; [ "$change" -lt 3 ] || lv lvchange --deltag change$((change - 2)) ring/data
  if wrapped; then break; fi
done
wrapped || { echo "the ring did not wrap"; exit 1; }
note ring/data ring/data

# --- two groups of one name
for disk in twin0 twin1; do
  on $(d $disk); lv pvcreate $(d $disk); lv vgcreate -s 256k twin $(d $disk); lv lvcreate -n data -L 2m twin
  fill twin/data $disk; note twin/data $disk; lv vgchange -an twin
done

# --- what is listed and refused by name, and what reads as zeros or fails
on $(d other0)
lv pvcreate $(d other0); lv vgcreate -s 256k other $(d other0)
lv lvcreate -n origin -L 2m other; fill other/origin origin; note other/origin other/origin
lv lvcreate -n snap -s -L 1m other/origin; fill other/origin changed; sed -i '$d' $out/volumes.sha256; note other/origin other/origin
lv lvcreate -n pool --type thin-pool -L 4m other; lv lvcreate -n thin --type thin -V 8m --thinpool pool other
lv lvcreate -n nothing --type zero -L 1m other; note other/nothing other/nothing
lv lvcreate -n broken --type error -L 1m other
lv vgchange -an other; lv vgexport other

# --- a group that went on without a disk, which came back
on $(d gone0) $(d gone1)
lv pvcreate $(d gone0) $(d gone1); lv vgcreate -s 256k gone $(d gone0) $(d gone1)
lv lvcreate -n away -L 1m gone $(d gone1); lv lvcreate -n here -L 1m gone $(d gone0); lv lvcreate -n junk -l 1 gone $(d gone0)
for name in away here; do fill gone/$name $name; note gone/$name gone/$name; done
lv vgchange -an gone; on $(d gone0); lv lvremove gone/junk; lv vgchange -an gone

# --- a member of an array for each version of md's superblock
number=0
for disk in md090:0.90 md10:1.0 md11:1.1 md12:1.2; do
  mdadm -C /dev/md$number --metadata=${disk#*:} -l 1 -n 2 --run --name=lab$number $(d ${disk%:*}) missing
  mdadm -S /dev/md$number; number=$((number + 1))
done

# --- a machine's disk: MBR, ext4 and ext3 on LVM, both mounted and never unmounted
printf 'label: dos\nstart=2048, type=8e, bootable\n' | sfdisk -q $(d web1); partprobe $(d web1); udevadm settle
on $(d web1-part1)
lv pvcreate $(d web1-part1); lv vgcreate -s 1m system $(d web1-part1)
lv lvcreate -n root -L 32m system; lv lvcreate -n old -L 16m system
mkfs.ext4 -q -L root -J size=4 /dev/system/root; mkfs.ext3 -q -L old -b 1024 -J size=2 /dev/system/old
mkdir -p /mnt/root /mnt/old; mount /dev/system/root /mnt/root; mount /dev/system/old /mnt/old
python3 - <<'PY'
import os
def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644); os.write(fd, data); os.fsync(fd); os.close(fd)
    folder = os.path.dirname(path)
    while True:
        fd = os.open(folder, os.O_RDONLY); os.fsync(fd); os.close(fd)
        if folder in ("/mnt/root", "/mnt/old"): break
        folder = os.path.dirname(folder)
for top in ("/mnt/root", "/mnt/old"):
    for n in range(40):
        write(f"{top}/srv/fsynced/{n:02}.txt", f"file {n} of {top}, fsynced, never written back\n".encode() * (n * n + 1))
    os.rename(f"{top}/srv/fsynced/07.txt", f"{top}/srv/fsynced/renamed.txt")
    os.unlink(f"{top}/srv/fsynced/08.txt")
    write(f"{top}/srv/last.txt", b"the last file before the power cut\n")
    folder = os.open(f"{top}/srv/fsynced", os.O_RDONLY); os.fsync(folder)
root = "/mnt/root"
write(f"{root}/etc/os-release", b'NAME="firn lab"\nID=lab\nPRETTY_NAME="firn lab machine"\n')
write(f"{root}/etc/hostname", b"web1\n")
write(f"{root}/etc/hosts", b"127.0.0.1 localhost\n192.0.2.1 web1\n")
write(f"{root}/etc/fstab", b"/dev/mapper/system-root / ext4 defaults 0 1\n/dev/system/old /old ext3 defaults 0 2\n")
write(f"{root}/usr/share/doc/README", b"a guest of the lab\n")
write(f"{root}/old/.keep", b"")
write(f"{root}/etc/nginx/nginx.conf", b"worker_processes auto;\n")
PY
for name in root old; do (cd /mnt/$name && find . -type f -print0 | sort -z | xargs -0 sha256sum) > $out/$name.sha256; done

on $(d linear0-part2) $(d linear1) $(d stripe0) $(d stripe1) $(d stripe2) $(d mirror0) $(d mirror1) $(d mirror2) $(d raid0) $(d raid1) \
 $(d ring0) $(d ring1) $(d twin0) $(d other0) $(d web1-part1)
{ lvm version; pvs $scope -o +pv_uuid; vgs $scope -o +vg_uuid; lvs $scope -a -o +lv_uuid,devices; dmsetup status; } > $out/report.txt
cat $out/report.txt
tar -C $out -cf - . | dd of=$(d results) bs=64k conv=fsync status=none
