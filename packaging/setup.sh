#!/usr/bin/env bash
# Prepares a machine for Offshoot. Safe to run again: a second run only looks.
#
#   packaging/setup.sh [--criu-prefix DIR] [run] [build] [test] [bench] [browser]      (default: run)
#
#   run    what the daemon calls: runc, nft, mkfs.btrfs, mmdebstrap, ip, and a CRIU that works on the running kernel
#   build  what `cargo build` needs besides Rust itself
#   test   what the tests and the demo call besides that
#   bench  what the benchmark of the edge is measured with and against
#   browser  what the tests of the dashboard in a browser call (some 400 MB), and axe-core, by npm where that is installed,
#            else from its registry, into /var/cache/offshoot
#
# It installs missing packages from the distribution's own archive, and, when no installed CRIU can dump and restore
# a process with a TCP connection on this kernel, unpacks a newer CRIU with all its libraries into a private folder
# (default /opt/offshoot/criu; OFFSHOOT_CRIU_PREFIX or --criu-prefix say otherwise). It changes nothing else: the
# apt configuration and lists for the newer CRIU are private and temporary, and no service is left started.
set -euo pipefail
export LC_ALL=C

RUN_PACKAGES=(runc nftables btrfs-progs mmdebstrap iproute2)
BUILD_PACKAGES=(gcc g++ make cmake pkg-config)
TEST_PACKAGES=(pebble docker-registry busybox-static redis-server redis-tools wrk curl python3 strace)
BENCH_PACKAGES=(nginx haproxy nghttp2-client wrk openssl)
BROWSER_PACKAGES=(chromium chromium-driver curl ca-certificates)
# What looks over pages for those who cannot see or point well (https://github.com/dequelabs/axe-core, MPL-2.0): for tests
# only, no part of Offshoot. No distribution packages it.
AXE_VERSION=4.14.1
AXE_SHA256=e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
AXE=/var/cache/offshoot/axe-core-$AXE_VERSION.js
# Packages above that come with a service nobody asked for.
QUIET_SERVICES=(docker-registry redis-server nginx haproxy)

criu_prefix=${OFFSHOOT_CRIU_PREFIX:-/opt/offshoot/criu}
scratch=
our_policy=

say() { printf '%s\n' "offshoot setup: $*"; }
warn() { printf '%s\n' "offshoot setup: WARNING: $*" >&2; }
fail() {
    printf '%s\n' "offshoot setup: $*" >&2
    exit 1
}

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    trap '' HUP INT TERM # a second signal must not end it halfway
    [ -z "$our_policy" ] || rm -f "$our_policy"
    [ -z "$scratch" ] || rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

usage() { sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0"; }

# --- Packages ---------------------------------------------------------------------------------------------------

installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = ii ]; }

ensure_packages() {
    local missing=() package
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        say "packages: all $# present"
        return
    fi
    say "packages: installing ${missing[*]}"
    # A package's service must not start by itself; this is Debian's own switch for it (invoke-rc.d(8)).
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        our_policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\n# temporary, by offshoot setup\nexit 101\n' >"$our_policy"
        chmod 755 "$our_policy"
    fi
    apt_install "${missing[@]}" || {
        say "packages: refreshing the package lists"
        apt-get -qq update || fail "apt-get update failed: look at the messages above (network, proxy, archive?)"
        apt_install "${missing[@]}" || fail "apt-get could not install: ${missing[*]} (see above)"
    }
    for package in "${missing[@]}"; do
        case " ${QUIET_SERVICES[*]} " in *" $package "*) silence_service "$package" ;; esac
    done
    if [ -n "$our_policy" ]; then
        rm -f "$our_policy"
        our_policy=
    fi
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install "$@" >"$scratch/apt.log" 2>&1 ||
        { tail -n 15 "$scratch/apt.log" >&2; return 1; }
}

silence_service() {
    if [ -d /run/systemd/system ]; then
        systemctl --quiet disable --now "$1" >/dev/null 2>&1 || warn "could not disable the service $1"
    elif command -v update-rc.d >/dev/null; then
        update-rc.d "$1" disable >/dev/null 2>&1 || warn "could not disable the service $1"
    fi
}

# --- axe-core ---------------------------------------------------------------------------------------------------

