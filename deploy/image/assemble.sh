#!/bin/sh
# Lays out the root directory of the image: the program, the libraries that it names, the certificate authorities of this
# machine, and the files by which names are looked up. Nothing else: no shell, no package manager.
# The Dockerfile runs it, and so does the test that runs the program in such a directory.
#
# Usage: assemble.sh PROGRAM ROOT
set -eu

program=$1
root=$2

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/etc/pgtrickle" "$root/run/secrets" "$root/proc" "$root/sys" "$root/dev"
cp "$program" "$root/usr/bin/pgtrickle"
chmod 0755 "$root" "$root/usr/bin/pgtrickle"

# Paths as the loader finds them here ("name => path (address)", and the loader itself by its path).
ldd "$program" | grep -o '/[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
    chmod 0755 "$root$library"
done

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
echo 'pgtrickle:x:65532:65532::/:/nonexistent' > "$root/etc/passwd"
echo 'pgtrickle:x:65532:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
chmod 0644 "$root/etc/ssl/certs/ca-certificates.crt" "$root/etc/passwd" "$root/etc/group" "$root/etc/nsswitch.conf"
