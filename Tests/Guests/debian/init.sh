#!/bin/busybox sh
# The first process of the guest that sets Debian's packages up (configure.sh) on the disk where they were unpacked.
/bin/busybox mkdir -p /proc /sys /dev /run /target
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

finish() {
    echo "$1"
    umount /target/boot/efi 2>/dev/null
    sync
    mount -o remount,ro /target 2>/dev/null
    poweroff -f
}

while read -r module; do
    insmod "/modules/$module" || finish "baton-demo: FAIL insmod $module"
done </modules/order
tries=0
until [ -b /dev/vda2 ]; do
    tries=$((tries + 1))
    [ $tries -le 30 ] || finish "baton-demo: FAIL there is no /dev/vda2"
    sleep 1
done
mount -t ext4 /dev/vda2 /target || finish "baton-demo: FAIL mount /dev/vda2"
for directory in proc sys dev; do mount -o bind /$directory /target/$directory; done
mount -t tmpfs tmpfs /target/run
chroot /target /usr/bin/dash /root/configure.sh || finish "baton-demo: FAIL configure.sh"
rm /target/root/configure.sh
finish "baton-debian: done"
