#!/usr/bin/env bash
# Runs tests of whole daemons on another kernel: in a virtual machine with Debian's own kernel and nothing but cgroup v2.
#
#   packaging/test-in-vm.sh [options] [TEST ...]          (default: offshoot-shim:nodes clone)
#
#   TEST            [PACKAGE:]TARGET[=FILTER]: a test program, by default one of offshoot-e2e, and which of its tests:
#                   clone, crash=create, offshoot-shim:nodes='freeze limits'
#   --suite NAME    whose kernel and packages the machine gets (default: this machine's own suite)
#   --init KIND     systemd: as on an ordinary host; tiny: a shell script, boots faster (default)
#   --kernel NAME   kernel package (default: linux-image-cloud-amd64)
#   --criu WHICH    host: the CRIU that setup.sh made here; suite: that of the suite (default: host when there is one)
#   --memory SIZE, --cpus N, --max SECONDS      of the machine (default: 4G, 2, 3600; emulated kernels since 6.12 want --cpus 1)
#   --kvm           use the processor's virtualisation. Without it all is emulated: 10 to 20 times slower, works anywhere.
#   --first COMMAND run this in the machine before the tests (for looking into a failure; "none" as TEST: nothing else)
#   --refresh       make the machine's root anew; it is kept in $OFFSHOOT_VM_DIR (default /var/tmp/offshoot-vm) otherwise
#
# Needs root, and the packages qemu-system-x86, mmdebstrap, busybox-static, e2fsprogs, xz-utils. Changes nothing on the
# host but that folder. The machine has no network. Waits in tests are stretched by OFFSHOOT_TEST_STRETCH (default 10, with
# --kvm 1). Ends with "vm: N passed, N failed"; the exit status is 0 when nothing failed and something passed.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")/.." && pwd)
work=${OFFSHOOT_VM_DIR:-/var/tmp/offshoot-vm}
suite='' init=tiny kernel=linux-image-cloud-amd64 criu='' memory=4G cpus=2 max=3600 accel=tcg,thread=multi refresh='' first='' tests=()
stretch=${OFFSHOOT_TEST_STRETCH:-}
criu_prefix=${OFFSHOOT_CRIU_PREFIX:-/opt/offshoot/criu}
run='' qemu=''

say() { printf '%s\n' "vm: $*"; }
fail() {
    printf '%s\n' "vm: $*" >&2
    exit 1
}
# shellcheck disable=SC2317  # called by the trap
clean_up() {
    trap '' HUP INT TERM # a second signal must not end it halfway
    # That is timeout(1), which hands on this signal, but could not hand on SIGKILL.
    [ -z "$qemu" ] || { kill -TERM "$qemu" && wait "$qemu"; } 2>/dev/null || true
    [ -z "$run" ] || rm -rf --one-file-system "$run"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
usage() { sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0"; }

while [ $# -gt 0 ]; do
    case "$1" in
    --suite | --init | --kernel | --criu | --memory | --cpus | --max | --first)
        [ $# -ge 2 ] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift
        ;;
    --kvm) accel=kvm stretch=${stretch:-1} ;;
    --refresh) refresh=yes ;;
    -h | --help) usage && exit 0 ;;
    -*) fail "unknown option $1 (see --help)" ;;
    *) tests+=("$1") ;;
    esac
    shift
done
[ ${#tests[@]} -gt 0 ] || tests=(offshoot-shim:nodes clone)
stretch=${stretch:-10}
case "$init" in tiny | systemd) ;; *) fail "--init is tiny or systemd" ;; esac
case "$criu" in '' | host | suite) ;; *) fail "--criu is host or suite" ;; esac
[ "$(id -u)" = 0 ] || fail "must be run as root"
for tool in qemu-system-x86_64 mmdebstrap busybox mke2fs xz timeout cargo; do
    command -v "$tool" >/dev/null || fail "$tool is missing (see --help for the packages)"
