# --- thin: snapshots of snapshots, discards, an external origin, a mounted file system and its snapshot
modprobe dm-thin-pool
on $(all thin)
lv pvcreate --dataalignment 128k $(all thin); lv vgcreate -s 128k thin $(all thin)
lv lvcreate -n base -L 2m thin; fill /dev/thin/base one; note /dev/thin/base thin/base
lv lvcreate -n pool --type thin-pool -L 28m -c 64k --poolmetadatasize 2m --poolmetadataspare n thin
lv lvcreate -n one --type thin -V 6m --thinpool pool thin; fill /dev/thin/one one 0 4194304
lv lvcreate -n first -s thin/one; lv lvchange -ay -K thin/first
fill /dev/thin/one other 1048576 2097152; fill /dev/thin/one other 6225920 6291456
blkdiscard -o 2097152 -l 1048576 /dev/thin/one
lv lvcreate -n second -s thin/first; lv lvchange -ay -K thin/second; fill /dev/thin/second other 0 100352
lv lvcreate -n sparse --type thin -V 1t --thinpool pool thin
fill /dev/thin/sparse one 549755813888 549755879424; fill /dev/thin/sparse other 1099511562240 1099511627776
lv lvchange -an thin/base; lv lvchange -pr thin/base
lv lvcreate -n onbase -s --thinpool pool thin/base; fill /dev/thin/onbase other 524288 655360
lv lvextend -L 3m thin/onbase; fill /dev/thin/onbase other 2621440 2752512
lv lvcreate -n files --type thin -V 8m --thinpool pool thin; ext4 /dev/thin/files thin
lv lvcreate -n filesnap -s thin/files
echo "written after the snapshot" > /mnt/thin/srv/after.txt; sync /mnt/thin/srv/after.txt; python3 -c 'import os; os.fsync(os.open("/mnt/thin/srv", os.O_RDONLY))'
(cd /mnt/thin && find . -type f -print0 | sort -z | xargs -0 sha256sum) > $out/thin-after.sha256
for name in one first second onbase; do note /dev/thin/$name thin/$name; done
dd if=/dev/thin/sparse bs=64k skip=8388608 count=1 status=none | sha256sum | cut -d' ' -f1 | sed 's/$/  thin\/sparse-mid/' >> $out/volumes.sha256
lvs $scope -a -o +thin_id,transaction_id,devices thin >> $out/report.txt
dmsetup status >> $out/report.txt

# --- classic snapshots: of two times, one written to, and one that ran full
modprobe dm-snapshot
on $(all snap)
lv pvcreate --dataalignment 128k $(all snap); lv vgcreate -s 128k snap $(all snap)
lv lvcreate -n origin -L 4m snap; fill /dev/snap/origin one
lv lvcreate -n early -s -L 3m -c 4k snap/origin; fill /dev/snap/origin other 524288 1572864
lv lvcreate -n late -s -L 3m -c 16k snap/origin; fill /dev/snap/origin other 0 262144; fill /dev/snap/origin other 3145728 3211264
fill /dev/snap/early other 1310720 1376256
for name in origin early late; do note /dev/snap/$name snap/$name; done
lv lvcreate -n small -L 1m snap; fill /dev/snap/small one; lv lvcreate -n full -s -L 256k -c 4k snap/small; fill /dev/snap/small other; note /dev/snap/small snap/small
lvs $scope -a -o +devices,snap_percent snap >> $out/report.txt
results lvm