ensure_axe() {
    local archive=$scratch/axe/axe-core-$AXE_VERSION.tgz sum beside
    if [ -s "$AXE" ]; then
        say "axe-core: $AXE_VERSION present"
        return
    fi
    mkdir -p "$scratch/axe"
    if command -v npm >/dev/null; then # it knows of a registry that this machine may have been told to use
        (cd "$scratch/axe" && timeout 120 npm pack --silent "axe-core@$AXE_VERSION") >"$scratch/axe.log" 2>&1 || true
    else
        curl --silent --show-error --fail --location --proto =https --max-time 120 --retry 3 --output "$archive" \
            "https://registry.npmjs.org/axe-core/-/axe-core-$AXE_VERSION.tgz" >"$scratch/axe.log" 2>&1 || true
    fi
    if [ ! -s "$archive" ]; then
        tail -n 3 "$scratch/axe.log" >&2
        warn "axe-core: it could not be fetched; the tests that need it are skipped."
        return
    fi
    sum=$(sha256sum "$archive" | cut -d' ' -f1)
    [ "$sum" = "$AXE_SHA256" ] || fail "axe-core: its archive has the SHA-256 $sum, expected was $AXE_SHA256; nothing of it was used"
    mkdir -p "${AXE%/*}"
    beside=$(mktemp "$AXE.XXXXXX")
    tar -xzOf "$archive" package/axe.min.js >"$beside"
    chmod 644 "$beside"
    mv -f "$beside" "$AXE"
    say "axe-core: $AXE_VERSION is in $AXE"
}

# --- CRIU -------------------------------------------------------------------------------------------------------

# Not the version but a trial decides: dump and restore a process with a listening and a connected TCP socket.
# In a network namespace of its own, so that neither ports nor firewalls matter.
criu_works() {
    local criu=$1 dir why
    dir=$(mktemp -d "$scratch/probe.XXXXXX")
    if timeout 60 unshare --net bash -s -- "$criu" "$dir" >"$dir/out" 2>&1 <<'PROBE'
set -u
criu=$1 dir=$2 pid=
trap 'kill -9 "$pid" 2>/dev/null' EXIT
ip link set lo up
setsid perl -e '
    use Socket; use POSIX; # and without what the caller may have left open
    POSIX::close($_) for 3 .. 255;
    socket(my $l, PF_INET, SOCK_STREAM, 0) or die; bind($l, sockaddr_in(0, INADDR_LOOPBACK)) or die "bind: $!";
    listen($l, 1) or die; socket(my $c, PF_INET, SOCK_STREAM, 0) or die;
    connect($c, getsockname($l)) or die "connect: $!"; accept(my $a, $l) or die;
    open(my $r, ">", "$ARGV[0]/ready"); close($r);
    while (1) { sleep 1000 }' "$dir" </dev/null >/dev/null 2>"$dir/perl" &
pid=$!
for _ in $(seq 500); do [ -e "$dir/ready" ] && break; kill -0 "$pid" || exit 1; sleep 0.01; done
mkdir "$dir/images"
"$criu" dump -t "$pid" -D "$dir/images" -o dump.log --tcp-established --network-lock skip || exit 1
wait "$pid" 2>/dev/null
"$criu" restore -d -D "$dir/images" -o restore.log --tcp-established || exit 1
kill -0 "$pid"
PROBE
    then
        rm -rf "$dir"
        return 0
    fi
    # (it may always complain that it cannot raise its own limit of open files or finds no tun device, and goes on)
    why=$(cat "$dir"/images/*.log 2>/dev/null | grep 'Error (' | grep -v -e RLIMIT_NOFILE -e 'create tun' | head -n 1)
    [ -n "$why" ] || why=$(head -n 1 "$dir/out")
    say "CRIU: $criu ($("$criu" --version 2>/dev/null | sed -n 's/^Version: //p')) does not work here: ${why:-no message}"
    rm -rf "$dir"
    return 1
}

# Where this machine gets its distribution from: prints "URI KEYRING" of the first archive that apt is told to use.
# Reads both forms of apt sources (sources.list(5)) and skips security, third-party and disabled entries.
archive_of_this_machine() {
    local codename=$1 file
    for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -r "$file" ] || continue
        awk -v suite="$codename" -v form="${file##*.}" '
            function give() { if (uri != "" && found && on && deb) { print uri, (key == "" ? "-" : key); exit_now = 1; exit }
                              uri = key = ""; found = deb = 0; on = 1 }
            BEGIN { on = 1 }
            /^[ \t]*#/ { next }
            form == "sources" {
                if ($0 ~ /^[ \t]*$/) { give(); next }
                name = tolower($1)
                if (name == "types:") for (i = 2; i <= NF; i++) if ($i == "deb") deb = 1
                if (name == "uris:") uri = $2
                if (name == "suites:") for (i = 2; i <= NF; i++) if ($i == suite) found = 1
                if (name == "signed-by:" && $2 ~ /^\//) key = $2
                if (name == "enabled:" && tolower($2) == "no") on = 0
                next
            }
            $1 == "deb" {
                line = $0
                if (match(line, /\[[^]]*\]/)) {
                    options = substr(line, RSTART, RLENGTH); line = substr(line, 1, RSTART - 1) substr(line, RSTART + RLENGTH)
                    if (match(options, /signed-by=\/[^] ]*/)) key = substr(options, RSTART + 10, RLENGTH - 10)
                }
                split(line, part, /[ \t]+/); uri = part[2]; deb = 1; found = (part[3] == suite); give()
            }
            END { if (!exit_now) give() }' "$file"
    done | head -n 1
}

