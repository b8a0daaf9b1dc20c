#!/bin/bash
# make-bench-images.sh DIR: the guests that benches/ measures with, as raw images in DIR.
#
#   guest-a.raw    a Debian web server, installed by its own package manager onto ext4 in a GPT partition
#   guest-b.raw    a Debian database server, installed separately with another set of packages
#   guest-a2.raw   guest-a.raw some days later: upgraded packages, grown logs, changed database pages, new files
#
# Each is 2 GiB of virtual disk with about 1.1 to 1.4 GiB of data, trimmed as fstrim.timer would have left it.
# Needs root (loop mounts, bootstrap), mmdebstrap, e2fsprogs, fdisk and python3; takes about 3 minutes and 5 GiB.
# The suite and mirror are those of the machine, or those of SUITE and MIRROR. An image that exists is kept.
set -euo pipefail
. "$(dirname "$0")/../tools/mirror.sh"

if [ $# -ne 1 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "make-bench-images.sh: needs root for loop mounts and the bootstrap; run it with sudo" >&2
  exit 1
fi
# A mount namespace of our own: nothing stays mounted after a failure, and the bootstrap cannot touch the host's /dev.
if [ "${IN_NAMESPACE:-}" != 1 ]; then
  IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
mirror=$(debian_mirror)
size=2G
first=$((1024 * 1024)) # bytes to the partition, where every installer puts it
base=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,openssh-server,locales,man-db,vim,less,curl,ca-certificates,rsyslog,cron,iproute2,apt-utils
set_a=$base,nginx,python3,python3-pip,python3-numpy,python3-cryptography,php-fpm,php-mysql,build-essential,certbot
set_b=$base,postgresql,git,default-jre-headless,redis-server,python3,rsync,snmpd

# mount_guest IMAGE: its partition on ./mnt
mount_guest() {
  mkdir -p mnt
  mount -o "loop,offset=$first" "$1" mnt
}

unmount_guest() {
  # What was deleted is free for a trim only after the journal has been committed.
  sync --file-system mnt
  fstrim mnt
  umount mnt
}

# install NAME PACKAGES: a guest from nothing
install() {
  if [ -e "$1.raw" ]; then
    return
  fi
  echo "installing $1" >&2
  rm -f "$1.part"
  truncate -s "$size" "$1.part"
  printf 'label: gpt\nstart=%dKiB, type=linux\n' $((first / 1024)) | sfdisk -q "$1.part"
  mkfs.ext4 -q -F -L "$1" -E "offset=$first" "$1.part" $((2 * 1024 * 1024 - 2 * first / 1024))k
  mount_guest "$1.part"
  mmdebstrap --quiet --mode=root --variant=important --skip=cleanup/apt/lists --include="$2" "$suite" mnt "$mirror"
  echo "LABEL=$1 / ext4 defaults,noatime 0 1" >mnt/etc/fstab
  echo "$1" >mnt/etc/hostname
  unmount_guest
  mv "$1.part" "$1.raw"
}

install guest-a "$set_a"
install guest-b "$set_b"

if [ ! -e guest-a2.raw ]; then
  echo "changing guest-a into guest-a2" >&2
  cp --sparse=always guest-a.raw guest-a2.part
  mount_guest guest-a2.part
  python3 "$here/age-guest.py" mnt
  unmount_guest
  mv guest-a2.part guest-a2.raw
fi
rmdir mnt
du --block-size=1M guest-*.raw
