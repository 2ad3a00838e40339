# First process of a host: its own root folder, /proc, /tmp, /run, /dev/shm and home, then it waits.
# When its standard input ends, it ends, and the kernel ends all that runs in the host: nothing is
# left behind, however the tests end.
#
#   host_init.sh NAME FOLDER HOME SHARED KEPT...
#
# NAME is the hostname; FOLDER holds `home`, `tmp`, `run` and an empty `root`; HOME is where the
# user's home is; SHARED becomes /shared; KEPT are folders that must stay where they are, such as
# Python's. The first line of standard output is the process id, as the outside counts.
set -eu
read -r pid _ < /proc/self/stat
name=$1 folder=$2 home=$3 shared=$4
shift 4
root=$folder/root
mount --bind "$root" "$root"
for entry in /*; do
  case $entry in /proc | /sys | /dev | /tmp | /run | /shared | /lost+found) continue ;; esac
  if [ -L "$entry" ]; then
    cp -a "$entry" "$root$entry"
  elif [ -d "$entry" ]; then
    mkdir "$root$entry"
    mount --rbind "$entry" "$root$entry"
    mount -o remount,bind,ro "$root$entry"  # what the tests do must not reach the machine
  fi
done
mkdir "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/run" "$root/shared"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount --bind "$folder/tmp" "$root/tmp"
mount --bind "$folder/run" "$root/run"
mount --bind "$folder/home" "$root$home"
mount --bind "$shared" "$root/shared"
for kept in "$@"; do
  mkdir -p "$root$kept"
  mount --rbind "$kept" "$root$kept"
done
cd "$root"
pivot_root . .
umount -l .
cd /
hostname "$name"
ip link set lo up
echo "$pid"
while read -r _; do :; done  # bash reaps what others leave meanwhile
