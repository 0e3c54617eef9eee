#!/usr/bin/env bash
# Installs what the build, the demo and the tests need and this machine does not have. Says nothing when all is there.
set -eu

packages=()
while read -r program package; do
  command -v "$program" >/dev/null 2>&1 || packages+=("$package")
done <<'LIST'
cc            gcc
ip            iproute2
tc            iproute2
ss            iproute2
ping          iputils-ping
curl          curl
iperf3        iperf3
dhclient      isc-dhcp-client
dhcpcd        dhcpcd-base
dig           bind9-dnsutils
dnsmasq       dnsmasq-base
dbus-daemon   dbus-daemon
mtr           mtr-tiny
nc            netcat-openbsd
scp           openssh-client
ssh-keygen    openssh-client
traceroute    traceroute
tcpdump       tcpdump
rdisc6        ndisc6
python3       python3
ethtool       ethtool
nft           nftables
iptables-save iptables
sysctl        procps
nsenter       util-linux
setpriv       util-linux
script        bsdutils
mount         mount
unshare       util-linux
dockerd       docker.io
podman        podman
runc          runc
musl-gcc      musl-tools
LIST
# Not in everybody's PATH.
[ -x /usr/sbin/sshd ] || packages+=(openssh-server)
# A static one: the root file system of containers.
[ -x /bin/busybox ] || packages+=(busybox-static)
# Its package would make itself the machine's resolver: it is unpacked only, beside the library that it needs.
programs=target/programs
unpack=
if [ ! -x /lib/systemd/systemd-resolved ] && [ ! -x $programs/lib/systemd/systemd-resolved ] &&
  [ ! -x $programs/usr/lib/systemd/systemd-resolved ]; then
  unpack=systemd-resolved
  packages+=(libsystemd-shared)
fi
# Plugins of the CNI project, in nobody's PATH either.
[ -x /usr/lib/cni/tuning ] || packages+=(containernetworking-plugins)
# The CNI project's own library comes as source. What is built of it is kept, not the compiler.
libcni=
[ $programs/bin/libcni -nt tests/tools/libcni.go ] || libcni=golang-github-appc-cni-dev
[ ${#packages[@]} -eq 0 ] && [ -z "$libcni" ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "error: missing and not installable without apt-get: ${packages[*]} $libcni" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# The programs are wanted, not their services: Docker's would make a bridge and rules (policy-rc.d: invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get update -q
[ ${#packages[@]} -eq 0 ] || apt-get install -qy --no-install-recommends "${packages[@]}"
if [ -n "$unpack" ]; then
  scratch=$(mktemp -d)
  (cd "$scratch" && apt-get download -q "$unpack")
  mkdir -p "$programs"
  dpkg-deb -x "$scratch"/"$unpack"_*.deb "$programs"
  rm -rf "$scratch"
fi
if [ -n "$libcni" ]; then
  scratch=$(mktemp -d)
  go=$(apt-cache depends golang-go | sed -n 's/.*Depends: \(golang-[0-9.]*-go\)$/\1/p')
  (cd "$scratch" && apt-get download -q "$go" "${go%-go}-src" "$libcni")
  for package in "$scratch"/*.deb; do
    dpkg-deb -x "$package" "$scratch"
  done
  root=$(echo "$scratch"/usr/lib/go-*)
  mkdir -p "$programs"/bin
  env HOME="$scratch" GOROOT="$root" GOPATH="$scratch/usr/share/gocode" GO111MODULE=off GOFLAGS= CGO_ENABLED=0 \
    "$root/bin/go" build -ldflags '-s -w' -o "$programs/bin/libcni" tests/tools/libcni.go
  rm -rf "$scratch"
fi
