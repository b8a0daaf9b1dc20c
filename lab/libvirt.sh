#!/bin/bash
# libvirt.sh start|stop DIR: a libvirtd of its own for tests, beside whatever this system runs. Run as root.
#
# Configuration, state, sockets and logs lie in DIR and are bound over the system's folders in a mount namespace that
# only this daemon and its QEMUs see. `start` prints the connection's URI when the daemon answers. It ends by itself 30 s
# after the last client and the last running domain are gone; `stop` kills it and its QEMUs at once.
#
# QEMU runs as root without a security driver. DIR must be short: sockets in it have paths of at most 107 bytes.
# CACHE names a folder in which what libvirt found out about QEMU is kept, so that the next start is quicker.
set -euo pipefail

if [ $# -ne 2 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$2"
cd "$2"
base=$PWD

case "$1" in
  start) ;;
  stop)
    # The daemon first, or it would see its domains crash. None of these files ends its line.
    for file in libvirtd.pid qemu/*.pid; do
      pid=$(cat "$file" 2>/dev/null) || continue
      kill -9 "$pid" 2>/dev/null || true
    done
    exit 0
    ;;
  *) exit 2 ;;
esac

if [ "$(id -u)" -ne 0 ]; then
  echo "libvirt.sh: a mount namespace needs root" >&2
  exit 1
fi
cache=${CACHE:-$base/cache}
mkdir -p etc/qemu run/qemu lib log qemu "$cache"
cat >etc/qemu.conf <<END
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
cat >etc/libvirtd.conf <<END
auth_unix_ro = "none"
auth_unix_rw = "none"
max_clients = 200
max_workers = 10
END
: >etc/libvirt.conf

# libvirtd's own folders are fixed when it is built.
mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt
# shellcheck disable=SC2016 # expanded inside
BASE=$base CACHE=$cache setsid unshare --mount --propagation private bash -c '
  set -e
  mount --bind "$BASE/etc" /etc/libvirt
  mount --bind "$BASE/run" /run/libvirt
  mount --bind "$BASE/lib" /var/lib/libvirt
  mount --bind "$CACHE" /var/cache/libvirt
  mount --bind "$BASE/log" /var/log/libvirt
  mount --bind "$BASE/qemu" /run/libvirt/qemu
  exec libvirtd --timeout 30 --config /etc/libvirt/libvirtd.conf --pid-file "$BASE/libvirtd.pid"
' >libvirtd.log 2>&1 </dev/null &
daemon=$!

uri="qemu:///system?socket=$base/run/libvirt-sock"
for _ in $(seq 300); do
  if [ -S run/libvirt-sock ] && virsh -c "$uri" uri >/dev/null 2>&1; then
    echo "$uri"
    exit 0
  fi
  kill -0 $daemon 2>/dev/null || break
  sleep 0.1
done
echo "libvirt.sh: libvirtd did not come up:" >&2
cat libvirtd.log >&2
exit 1
