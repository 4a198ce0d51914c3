#!/usr/bin/env bash
# Boots one host of tests/cluster/lab.py in namespaces that were just made for it: gives it root, home, /tmp and devices of its
# own, and an SSH server. What it writes to its disk stays when it is switched off. When this process dies, the kernel
# takes all others of the host with it.
set -euo pipefail
name=$1 lab=$2 environment=$3 venv=$4 python=$5 uv=$6 repository=$7
disk=$lab/disks/$name root=$lab/disks/$name/root

mount --make-rprivate /
mkdir -p "$disk"/{upper,work,root,home,venv,venv-work}
mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" lab "$root"
mount -t proc lab "$root/proc"
mount -t sysfs -o ro lab "$root/sys"
mount -t tmpfs lab "$root/sys/fs/cgroup"
echo 100000 100000 > "$root/sys/fs/cgroup/cpu.max" # one CPU, as programs count them
mount -t tmpfs -o mode=755 lab "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 lab "$root/dev/pts"
mount -t tmpfs -o mode=1777 lab "$root/dev/shm"
for link in ptmx:pts/ptmx fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -s "${link#*:}" "$root/dev/${link%%:*}"
done

# Nothing is here of the machine's users but an interpreter and uv; the repository is where its operator works.
see() { # a folder of the machine, at its own place
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    mount -o remount,ro,bind "$root$1"
}
for folder in /home /run /tmp "$repository"; do
    mkdir -p "$root$folder"
    mount -t tmpfs -o mode=755 lab "$root$folder"
done
chmod 1777 "$root/tmp"
mount --bind "$disk/home" "$root/root"
[ -e "$root$python" ] || see "$(dirname "$(dirname "$python")")"
ln -sf "$python" "$root/usr/local/bin/python3"
install -m 755 "$uv" "$root/usr/local/bin/uv"
mkdir -p "$root$venv" "$root/shared"
mount -t overlay -o "lowerdir=$environment,upperdir=$disk/venv,workdir=$disk/venv-work" lab "$root$venv"
mount --bind "$lab/shared" "$root/shared"
[ "$name" != operator ] || see "$repository"

hostname "$name"
{ echo 127.0.0.1 localhost; cat "$lab/hosts"; } > "$root/etc/hosts"
: > "$root/etc/resolv.conf" # nobody answers, and nobody shall wait for it
install -d -m 700 "$root/root/.ssh"
install -m 600 "$lab/key" "$root/root/.ssh/id_ed25519"
install -m 600 "$lab/key.pub" "$root/root/.ssh/authorized_keys"
printf 'export UV_OFFLINE=1\n' > "$root/root/.profile"

mkdir -p "$root/old"
cd "$root"
pivot_root . old
umount -l /old
cd /
ip link set lo up
mkdir /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key
printf '%s\n' 'HostKey /run/sshd/key' 'UsePAM no' 'UseDNS no' 'MaxStartups 100' 'MaxSessions 100' 'PidFile none' \
    > /run/sshd/config
/usr/sbin/sshd -f /run/sshd/config -E /run/sshd/log
while :; do sleep 3600 & wait $! || :; done # reaps processes whose parents are gone
