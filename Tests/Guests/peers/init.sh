#!/bin/sh
# Runs in Debian's installer initrd, in place of the installer: works on a disk, a shared directory and
# the network at once, and says what was written where, so that the host can look for itself.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
modprobe virtio_net
# The installer fetches this module from the network; ours came with this archive.
insmod /baton/virtio_blk.ko*

fail() { echo "baton-demo: FAIL $*"; }

await() {
    tries=0
    until [ -e "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { fail "there is no $1"; return; }
        sleep 0.1
    done
}

await /dev/vda
await /sys/class/net/eth0
ip link set eth0 up
ip addr add 10.9.0.2/24 dev eth0
mkdir -p /share
mount -t virtiofs share /share || fail "the shared directory cannot be mounted"
# A kernel message in the middle of a line of ours would garble it.
echo 1 >/proc/sys/kernel/printk

sum() { md5sum | cut -d ' ' -f 1; }

# Nothing that is read after this comes from this kernel's memory.
forget() { echo 3 >/proc/sys/vm/drop_caches; }

# Blocks of 256 KiB in 12 places, one after the other. Besides the block just written, the one
# written longest ago is read: a write that is carried out late, or twice, shows there.
disk() {
    round=0
    while :; do
        place=$((round % 12))
        dd if=/dev/urandom of=/run/block bs=64k count=4 2>/dev/null
        sum </run/block >/run/sum.$place
        dd if=/run/block of=/dev/vda bs=64k seek=$((place * 4)) conv=fsync 2>/dev/null || fail "write of block $place"
        forget
        for read in $place $(((place + 1) % 12)); do
            [ -e /run/sum.$read ] || continue
            found=$(dd if=/dev/vda bs=64k skip=$((read * 4)) count=4 2>/dev/null | sum)
            [ "$found" = "$(cat /run/sum.$read)" ] || fail "block $read is $found in round $round"
        done
        echo "baton-peers: disk $round $place $(cat /run/sum.$place)"
        round=$((round + 1))
    done
}

# Copies of files into the shared directory, read back from there.
share() {
    round=0
    while :; do
        place=$((round % 8))
        dd if=/dev/urandom of=/run/file bs=64k count=4 2>/dev/null
        written=$(sum </run/file)
        cp /run/file /share/$place || fail "copy of file $place"
        sync
        forget
        found=$(sum </share/$place)
        [ "$found" = "$written" ] || fail "file $place is $found in round $round"
        echo "baton-peers: share $round $place $written"
        round=$((round + 1))
    done
}

disk &
share &
while :; do
    complaint=$(dmesg | grep -m 1 -iE 'I/O error|blocked for more than|stall|Call Trace|nobody cared|WATCHDOG|needs reset')
    [ -z "$complaint" ] || fail "$complaint"
    sleep 1
done
