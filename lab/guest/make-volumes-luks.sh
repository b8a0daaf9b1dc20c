modprobe raid1; modprobe raid0
# --- LUKS 1 and 2: ciphers and modes, and nesting
modprobe dm-crypt
key() { printf 'the key of %s' "$1" > "$out/$1.key"; echo "$out/$1.key"; }
quick1="--type luks1 -q --iter-time 1"
quick2="--type luks2 -q --luks2-metadata-size 16k --pbkdf argon2id --pbkdf-memory 32768 --pbkdf-parallel 2 --pbkdf-force-iterations 4"
cryptsetup luksFormat $quick1 -c aes-cbc-essiv:sha256 -s 256 --align-payload 8 $(p luks1-0) "$(key luks1)"
cryptsetup open --key-file $out/luks1.key $(p luks1-0) luks1
fill /dev/mapper/luks1 one 0 65536; fill /dev/mapper/luks1 one 131072 163840; note /dev/mapper/luks1 luks1
cryptsetup luksFormat $quick2 --luks2-keyslots-size 512k --sector-size 4096 -c aes-xts-plain64 -s 512 $(p luks2-0) "$(key luks2)"
cryptsetup open --key-file $out/luks2.key $(p luks2-0) luks2; ext4 /dev/mapper/luks2 luks2 4096 4
# LUKS over LVM over md
md=/dev/md90; mdadm -C $md --run -e 1.2 --data-offset=1M --homehost=lab -l 1 -n 2 --assume-clean $(all nest) >/dev/null
on $md
lv pvcreate --dataalignment 128k $md; lv vgcreate -s 128k nest $md; lv lvcreate -n crypt -L 20m nest
cryptsetup luksFormat $quick2 --luks2-keyslots-size 512k -c aes-xts-plain64 -s 256 /dev/nest/crypt "$(key nest)"
cryptsetup open --key-file $out/nest.key /dev/nest/crypt nest; ext4 /dev/mapper/nest nest
# md over LUKS, each disk with a key of its own
for at in 0 1 2; do
  cryptsetup luksFormat $quick1 -h sha256 -c aes-xts-plain64 -s 256 --align-payload 8 $(p mdluks-$at) "$(key mdluks-$at)"
  cryptsetup open --key-file $out/mdluks-$at.key $(p mdluks-$at) mdluks-$at
done
md=/dev/md91; mdadm -C $md --run -e 1.2 --data-offset=1M --homehost=lab -l 0 -n 3 -c 16 /dev/mapper/mdluks-0 /dev/mapper/mdluks-1 /dev/mapper/mdluks-2 >/dev/null
ext4 $md mdluks
cat /proc/mdstat >> $out/report.txt
results luks
