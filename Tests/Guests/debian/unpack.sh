#!/bin/sh
# unpack.sh ROOT PACKAGE...
#
# Unpacks Debian packages of any architecture into ROOT, as `dpkg --unpack` does, but without their scripts, which this
# machine could not execute. `dpkg --configure -a` sets them up on a machine that can. Files of configuration are in
# place already, and dpkg does not know them as such.
set -eu
root=$1
shift
database=$root/var/lib/dpkg
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

unpack() {
    dpkg-deb --fsys-tarfile "$1" | tar -C "$root" -xpf - --keep-directory-symlink
}

mkdir -p "$root"
# It has the links /bin, /lib and /sbin, which must be there before anything goes through them.
for package; do
    case ${package##*/} in base-files_*) unpack "$package" ;; esac
done
mkdir -p "$database/info" "$database/updates" "$database/triggers"
echo 1 >"$database/info/format"
: >"$database/available"
: >"$database/status"
for package; do
    rm -rf "$scratch/control"
    dpkg-deb -e "$package" "$scratch/control"
    name=$(dpkg-deb -f "$package" Package)
    if [ "$(dpkg-deb -f "$package" Multi-Arch)" = same ]; then
        name=$name:$(dpkg-deb -f "$package" Architecture)
    fi
    unpack "$package"
    dpkg-deb --fsys-tarfile "$package" | tar -tf - | sed -e 's,^\.,,' -e 's,/$,,' -e 's,^$,/.,' >"$database/info/$name.list"
    for file in "$scratch"/control/*; do
        [ "${file##*/}" = control ] || cp "$file" "$database/info/$name.${file##*/}"
    done
    sed '/^Package:/a Status: install ok unpacked' "$scratch/control/control" >>"$database/status"
    echo >>"$database/status"
done
# As the scripts of base-passwd that run before it is unpacked.
for file in passwd group; do cp "$root/usr/share/base-passwd/$file.master" "$root/etc/$file"; done