private_apt() {
    local command=$1
    shift
    "$command" -qq -o Dir::Etc="$scratch/apt" -o Dir::Etc::sourcelist="$scratch/apt/archive.sources" -o Dir::Etc::sourceparts=- \
        -o Dir::State="$scratch/apt" -o Dir::State::lists="$scratch/apt/lists" -o Dir::State::status="$scratch/apt/status" \
        -o Dir::Cache="$scratch/apt" -o Dir::Cache::archives="$scratch/apt/archives" -o Dir::Log="$scratch/apt" \
        -o APT::Sandbox::User=root -o APT::Install-Recommends=0 -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o APT::Update::Post-Invoke::= -o Debug::NoLocking=1 "$@"
}

# Unpacks criu of one suite with everything it needs, C library included, and starts it through its own ld.so.
criu_from_suite() {
    local uri=$1 keyring=$2 suite=$3 components=$4 deb version dir loader wrapper libraries
    rm -rf "$scratch/apt"
    mkdir -p "$scratch/apt/lists/partial" "$scratch/apt/archives/partial"
    : >"$scratch/apt/status" # pretends that nothing is installed: so apt picks the whole set of libraries
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nTargets: Packages\n' "$uri" "$suite" "$components"
        [ "$keyring" = - ] || printf 'Signed-By: %s\n' "$keyring"
    } >"$scratch/apt/archive.sources"
    say "CRIU: fetching it from the suite '$suite' of this machine's archive"
    if ! private_apt apt-get --error-on=any update >"$scratch/apt/log" 2>&1; then
        if grep -q NO_PUBKEY "$scratch/apt/log"; then
            say "CRIU: ${keyring} does not hold the key that signs '$suite' (upgrade the package debian-archive-keyring)"
        else
            tail -n 3 "$scratch/apt/log" >&2
        fi
        return 1
    fi
    if ! private_apt apt-get -y --download-only install criu >"$scratch/apt/log" 2>&1; then
        tail -n 3 "$scratch/apt/log" >&2
        return 1
    fi
    version=$(for deb in "$scratch"/apt/archives/criu_*.deb; do dpkg-deb -f "$deb" Version; done)
    mkdir -p "$criu_prefix/bin"
    # A name that was never used before, next to its final place: the switch to it is one rename of the wrapper.
    dir=$(mktemp -d "$criu_prefix/criu-${version//[^0-9A-Za-z.+-]/_}.XXXXXX")
    chmod 755 "$dir"
    for deb in "$scratch"/apt/archives/*.deb; do
        dpkg-deb -x "$deb" "$dir"
    done
    rm -rf "$dir/usr/share/man" "$dir/usr/share/locale"
    loader=$(find "$dir" -name 'ld-linux*.so*' -type f | head -n 1)
    libraries=$(find "$dir" -name 'lib*.so.*' -printf '%h\n' | sort -u | paste -sd:)
    [ -n "$loader" ] && [ -x "$dir/usr/sbin/criu" ] || { rm -rf "$dir"; say "CRIU: unexpected contents of its package"; return 1; }
    wrapper=$(mktemp "$criu_prefix/bin/.criu.XXXXXX")
    cat >"$wrapper" <<WRAPPER
#!/bin/sh
# CRIU $version with its own C library; written by offshoot's setup.sh
exec "$loader" --library-path "$libraries" "$dir/usr/sbin/criu" "\$@"
WRAPPER
    chmod 755 "$wrapper"
    if ! criu_works "$wrapper"; then
        rm -rf "$dir" "$wrapper"
        return 1
    fi
    mv -f "$wrapper" "$criu_prefix/bin/criu"
    for deb in "$criu_prefix"/criu-*; do # those of former runs
        [ "$deb" = "$dir" ] || rm -rf "$deb"
    done
    say "CRIU: $version unpacked into $criu_prefix"
}

ensure_criu() {
    local candidate uri keyring suites components suite found
    for candidate in "$(command -v criu || true)" "$criu_prefix/bin/criu"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ] && criu_works "$candidate"; then
            say "CRIU: $candidate works on this kernel"
            return
        fi
    done
    case "$distribution" in
    debian) suites='sid trixie' components='main' ;;
    ubuntu) suites='devel' components='main universe' ;;
    esac
    found=$(archive_of_this_machine "$codename")
    if [ -z "$found" ]; then
        warn "CRIU: no archive of $distribution $codename in apt's sources; put a working criu into PATH or $criu_prefix/bin."
    else
        read -r uri keyring <<<"$found"
        if [ "$keyring" = - ] && [ -r "/usr/share/keyrings/$distribution-archive-keyring.gpg" ]; then
            keyring=/usr/share/keyrings/$distribution-archive-keyring.gpg
        fi
        for suite in $suites; do
            if criu_from_suite "$uri" "$keyring" "$suite" "$components"; then
                return
            fi
        done
        warn "CRIU: none that works on kernel $(uname -r) was found in: $suites."
    fi
    warn "without CRIU clones get the same disks but start their processes afresh (rung 'disk')."
}

# --- Main -------------------------------------------------------------------------------------------------------

sets=()
while [ $# -gt 0 ]; do
    case "$1" in
    run | build | test | bench | browser) sets+=("$1") ;;
    --criu-prefix)
        [ $# -ge 2 ] || fail "--criu-prefix needs a folder"
        criu_prefix=$2
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) fail "unknown word '$1'; it takes: run, build, test, bench, browser, --criu-prefix DIR" ;;
    esac
    shift
done
[ ${#sets[@]} -gt 0 ] || sets=(run)
case "$criu_prefix" in
/*[\"\$\`\\]*) fail "the CRIU folder must not hold quotes, dollars or backslashes: $criu_prefix" ;;
/?*) criu_prefix=${criu_prefix%/} ;;
*) fail "the CRIU folder must be an absolute path: $criu_prefix" ;;
esac

distribution=$(. /etc/os-release 2>/dev/null && printf %s "${ID:-}") || true
codename=$(. /etc/os-release 2>/dev/null && printf %s "${VERSION_CODENAME:-}") || true
case "$distribution" in
debian | ubuntu) ;;
*)
    fail "this script knows Debian and Ubuntu, not '${distribution:-an unknown system}'. Install by hand:
  run:   runc, nftables, btrfs-progs, mmdebstrap (for package images), iproute2, criu (4.0 or newer)
  build: a C and C++ compiler, make, cmake, pkg-config
  test:  docker-registry (the registry as a plain program), busybox (static), redis, wrk, curl
then let 'offshoot doctor' tell what is still missing."
    ;;
esac
[ "$(id -u)" = 0 ] || fail "must be run as root (try: sudo $0 ${sets[*]})"
scratch=$(mktemp -d "${TMPDIR:-/tmp}/offshoot-setup.XXXXXX")

packages=()
for set in "${sets[@]}"; do
    case "$set" in
    run) packages+=("${RUN_PACKAGES[@]}") ;;
    build) packages+=("${BUILD_PACKAGES[@]}") ;;
    test) packages+=("${TEST_PACKAGES[@]}") ;;
    bench) packages+=("${BENCH_PACKAGES[@]}") ;;
    browser) packages+=("${BROWSER_PACKAGES[@]}") ;;
    esac
done
ensure_packages "${packages[@]}"
case " ${sets[*]} " in *" browser "*) ensure_axe ;; esac
case " ${sets[*]} " in *" run "*) ensure_criu ;; esac
say "done"
