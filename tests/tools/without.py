#!/usr/bin/env python3
"""Runs a command in which one system call is refused with EPERM, as a container's or a service's seccomp profile does.

Usage: without.py bpf CMD...
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LD_W_ABS, JEQ, RET = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
NUMBERS = {"bpf": {"x86_64": 321, "aarch64": 280}}

number = NUMBERS[sys.argv[1]][os.uname().machine]
steps = [(LD_W_ABS, 0, 0, 0), (JEQ, 0, 1, number), (RET, 0, 0, REFUSE), (RET, 0, 0, ALLOW)]
program = b"".join(struct.pack("HBBI", *step) for step in steps)
code = ctypes.create_string_buffer(program)
described = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0) != 0:
    sys.exit(f"cannot refuse {sys.argv[1]}: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[2], sys.argv[2:])
