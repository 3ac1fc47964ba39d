#!/bin/sh
# Runs in Debian's installer initrd, in place of the installer.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin TERM=linux PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
modprobe virtio_mmio
# The installer fetches this module from the network; ours came with this archive.
insmod /baton/virtio_blk.ko*
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    if [ $tries -gt 30 ]; then
        echo "baton-demo: FAIL there is no /dev/vda"
        break
    fi
    sleep 1
done
# A kernel message in the middle of a report would garble it.
echo 1 >/proc/sys/kernel/printk
/baton/demo /dev/vda </dev/null >/dev/console 2>&1 &
cd /root 2>/dev/null || cd /
exec steal-ctty /dev/ttyS0 sh
