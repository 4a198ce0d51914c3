#!/usr/bin/env bash
# Boots one host of tests/lab.py in namespaces that were just made for it: gives it a root, /tmp and home of its own and
# an SSH server, and stays as its first process. When this process dies the kernel takes all else of the host with it.
set -euo pipefail
name=$1 role=$2 lab=$3 environment=$4 venv=$5 uv=$6 python=$7 repository=$8

mount --make-rprivate /
mount -t tmpfs -o mode=755 lab "$lab/$name"
mkdir "$lab/$name"/{upper,work,root,venv,venv-work}
root=$lab/$name/root
mount -t overlay -o "lowerdir=/,upperdir=$lab/$name/upper,workdir=$lab/$name/work" lab "$root"
see() { # FROM TO: a folder of the machine, read-only
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,ro,bind "$root$2"
}

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

# Nothing of the machine's users is here but the interpreter; the repository only where one works on it.
for folder in /home /root /run /tmp "$repository"; do
    mkdir -p "$root$folder"
    mount -t tmpfs -o mode=755 lab "$root$folder"
done
chmod 1777 "$root/tmp"
[ -e "$root$python" ] || see "$(dirname "$(dirname "$python")")" "$(dirname "$(dirname "$python")")"
ln -sf "$python" "$root/usr/local/bin/python3"
install -m 755 "$uv" "$root/usr/local/bin/uv"
mkdir -p "$root$venv"
mount -t overlay -o "lowerdir=$environment,upperdir=$lab/$name/venv,workdir=$lab/$name/venv-work" lab "$root$venv"
mkdir "$root/shared"
mount --bind "$lab/shared" "$root/shared"
[ "$role" != operator ] || see "$repository" "$repository"

hostname "$name"
{ echo 127.0.0.1 localhost; cat "$lab/hosts"; } > "$root/etc/hosts"
: > "$root/etc/resolv.conf" # nobody answers, and nobody shall wait for it
printf 'export UV_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1\n' > "$root/root/.profile"
mkdir -m 700 "$root/root/.ssh"
cp "$lab/key.pub" "$root/root/.ssh/authorized_keys"
[ "$role" != operator ] || install -m 600 "$lab/key" "$root/root/.ssh/id_ed25519"

cd "$root"
mkdir old
pivot_root . old
umount -l /old && rmdir /old
cd /
ip link set lo up
mkdir -p /run/sshd
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
printf '%s\n' 'PermitRootLogin prohibit-password' 'UsePAM no' 'UseDNS no' 'MaxStartups 100' 'MaxSessions 100' \
    'PidFile none' > /etc/ssh/sshd_config
/usr/sbin/sshd -E /tmp/sshd.log
while :; do sleep 3600 & wait $! || :; done # reaps processes whose parents are gone