done
ldd "$(command -v busybox)" >/dev/null 2>&1 && fail "busybox is not the static one (package busybox-static)"
host_codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-}")
suite=${suite:-$host_codename}
if [ -z "$criu" ]; then
    criu=suite
    [ ! -x "$criu_prefix/bin/criu" ] || criu=host
fi

# --- The root file system and the kernel ----------------------------------------------------------------------------

packages=(runc nftables btrfs-progs iproute2 kmod procps util-linux bash perl-base)
[ "$init" = tiny ] || packages+=(systemd-sysv udev)
[ "$criu" = host ] || packages+=(criu)
root=$work/root-$suite-$init-$criu-$kernel

make_root() {
    local uri keyring
    # Where this machine gets its packages from, as setup.sh finds out.
    eval "$(sed -n '/^archive_of_this_machine() {/,/^}/p' "$here/packaging/setup.sh")"
    read -r uri keyring <<<"$(archive_of_this_machine "$host_codename")"
    [ -n "${uri:-}" ] || fail "apt's sources name no archive of $host_codename"
    [ "$keyring" != - ] || keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    rm -rf --one-file-system "$root" "$root.new"
    say "making a root of $suite with: ${packages[*]}, $kernel"
    # The kernel is unpacked, not installed: it would bring a builder of initial file systems, and the machine has its own.
    # shellcheck disable=SC2016  # expanded by mmdebstrap's shell
    mmdebstrap --quiet --mode=root --variant=minbase --format=directory --aptopt='Acquire::Languages "none"' \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --include="$(IFS=,; printf %s "${packages[*]}")" \
        --customize-hook='cd "$1/boot" && image=$(APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-cache depends '"$kernel"' | sed -n "s/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p" | head -n 1) && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -o APT::Sandbox::User=root download "${image:-'"$kernel"'}" && dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C "$1" --keep-directory-symlink --exclude=./usr/share && rm linux-image-*.deb' \
        "$suite" "$root.new" "deb [signed-by=$keyring] $uri $suite main" </dev/null || fail "the root could not be made"
    rm -rf "$root.new"/var/cache/apt/* "$root.new"/var/lib/apt/lists/*
    mv "$root.new" "$root"
}

mkdir -p "$work"
[ -z "$refresh" ] && [ -d "$root" ] || make_root
release=$(basename "$(find "$root/lib/modules/" -mindepth 1 -maxdepth 1 -type d | head -n 1)")
[ -f "$root/boot/vmlinuz-$release" ] || fail "the root has no kernel: run with --refresh"
chroot "$root" /sbin/depmod "$release"
run=$(mktemp -d "$work/run.XXXXXX")

# --- Programs under test --------------------------------------------------------------------------------------------

cd "$here"
say "building"
cargo build -q -p offshoot-cli -p offshoot-shim -p offshoot-edge -p offshoot-e2e --bins
inside=$here/target/debug # test programs look for programs where they were built
mkdir -p "$run/add$inside/deps" "$run/add/usr/bin"
cp "$(command -v busybox)" "$run/add/usr/bin/busybox"
: >"$run/list"
number=0
for test in "${tests[@]}"; do
    [ "$test" != none ] || continue
    filter=
    target=${test%%=*} package=offshoot-e2e
    [ "$target" = "$test" ] || filter=${test#*=}
    [ "${target#*:}" = "$target" ] || package=${target%%:*} target=${target#*:}
    cargo test -q --no-run --message-format=json -p "$package" --test "$target" >"$run/json" || fail "$test cannot be built"
    grep '"profile":{[^}]*"test":true' "$run/json" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u >"$run/programs"
    [ -s "$run/programs" ] || fail "$test has no test program"
    while read -r program; do
        number=$((number + 1))
        cp "$program" "$run/add$inside/deps/$number"
        printf '%s\t%s\t%s\n' "$number" "$test" "$filter" >>"$run/list"
    done <"$run/programs"
done
for program in offshoot offshoot-shim offshoot-edge offshoot-testnode offshoot-testimage offshoot-testtool; do
    [ ! -f "target/debug/$program" ] || cp "target/debug/$program" "$run/add$inside/"
done
if [ "$criu" = host ]; then
    mkdir -p "$run/add/$(dirname "$criu_prefix")"
    cp -a "$criu_prefix" "$run/add/$criu_prefix"
fi
cp "$run/list" "$run/add$inside/list"
printf %s "$first" >"$run/add$inside/first"

# --- What runs inside ------------------------------------------------------------------------------------------------

cat >"$run/add$inside/run" <<INSIDE
#!/bin/bash
# The machine's only task. Prints what was found and powers it off, whatever happens.
exec </dev/null >/dev/console 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export OFFSHOOT_TEST_STRETCH=$stretch RUST_BACKTRACE=1 OFFSHOOT_CRIU_PREFIX=$criu_prefix
echo "vm: kernel \$(uname -r), \$(. /etc/os-release; echo "\$PRETTY_NAME"), init \$(cat /proc/1/comm)"
echo "vm: cgroup mounts: \$(grep -c ' - cgroup ' /proc/self/mountinfo) of version 1, \$(grep -c ' - cgroup2 ' /proc/self/mountinfo) of version 2; controllers: \$(cat /sys/fs/cgroup/cgroup.controllers)"
echo "vm: \$(runc --version | head -n 1); \$(PATH=$criu_prefix/bin:\$PATH criu --version | head -n 1)"
cd $inside
NO_COLOR=1 ./offshoot doctor </dev/null | grep -E '^(criu|runc|nft|btrfs|user|control|memory)'
[ ! -s first ] || bash first </dev/null
while IFS=\$'\\t' read -r number test filter; do
    echo "vm: test \$test begins"
    # shellcheck disable=SC2086
    timeout -k 10 $max deps/\$number \$filter --test-threads=1 --nocapture </dev/null
    status=\$?
    echo "vm: test \$test ended with \$status after \$SECONDS s"
done <list
echo "vm: left over: \$(find /sys/fs/cgroup -maxdepth 1 -name 'offshoot-*' | wc -l) cgroups, \$(grep -c offshoot /proc/self/mountinfo) mounts, \$(losetup -a | wc -l) loop devices, \$(pgrep -c offshoot) processes"
dmesg | grep -E 'BUG|Oops|WARNING|hung task|segfault|traps:|general protection' | head -n 20
echo "vm: over"
sync
echo o >/proc/sysrq-trigger
sleep 60
INSIDE
chmod 755 "$run/add$inside/run"
if [ "$init" = tiny ]; then
    cat >"$run/add/vm-init" <<TINY
#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -o remount,rw /
hostname vm
ip link set lo up
modprobe loop # systems with udev have its control device from the start
setsid $inside/run & # the session of process 1 has number 0, which CRIU takes for a foreign one
while :; do wait; sleep 1; done # process 1 collects orphans
TINY
    chmod 755 "$run/add/vm-init"
    program=/vm-init
else
    mkdir -p "$run/add/etc/systemd/system/multi-user.target.wants"
    printf '[Service]\nType=oneshot\nTimeoutStartSec=infinity\nTasksMax=infinity\nDelegate=no\nExecStart=%s/run\n' "$inside" \
        >"$run/add/etc/systemd/system/offshoot-test.service"
    ln -s ../offshoot-test.service "$run/add/etc/systemd/system/multi-user.target.wants/"
    program=/sbin/init
fi

# --- Disk, first file system, machine --------------------------------------------------------------------------------

say "making its disk"
cp -a "$root" "$run/root"
cp -a "$run/add/." "$run/root/"
rm -rf "$run/add"
truncate -s 12G "$run/disk"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$run/root" "$run/disk"
rm -rf --one-file-system "$run/root"

mkdir -p "$run/first/bin" "$run/first/modules" "$run/first/dev" "$run/first/root"
cp "$(command -v busybox)" "$run/first/bin/busybox"
# Some of them are part of the kernel, depending on its version ("builtin").
for module in virtio_pci virtio_blk ext4; do
    chroot "$root" /sbin/modprobe -S "$release" --show-depends "$module" | sed -n "s,^insmod ,$root,p"
done | awk '!seen[$1]++ { print $1 }' >"$run/modules"
number=100
while read -r module; do
    number=$((number + 1))
    case "$module" in
    *.xz) xz -dc "$module" >"$run/first/modules/$number.ko" ;;
    *) cp "$module" "$run/first/modules/$number.ko" ;;
    esac
done <"$run/modules"
cat >"$run/first/init" <<FIRST
#!/bin/busybox sh
bb=/bin/busybox
for module in /modules/*.ko; do \$bb insmod \$module; done
\$bb mount -t devtmpfs devtmpfs /dev
until [ -b /dev/vda ]; do \$bb sleep 0.1; done
\$bb mount -t ext4 /dev/vda /root || exec \$bb poweroff -f
\$bb mount --move /dev /root/dev
exec \$bb switch_root /root $program
FIRST
sed -i '1s,.*,#!/bin/busybox sh,' "$run/first/init"
chmod 755 "$run/first/init"
(cd "$run/first" && find . | busybox cpio -o -H newc >"$run/first.cpio" 2>/dev/null)

say "starting: kernel $release, $init as init, CRIU of the $criu, ${tests[*]}, waits stretched $stretch times"
started=$SECONDS
# Emulated: five-level page tables cost time, and QEMU 7.2 makes kernel 6.12 fault in the instruction cmpxchg16b. With several
# processors that kernel also trips over its own code that it changes while it runs: QEMU 7.2 shows another processor half of it.
processor=max,la57=off,cx16=off
[ "$accel" != kvm ] || processor=host
timeout -k 5 "$max" nice -n 10 qemu-system-x86_64 -accel "$accel" -cpu "$processor" -smp "$cpus" -m "$memory" \
    -kernel "$root/boot/vmlinuz-$release" -initrd "$run/first.cpio" \
    -append "console=ttyS0 quiet panic=-1 systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all systemd.show_status=0 net.ifnames=0" \
    -drive "if=virtio,format=raw,cache=unsafe,file=$run/disk" -nic none -display none -monitor none -serial "file:$run/console" \
    -no-reboot </dev/null &
qemu=$!
tail -n +1 -f --pid="$qemu" "$run/console" --retry 2>/dev/null | sed -u 's/\r//g' &
status=0
wait "$qemu" || status=$?
qemu=
wait || true
tr -d '\r' <"$run/console" >"$work/console-$suite-$init.log"
log=$work/console-$suite-$init.log
passed=$(awk '/test result: /{ for (i = 1; i < NF; i++) if ($(i+1) ~ /^passed/) n += $i } END { print n + 0 }' "$log")
failed=$(awk '/test result: /{ for (i = 1; i < NF; i++) if ($(i+1) ~ /^failed/) n += $i } END { print n + 0 }' "$log")
# A test program that ended without its summary failed too.
broken=$(awk '/^vm: test .* ended with /{ if ($(NF-3) != 0 && !summary) n++; summary = 0 } /test result: /{ summary = 1 } END { print n + 0 }' "$log")
ended=$(grep -c '^vm: test .* ended with' "$log" || true)
begun=$(wc -l <"$run/list")
missing=$((begun - ended))
skipped=$(grep -c 'SKIPPED:' "$log" || true)
[ "$status" = 0 ] || say "the machine ended with $status (124: its $max s were over)"
say "kernel $release, cgroup v2, $((SECONDS - started)) s, console in $log"
say "$passed passed, $((failed + broken + missing)) failed, $skipped skipped with a reason"
[ $((failed + broken + missing)) -eq 0 ] && [ "$passed" -gt 0 ] && [ "$status" = 0 ]
