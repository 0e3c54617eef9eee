#!/usr/bin/env bash
# Plays the classic walk with swd: two containers reach each other, the host, the outside, and are reached from there.
#
# A "host" and containers are network namespaces of the demo's own; your machine's interfaces, routes and firewall are not
# touched. Every command is shown with its real output. Any that fails ends the demo, with a non-zero exit code.
set -euo pipefail

bin=$(cd "$(dirname "$0")/../target/release" && pwd)
for program in swd swctl; do
  [ -x "$bin/$program" ] || { echo "error: $bin/$program is missing; run 'make demo'" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "error: network namespaces need root; run 'sudo make demo'" >&2; exit 1; }

id=demo$$
switch=$id-swd host=$id-host outside=$id-out c1=$id-c1 c2=$id-c2 c3=$id-c3 c4=$id-c4
dir=$(mktemp -d)
export PATH=$bin:$PATH SWD_SOCKET=$dir/run/$switch.sock
swd_pid= web_pid=

clean_up() {
  code=$?
  set +e
  if [ -n "$web_pid" ]; then kill "$web_pid" 2>/dev/null; fi
  if [ -n "$swd_pid" ]; then kill "$swd_pid" 2>/dev/null; wait "$swd_pid" 2>/dev/null; fi
  for ns in "$c1" "$c2" "$c3" "$c4" "$outside" "$host" "$switch"; do
    [ -e "/run/netns/$ns" ] && ip netns del "$ns"
  done
  if [ "$code" != 0 ]; then
    printf '\nThe demo failed (exit code %s). swd said:\n' "$code"
    cat "$dir/log"
  fi
  rm -rf "$dir"
  exit "$code"
}
trap clean_up EXIT

bold= plain=
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
# Show a command with the place where it runs, and run it there.
at() {
  local place=$1 ns=$2; shift 2
  printf '%s%s$%s %s\n' "$bold" "$place" "$plain" "$*"
  nsenter --net="/run/netns/$ns" "$@"
}
host() { at host "$host" "$@"; }
outside() { at outside "$outside" "$@"; }
c1() { at c1 "$c1" "$@"; }
c2() { at c2 "$c2" "$@"; }
c3() { at c3 "$c3" "$@"; }
c4() { at c4 "$c4" "$@"; }

start_swd() {
  local log=$dir/log
  : >"$log"
  printf '%shost$%s swd &\n' "$bold" "$plain"
  nsenter --net="/run/netns/$host" swd --name "$switch" --runtime-dir "$dir/run" --state-dir "$dir/state" \
    >"$log" 2>&1 &
  swd_pid=$!
  for _ in $(seq 100); do
    grep -qx ready "$log" && { echo ready; return; }
    kill -0 "$swd_pid" 2>/dev/null || return 1
    sleep 0.1
  done
  return 1
}

say "Three namespaces: a host, and two containers with a cable to it each, as in the classic walk"
for ns in "$host" "$outside" "$c1" "$c2"; do
  ip netns add "$ns"
  ip -n "$ns" link set lo up
done
host ip link add veth1 type veth peer name eth0 netns "$c1"
host ip link add veth2 type veth peer name eth0 netns "$c2"
host ip addr add 192.0.2.7/32 dev lo
host ip link add eth0 type veth peer name eth0 netns "$outside"
host ip addr add 172.16.0.2/16 dev eth0
host ip link set eth0 up
outside ip addr add 172.16.0.1/16 dev eth0
outside ip link set eth0 up
host ip route add default via 172.16.0.1
c1 ip addr add 172.18.0.10/16 dev eth0
c1 ip link set eth0 up
c1 ip route add default via 172.18.0.1
c2 ip addr add 172.18.0.20/16 dev eth0
c2 ip link set eth0 up
c2 ip route add default via 172.18.0.1
nsenter --net="/run/netns/$host" sysctl -a 2>/dev/null | grep '^net\.ipv4\.ip_forward' >"$dir/sysctl" || true

say "The switch is a process"
start_swd
say "What was 'ip link set veth1 master br0' is:"
host swctl port add veth1 --name c1
host swctl port add veth2 --name c2

say "The containers reach each other, the host reaches them, and they reach the gateway and every address of the host"
c1 ping -n -c2 -i0.2 172.18.0.20
c2 ping -n -c1 172.18.0.10
host ping -n -c1 172.18.0.10
c1 ping -n -c1 172.18.0.1
c1 ping -n -c1 192.0.2.7

say "The outside: reached behind the host's address; it has no route to the containers"
c1 ping -n -c1 172.16.0.1
outside ip route

say "A web server in c1, published: from outside, from the host, from c2, from c1 itself"
python=$(python3 -c 'import sys; print(sys.executable)')
(cd "$dir" && echo 'hello from c1' >page && exec nsenter --net="/run/netns/$c1" "$python" -m http.server 5000) >/dev/null 2>&1 &
web_pid=$!
host swctl publish 5000 172.18.0.10:5000
for _ in $(seq 50); do nsenter --net="/run/netns/$c1" ss -Hltn 'sport = :5000' | grep -q . && break; sleep 0.1; done
outside curl -s http://172.16.0.2:5000/page
host curl -s http://127.0.0.1:5000/page
host curl -s http://172.16.0.2:5000/page
c2 curl -s http://172.16.0.2:5000/page
c1 curl -s http://172.16.0.2:5000/page
host swctl published
host swctl conntrack ls
host swctl unpublish 5000
kill "$web_pid" 2>/dev/null

say "No bridge, no firewall rule, no forwarding was needed"
host ip -brief link
host nft list ruleset
host sysctl net.ipv4.ip_forward
[ -z "$(nsenter --net="/run/netns/$host" nft list ruleset)" ]
[ -z "$(nsenter --net="/run/netns/$host" ip link show type bridge)" ]

say "What the walk does by hand for a container, 'attach' does: cable, address, default route. Once with a veth pair, once with a TAP"
ip netns add "$c3"
ip netns add "$c4"
host swctl attach "$c3" --name c3
host swctl attach "$c4" --name c4 --tap
c3 ip -brief addr
c4 ip -brief addr
c3 ping -n -c1 172.18.0.10
c4 ping -n -c1 172.18.0.10

say "And 'run' starts a command in a new one"
host swctl run -- ip route
host swctl run --tap -- ping -n -c1 172.18.0.20

say "Offloads stay on: nothing was told to ethtool"
nsenter --net="/run/netns/$c2" iperf3 -s -1 >/dev/null &
for _ in $(seq 50); do nsenter --net="/run/netns/$c2" ss -Hltn 'sport = :5201' | grep -q . && break; sleep 0.1; done
c1 iperf3 -c 172.18.0.20 -t 2 -f g | grep -E 'sender|receiver'

say "What the switch knows"
host swctl status
host swctl network ls
host swctl port ls
host swctl fdb ls
host swctl drops

say "A kill -9 takes nothing along: swd comes back to what it was"
printf '%shost$%s kill -9 swd\n' "$bold" "$plain"
kill -9 "$swd_pid"
wait "$swd_pid" 2>/dev/null || true
start_swd
c1 ping -n -c2 -i0.2 172.18.0.20
c4 ping -n -c1 172.18.0.10
host swctl detach c4
host swctl port rm c1

printf '\nThat was the walk. Everything that the demo made is removed now.\n'
