#!/bin/sh
# Sets up the packages of a Debian that was unpacked (unpack.sh), from within: runs in the guest, on its disk.
set -e
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C HOME=/root
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

# No script may start a service here.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
echo "LABEL=root / ext4 errors=remount-ro 0 1
LABEL=ESP /boot/efi vfat umask=0077 0 2" >/etc/fstab
echo debian >/etc/hostname
echo "127.0.0.1 localhost debian" >/etc/hosts
mkdir -p /etc/default/grub.d /boot/efi
echo 'GRUB_TIMEOUT=0
GRUB_CMDLINE_LINUX="console=ttyS0"
GRUB_TERMINAL=console' >/etc/default/grub.d/console.cfg

modprobe vfat
mkfs.vfat -n ESP /dev/vda1
mount -t vfat /dev/vda1 /boot/efi

ldconfig
# What scripts of others use without saying so, in the order in which it can be set up.
for package in base-passwd base-files libc6 perl-base mawk debconf dpkg; do
    dpkg --force-depends --configure $package
done
# The kernel's package makes the initrd, which is not to be made once more for each package that changes it: that takes
# minutes here.
sed -i 's/^update_initramfs=.*/update_initramfs=no/' /etc/initramfs-tools/update-initramfs.conf
dpkg --configure -a
sed -i 's/^update_initramfs=.*/update_initramfs=yes/' /etc/initramfs-tools/update-initramfs.conf
ldconfig
grub-install --target=riscv64-efi --efi-directory=/boot/efi --removable --no-nvram
update-grub

# Each machine has its own.
rm -f /etc/ssh/ssh_host_* /usr/sbin/policy-rc.d /var/lib/dbus/machine-id
: >/etc/machine-id
