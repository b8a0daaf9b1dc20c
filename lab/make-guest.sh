#!/bin/bash
# make-guest.sh DIR: a small Debian guest in DIR, for vm.sh to boot: guest-base.qcow2 (2 GiB of ext4 without a
# partition table), vmlinuz and initrd.img. It has the QEMU guest agent and what makes layered volumes. Run as
# root after setup-qemu.sh; takes about 75 s and 450 MB. SUITE and MIRROR choose the Debian.
set -euo pipefail
. "$(dirname "$0")/../tools/mirror.sh"

if [ $# -ne 1 ]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "make-guest.sh: needs root for the bootstrap; run it with sudo" >&2
  exit 1
fi
# A mount namespace of our own keeps the host's /dev out of the way of the bootstrap.
if [ "${IN_NAMESPACE:-}" != 1 ]; then
  IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi

mkdir -p "$1"
cd "$1"
suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
mirror=$(debian_mirror)
packages=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,qemu-guest-agent,lvm2,thin-provisioning-tools
packages=$packages,mdadm,cryptsetup-bin,xfsprogs,ntfs-3g,btrfs-progs,dosfstools,e2fsprogs,gdisk,fdisk,parted
packages=$packages,kmod,iproute2,openssh-server,python3-minimal,fio

rm -rf guest-root guest-base.raw
mmdebstrap --variant=minbase --mode=root --include="$packages" "$suite" guest-root "$mirror"
echo "/dev/vda / ext4 defaults,noatime 0 1" >guest-root/etc/fstab
cp guest-root/boot/vmlinuz-* vmlinuz
cp guest-root/boot/initrd.img-* initrd.img
truncate -s 2G guest-base.raw
mkfs.ext4 -q -F -L guestroot -d guest-root guest-base.raw
qemu-img convert -O qcow2 guest-base.raw guest-base.qcow2
rm -rf guest-root guest-base.raw
