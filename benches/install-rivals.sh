#!/usr/bin/env bash
# Installs the rivals that `make bench` measures and this machine does not have. Starts no service and touches no setting:
# docker-proxy, which comes with Docker's daemon, is only unpacked into a folder (the first argument).
set -eu

folder=$1
packages=()
while read -r program package; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null 2>&1 || packages+=("$package")
done <<'LIST'
iptables      iptables
ss            iproute2
ovs-vswitchd  openvswitch-switch
vde_switch    vde2
vde_plug2tap  vde2
slirp4netns   slirp4netns
pasta         passt
LIST

proxy=
if ! PATH=$PATH:/usr/sbin:/sbin command -v docker-proxy >/dev/null 2>&1 && [ ! -x "$folder/docker-proxy" ]; then
  proxy=docker.io
fi
[ ${#packages[@]} -eq 0 ] && [ -z "$proxy" ] && exit 0

# A missing rival is a gap in the tables, told loudly: nothing to stop for.
if ! command -v apt-get >/dev/null; then
  echo "warning: without apt-get these rivals are not measured: ${packages[*]:-} $proxy" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
if [ ${#packages[@]} -gt 0 ]; then
  # Open vSwitch's package would start its daemons (policy-rc.d: invoke-rc.d(8)).
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  for package in "${packages[@]}"; do
    apt-get install -qy --no-install-recommends "$package" ||
      echo "warning: $package cannot be installed: its rival is not measured" >&2
  done
fi
if [ -n "$proxy" ]; then
  scratch=$(mktemp -d)
  if (cd "$scratch" && apt-get download -q docker.io && dpkg-deb -x docker.io_*.deb .); then
    mkdir -p "$folder"
    find "$scratch" -type f -name docker-proxy -exec install -m 755 {} "$folder/docker-proxy" \;
    dpkg-deb -W --showformat='${Package} ${Version}\n' "$scratch"/docker.io_*.deb >"$folder/docker-proxy.version"
  else
    echo "warning: docker.io cannot be had: docker-proxy is not measured" >&2
  fi
  rm -rf "$scratch"
fi
