#!/bin/busybox sh
# The first process of the lab, in its initrd: loads the modules of /modules in their order, and runs /command in what
# is below the lab, this machine's file system by 9p, with an overlay in RAM that takes what is written.
# The command's output, and a line with its status at the end, go to the second serial port.
# With /service the first process becomes systemd: a later Debian's is laid over this machine's file system, and over that
# what the case has put in place, which has the command run by a service of its own.
b=/bin/busybox
mount() { $b mount "$@" || $b poweroff -f; }
$b mkdir -p /proc /sys /dev /below /above /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
n=0
while [ -e /modules/$n.ko ]; do $b insmod /modules/$n.ko; n=$((n + 1)); done

mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose below /below
lower=/below
if [ -e /service ]; then
    for layer in systemd case; do
        $b mkdir /$layer
        mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose $layer /$layer
        lower=/$layer:$lower
    done
fi
mount -t tmpfs tmpfs /above
$b mkdir /above/changed /above/work
mount -t overlay -o lowerdir=$lower,upperdir=/above/changed,workdir=/above/work overlay /root
for d in proc sys dev; do mount --move /$d /root/$d; done
mount -t tmpfs tmpfs /root/run
$b mkdir -p /root/dev/shm
mount -t tmpfs tmpfs /root/dev/shm
$b ip link set lo up

if [ -e /service ]; then
    # Of systemd's own units and of this machine's those that the case names.
    $b rm -rf /root/etc/systemd/system/*.wants /root/usr/lib/systemd/system/*.wants /root/usr/lib/systemd/system/tmp.mount
    # systemd would take a copy of a container's files for that.
    $b rm -f /root/.dockerenv
    $b chroot /root /bin/sh /case-setup </root/dev/ttyS1 >/root/dev/ttyS1 2>&1 || $b poweroff -f
    exec $b switch_root /root /usr/lib/systemd/systemd --unit=case.target --show-status=1
fi

{
    $b stty -onlcr -echo
    $b chroot /root /bin/sh -c "$($b cat /command)"
    echo "lab: status $?"
} </root/dev/ttyS1 >/root/dev/ttyS1 2>&1
$b poweroff -f
