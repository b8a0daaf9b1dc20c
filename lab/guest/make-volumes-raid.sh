for module in raid0 raid1 raid10 raid456 dm-raid; do modprobe $module; done
# --- LVM: raid of every kind
sysctl -q dev.raid.speed_limit_min=100000 dev.raid.speed_limit_max=200000
on $(all lvraid)
lv pvcreate --dataalignment 128k $(all lvraid); lv vgcreate -s 128k lvraid $(all lvraid)
make() { # NAME OPTIONS
  local name=$1; shift
  lv lvcreate -n "$name" -L 1152k "$@" lvraid; fill /dev/lvraid/"$name" one
}
make zero --type raid0 -i 3 -I 4; make zerometa --type raid0_meta -i 2 -I 16
make one --type raid1 -m 2; make ten --type raid10 -i 2 -m 1 -I 4
for kind in raid4 raid5_n raid5_la raid5_ra raid5_ls raid5_rs; do make $kind --type $kind -i 3 -I 4; done
for kind in raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_la_6 raid6_ra_6 raid6_ls_6 raid6_rs_6; do make $kind --type $kind -i 3 -I 4; done
for name in one ten raid4 raid5_n raid5_la raid5_ra raid5_ls raid5_rs raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_la_6 raid6_ra_6 raid6_ls_6 raid6_rs_6; do
  synced lvraid/$name
done
for name in zero zerometa one ten raid4 raid5_n raid5_la raid5_ra raid5_ls raid5_rs raid6_zr raid6_nr raid6_nc raid6_n_6 raid6_la_6 raid6_ra_6 raid6_ls_6 raid6_rs_6; do
  note /dev/lvraid/$name lvraid/$name
done
lvs $scope -a -o +devices,stripes,raid_mismatch_count lvraid >> $out/report.txt
dmsetup table >> $out/report.txt
lv vgchange -an lvraid
# Written to while a disk was away; and whole, mounted and running when the power goes.
on $(all lvdeg)
lv pvcreate --dataalignment 128k $(all lvdeg); lv vgcreate -s 128k lvdeg $(all lvdeg)
lv lvcreate -n five --type raid5 -i 2 -I 4 -L 1m lvdeg; fill /dev/lvdeg/five one; synced lvdeg/five
lv lvcreate -n busy --type raid5 -i 2 -I 4 -L 1m lvdeg; fill /dev/lvdeg/busy one; synced lvdeg/busy
lv vgchange -an lvdeg
on $(p lvdeg-0) $(p lvdeg-2); lv lvchange -ay --activationmode degraded lvdeg/five
fill /dev/lvdeg/five other; note /dev/lvdeg/five lvdeg/five; lv lvchange -an lvdeg/five
on $(all lvdeg); lv lvchange -ay lvdeg/busy; fill /dev/lvdeg/busy other 262144 524288; note /dev/lvdeg/busy lvdeg/busy
results raid
