#!/usr/bin/env python3
"""A raw packet socket on one interface, driven by lines.

Usage: raw.py IFNAME [--head BYTES] [--min BYTES]

stdin   s HEX            send a frame
        m N SEED HEX     send N frames: HEX with a new source MAC each, 02:SEED:n (n in 4 bytes)
        e                answer "e": everything before is sent
stdout  r LENGTH HEX     a frame came in (at most --head bytes of it, its VLAN tag put back); shorter ones than --min
                         are left out
        e                answer to e
"""

import argparse
import select
import socket
import struct
import sys
import time

SOL_PACKET, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 8, 23
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6


def open_socket(ifname):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE
    sock.bind((ifname, 3))  # ETH_P_ALL
    return sock


def receive(sock):
    frame, control, _, _ = sock.recvmsg(1 << 17, 256)
    for level, kind, data in control:
        if level == SOL_PACKET and kind == PACKET_AUXDATA:
            status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", data[:20])
            if status & TP_STATUS_VLAN_VALID:
                if not status & TP_STATUS_VLAN_TPID_VALID:
                    tpid = 0x8100
                frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    return frame


def send(sock, frame):
    while True:
        try:
            sock.send(frame)
            return
        except OSError as error:
            if error.errno != 105:  # ENOBUFS: the interface's queue is full
                raise
            time.sleep(0.001)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ifname")
    parser.add_argument("--head", type=int, default=1 << 17)
    parser.add_argument("--min", type=int, default=0)
    arguments = parser.parse_args()
    sock = open_socket(arguments.ifname)
    out = sys.stdout
    out.write("open\n")
    out.flush()
    pending = b""
    stdin = sys.stdin.buffer.raw
    while True:
        ready, _, _ = select.select([sock, stdin], [], [])
        if sock in ready:
            try:
                frame = receive(sock)
            except OSError as error:  # ENETDOWN: told once
                out.write(f"x {error.errno}\n")
                out.flush()
                continue
            if len(frame) >= arguments.min:
                out.write(f"r {len(frame)} {frame[:arguments.head].hex()}\n")
                out.flush()
        if stdin in ready:
            more = stdin.read(1 << 20)
            if not more:
                return
            *lines, pending = (pending + more).split(b"\n")
            for line in lines:
                words = line.split()
                if words[0] == b"s":
                    send(sock, bytes.fromhex(words[1].decode()))
                elif words[0] == b"m":
                    seed, frame = int(words[2]), bytes.fromhex(words[3].decode())
                    for n in range(int(words[1])):
                        send(sock, frame[:6] + struct.pack("!BBI", 2, seed, n) + frame[12:])
                elif words[0] == b"e":
                    out.write("e\n")
                    out.flush()


main()
