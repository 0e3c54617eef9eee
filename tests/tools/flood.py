#!/usr/bin/env python3
"""Sends frames as fast as it can, of one kind, for some seconds.

Usage: flood.py IFNAME SECONDS KIND SOURCE-MAC SOURCE-IP TARGET-MAC TARGET-IP

KIND: broadcast, mac (a new source MAC each), arp, syn, udp, fragment. Writes how many frames the kernel took.
"""

import os
import socket
import struct
import sys
import time

ROUND = 512


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source, target, protocol, payload, offset=0, ident=0):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, offset, 64, protocol, 0) + source + target
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def frames(kind, own, source, to, target):
    for n in range(ROUND):
        port = os.urandom(2)
        if kind == "broadcast":
            yield b"\xff" * 6 + own + b"\x88\xb5" + bytes(46)
        elif kind == "mac":
            yield to + b"\x02" + os.urandom(5) + b"\x88\xb5" + bytes(46)
        elif kind == "arp":
            asked = target[:2] + os.urandom(2)
            yield b"\xff" * 6 + own + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + own + source + bytes(6) + asked
        elif kind == "syn":
            head = port + b"\0\x50" + os.urandom(4) + bytes(4) + b"\x50\x02\xff\xff" + bytes(4)
            pseudo = source + target + struct.pack("!HH", 6, len(head))
            head = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
            yield to + own + b"\x08\0" + ipv4(source, target, 6, head)
        elif kind == "udp":
            yield to + own + b"\x08\0" + ipv4(source, target, 17, port + port + b"\0\x20\0\0" + bytes(24))
        elif kind == "fragment":
            yield to + own + b"\x08\0" + ipv4(source, target, 17, bytes(24), 0x2001 + n % 100, n)


def main():
    ifname, seconds, kind, own, source, to, target = sys.argv[1:]
    own, to = (bytes.fromhex(mac.replace(":", "")) for mac in (own, to))
    source, target = (socket.inet_aton(address) for address in (source, target))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((ifname, 0))
    ready = list(frames(kind, own, source, to, target))
    end = time.monotonic() + float(seconds)
    sent = 0
    while time.monotonic() < end:
        for frame in ready:
            try:
                sock.send(frame)
                sent += 1
            except OSError as error:
                if error.errno != 105:  # ENOBUFS: the interface's queue is full
                    raise
    print(sent)


main()
