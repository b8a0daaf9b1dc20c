#!/bin/bash
# setup-qemu.sh: qemu-system-x86, libvirt, and the tools with which the lab makes guests and layered images. Run as root.
#
# qemu-system must be of the same version as qemu-utils. Where qemu-utils comes from the backports suite (as on
# some Debian 12 machines), that suite is read from a list of its own and only QEMU is taken from it; the system's
# own sources stay as they are. Everywhere else this is a plain installation. Where all is there, nothing is done.
set -euo pipefail
. "$(dirname "$0")/../tools/ask.sh"
. "$(dirname "$0")/../tools/mirror.sh"

tools="libnbd-bin nbdkit socat mmdebstrap lvm2 mdadm cryptsetup-bin ntfs-3g dosfstools xfsprogs btrfs-progs gdisk fdisk python3"
# With an sshd and nc for libvirt on another host.
libvirt="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients openssh-server openssh-client netcat-openbsd"
qemu="qemu-utils qemu-system-x86 qemu-system-common qemu-system-data"

if ! command -v apt-get >/dev/null; then
  echo "setup-qemu.sh: this is not Debian or Ubuntu; install the like of: $qemu $libvirt $tools" >&2
  exit 1
fi
missing=""
for package in $qemu $libvirt $tools; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
    missing="$missing $package"
  fi
done
if [ -z "$missing" ]; then
  exit 0
fi
echo "To be installed:$missing" >&2
ask "Install them now?" || exit 1

installed=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
as_root apt-get -q -o DPkg::Lock::Timeout=600 update >&2
if [ -z "$installed" ] || apt-cache madison qemu-system-x86 | grep -qF " $installed "; then
  # shellcheck disable=SC2086 # lists of names
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 \
    install -y --no-install-recommends $qemu $libvirt $tools >&2
  # libvirtd does not start without the user that Debian's libvirt-daemon-system makes, though the lab's runs QEMU as root.
  getent passwd libvirt-qemu >/dev/null ||
    as_root useradd --system --user-group --no-create-home --shell /usr/sbin/nologin libvirt-qemu
  exit 0
fi

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")-backports
mirror=$(debian_mirror)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/parts" "$work/lists/partial"
if [ -d /etc/apt/sources.list.d ]; then cp -r /etc/apt/sources.list.d/. "$work/parts"; fi
if [ -s /etc/apt/sources.list ]; then cp /etc/apt/sources.list "$work/parts/system.list"; fi
: >"$work/empty.list"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/parts/backports.list"
# apt fetches as a user of its own, who has to get at the lists.
chmod -R a+rX "$work"
with_backports=(-q -o DPkg::Lock::Timeout=600 -o "Dir::Etc::sourcelist=$work/empty.list"
  -o "Dir::Etc::sourceparts=$work/parts" -o "Dir::State::lists=$work/lists")
as_root apt-get "${with_backports[@]}" update >&2
# This QEMU needs the firmware of its own suite.
versioned=""
for package in $qemu; do
  versioned="$versioned $package=$installed"
done
# libvirt of the same suite, with the parts of it that it insists on.
for package in $libvirt libvirt0 libvirt-common libvirt-daemon-common libvirt-daemon-log; do
  case "$package" in
    libvirt*) versioned="$versioned $package/$suite" ;;
    *) versioned="$versioned $package" ;;
  esac
done
# shellcheck disable=SC2086 # lists of names
as_root env DEBIAN_FRONTEND=noninteractive apt-get "${with_backports[@]}" \
  install -y --no-install-recommends $versioned "seabios/$suite" $tools >&2
