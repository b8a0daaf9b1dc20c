#!/bin/bash
# vm.sh DIR NAME [QEMU ARGUMENTS...]: boots the guest that make-guest.sh made in DIR, in the background.
#
# It gets two virtio disks: vda, its root as an overlay on guest-base.qcow2, and vdb, 4 GiB of its own; further ones by
# QEMU ARGUMENTS. In DIR/run/NAME lie qmp.sock (QMP), ga.sock (guest agent), con.sock and con.log (console) and pid.
#
# Without KVM (the default, ACCEL=tcg) the agent answers 18 to 26 s after the start. QEMU changes to / when it goes to
# the background: every path given over QMP must be absolute. Stop it by `qmp.py DIR/run/NAME/qmp.sock quit`, or as a
# power cut by kill -9 of the pid.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
cd "$1"
base=$PWD
name=$2
shift 2
run=$base/run/$name
mkdir -p "$run"
[ -f "$run/root.qcow2" ] || qemu-img create -q -f qcow2 -b "$base/guest-base.qcow2" -F qcow2 "$run/root.qcow2"
[ -f "$run/data.qcow2" ] || qemu-img create -q -f qcow2 "$run/data.qcow2" 4G

disk() { # NODE FILE: a qcow2 disk that passes discards on
  echo "-blockdev driver=qcow2,node-name=$1,discard=unmap,file.driver=file,file.filename=$2,file.discard=unmap" \
    "-device virtio-blk-pci,drive=$1,serial=$1"
}

# shellcheck disable=SC2046 # disk() gives words
exec qemu-system-x86_64 -name "$name" -machine q35 -accel "${ACCEL:-tcg,thread=multi,tb-size=256}" -m 1024 -smp 1 \
  -nodefaults -display none -no-reboot \
  -kernel vmlinuz -initrd initrd.img -append "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet" \
  $(disk root0 "$run/root.qcow2") $(disk data0 "$run/data.qcow2") \
  -device virtio-serial-pci -chardev socket,id=ga,"path=$run/ga.sock,server=on,wait=off" \
  -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0 \
  -chardev socket,id=con,"path=$run/con.sock,server=on,wait=off,logfile=$run/con.log" -serial chardev:con \
  -device virtio-rng-pci -qmp "unix:$run/qmp.sock,server=on,wait=off" -pidfile "$run/pid" -daemonize "$@"
