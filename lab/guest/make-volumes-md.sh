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
array lin linear 1.2 $small --rounding=64; finish lin
one r0 0 1.2 $small -c 16
one r0alt 0 1.2 $small -c 4 --layout=alternate
one r0orig 0 1.2 $small -c 4 --layout=original
one r1 1 1.0
one r1old 1 0.90
array r1stale 1 1.2 $small; mdadm -q -S $md
mdadm -q -A --run $md $(p r1stale-0); fill $md other; finish r1stale
md=/dev/md$number; number=$((number + 1))
mdadm -C $md --run -e 1.2 $small --homehost=lab -l 1 -n 2 -x 1 $(all r1spare) >/dev/null; fill $md one; settled $md; finish r1spare
md=/dev/md60
mdadm -C $md --run -e 1.1 $small --homehost=web --name=data -l 1 -n 2 $(all r1name) >/dev/null
fill $md one; settled $md; finish r1name
one r10n2 10 1.2 $small -c 4 --layout=n2
one r10n3 10 1.2 $small -c 16 --layout=n3
one r10f2 10 1.2 $small -c 4 --layout=f2
one r10f3 10 1.2 $small -c 16 --layout=f3
one r10o2 10 1.2 $small -c 4 --layout=o2
one r10o3 10 1.2 $small -c 16 --layout=o3
one r4 4 1.2 $small -c 16
one r5ls 5 0.90 -c 64 --layout=ls
one r5rs 5 1.0 -c 4 --layout=rs
one r5pf 5 1.2 $small -c 4 --layout=parity-first
cat /proc/mdstat >> $out/report.txt
results md
