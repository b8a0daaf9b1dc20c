# Runs inside the guest as root, before one of make-volumes-*.sh; see make-volume-images.sh.
# Every disk is the partition with its name as label.
set -eu
trap 'echo "failed: line $LINENO: $BASH_COMMAND"; cat /proc/mdstat; dmesg | tail -5' ERR; set -E
exec 2>&1
out=/tmp/out; mkdir -p $out; : > $out/volumes.sha256; : > $out/report.txt
# Dirty pages stay in memory unless something is fsynced.
sysctl -q vm.dirty_writeback_centisecs=60000 vm.dirty_expire_centisecs=60000
udevadm settle
# Links to volumes are made by the tools themselves from here on: with rules in between all takes several times as long.
systemctl -q stop systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service
export MDADM_NO_UDEV=1 DM_DISABLE_UDEV=1
p() { readlink -f "/dev/disk/by-partlabel/$1"; }
all() { # SET: its disks
  local at=0; while [ -e "/dev/disk/by-partlabel/$1-$at" ]; do p "$1-$at"; at=$((at + 1)); done
}
# A record in each sector that says where it stands, for "fill" to take from; another one beside it.
for text in one other; do
  python3 -c 'import sys
sys.stdout.buffer.write(b"".join(f"{sys.argv[1]} {n:x}\n".encode().ljust(512, b"\0") for n in range(24576)))' $text > /tmp/$text
done
# fill DEVICE one|other [FROM TO]: records from byte FROM to TO, to its end without, fsynced.
fill() {
  local from=${3:-0} to=${4:-$(blockdev --getsize64 "$1")}
  dd if=/tmp/"$2" of="$1" bs=64k iflag=skip_bytes,count_bytes oflag=seek_bytes skip=$((from % 8388608)) seek="$from" count=$((to - from)) conv=fsync,notrunc status=none
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
# ext4 DEVICE SET [BLOCK JOURNAL]: a file system with files that only its journal knows, mounted, and what is in it.
ext4() {
  mkfs.ext4 -q -b "${3:-1024}" -E lazy_itable_init=0,lazy_journal_init=1 -J "size=${4:-1}" -O ^resize_inode -N 256 -L "$2" "$1"
  mkdir -p "/mnt/$2"; mount "$1" "/mnt/$2"; tree "/mnt/$2"
  (cd "/mnt/$2" && find . -type f -print0 | sort -z | xargs -0 sha256sum) > "$out/$2.sha256"
}

on() { # DISK…: restricts lvm to these disks
  local list="" disk; for disk; do list="$list,$disk"; done; scope="--devices ${list#,}"
}
lv() { local command=$1; shift; $command $scope --yes -q "$@" >/dev/null; }
synced() { # VG/LV
  local try; for try in $(seq 300); do
    case "$(lvs $scope --noheadings -o copy_percent "$1" | tr -d ' ')" in 100.00) return;; esac; sleep 0.3
  done; echo "$1 does not get in sync"; exit 1
}
# results NAME: hands over what was noted.
results() {
  mv $out/volumes.sha256 "$out/volumes-$1.part"; mv $out/report.txt "$out/report-$1.txt"
  tar -C $out -cf - . | dd of=/dev/disk/by-id/virtio-results bs=64k conv=fsync status=none
}
