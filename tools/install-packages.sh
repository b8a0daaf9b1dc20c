#!/bin/bash
# install-packages.sh GROUP [optional]: says which Debian or Ubuntu packages of GROUP are missing and, when agreed
# (YES=1, CI=true or a prompt), installs them.
#
#   build   to build firn
#   try     what `make try` uses beside it
#   test    the tools that the tests take as ground truth
#   bench   the peers that benches/ runs beside firn, and what makes the guests for it
#
# Exit code 0 if all are there in the end. With `optional` also if not: the caller goes on without them.
set -euo pipefail
. "$(dirname "$0")/ask.sh"

build="gcc libc6-dev make git curl ca-certificates"
try="e2fsprogs qemu-utils"
test="$try util-linux mount fdisk gdisk parted xfsprogs btrfs-progs attr acl nbdkit openssl"
test="$test python3 python3-cryptography python3-zstandard python3-argon2"
test="$test python3-libvhdi lvm2 cryptsetup-bin dosfstools ntfs-3g virtnbdbackup"
bench="$try fdisk mmdebstrap python3 restic borgbackup time"

usage() {
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

case "${1:-}" in
  build) packages=$build ;;
  try) packages="$build $try" ;;
  test) packages="$build $test" ;;
  bench) packages="$build $bench" ;;
  *) usage ;;
esac
optional=0
case "${2:-}" in
  "") ;;
  optional) optional=1 ;;
  *) usage ;;
esac

# The end for a machine on which something stays missing.
without() {
  echo "$1" >&2
  if [ $optional -eq 1 ]; then
    echo "Going on without them; what needs them is skipped and says so." >&2
    exit 0
  fi
  exit 1
}

if ! command -v dpkg-query >/dev/null; then
  optional=1
  without "This is not Debian or Ubuntu. Please see to it that the like of these is installed: $packages"
fi

missing=""
for package in $packages; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  if [ "$status" != installed ]; then
    missing="$missing $package"
  fi
done
if [ -z "$missing" ]; then
  exit 0
fi

echo "Packages that are missing for '$1':$missing" >&2
echo "To be run as root: apt-get install --no-install-recommends$missing" >&2
if ! ask "Install them now?"; then
  without "Not installed:$missing"
fi
# shellcheck disable=SC2086 # a list of names
apt_install $missing >&2 || without "Could not be installed:$missing"
