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
  fill $md one; settled $md
}
finish() { note "$md" "$1"; mdadm -q -S "$md"; }
small="--data-offset=128K"
one() { array "$@" && finish "$1" || echo "FAILED: $1"; }
sysctl -q dev.raid.speed_limit_min=100000 dev.raid.speed_limit_max=200000
for module in linear raid0 raid1 raid10 raid456; do modprobe $module; done
one r6la 6 1.2 $small -c 4 --layout=la
one r6ra 6 1.2 $small -c 16 --layout=ra
one r6ls 6 1.2 $small -c 4 --layout=ls
one r6rs 6 1.0 -c 4 --layout=rs
one r6pf 6 1.2 $small -c 4 --layout=parity-first
# With a journal device, which is refused.
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run -e 1.2 $small --homehost=lab -l 5 -n 3 -c 16 --write-journal $(p r5log-3) $(p r5log-0) $(p r5log-1) $(p r5log-2) >/dev/null
fill $md one; settled $md; mdadm -q -S $md
# Mounted and running when the power goes.
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run --force -e 1.2 $small --homehost=lab -l 5 -n 3 -c 16 $(all r5dirty) >/dev/null; settled $md
ext4 $md r5dirty
# A disk that is being rebuilt, and a disk that is being added; at 1 KiB/s both take longer than the guest lives.
array r5build 5 1.2 $small -c 16; note $md r5build
building=$md; mdadm -q $md --fail $(p r5build-1); mdadm -q $md --remove $(p r5build-1); mdadm -q --zero-superblock $(p r5build-1)
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run --force -e 1.2 --data-offset=1M --homehost=lab -l 5 -n 3 -c 16 $(p r5grow-0) $(p r5grow-1) $(p r5grow-2) >/dev/null
fill $md one; settled $md; note $md r5grow
sysctl -q dev.raid.speed_limit_min=1 dev.raid.speed_limit_max=1
mdadm -q $building --add $(p r5build-1)
mdadm -q $md --add $(p r5grow-3); mdadm -q --grow $md -n 4 || echo "r5grow is not reshaping"
cat /proc/mdstat

cat /proc/mdstat >> $out/report.txt
results md6
