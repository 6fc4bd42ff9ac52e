#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs a command as systemd would for a unit: with the unit's SystemCallFilter=, and a listening socket.

    confined.py UNIT-FILE SOCKET COMMAND...

A call that the filter doesn't let through ends the process with SIGSYS.
"""

import ctypes
import os
import re
import socket
import subprocess
import sys

KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000  # libseccomp's actions


def members(word):
    """The system calls that a word of SystemCallFilter= stands for."""
    if not word.startswith("@"):
        return {word}
    # Newer versions of systemd's programs report their end to NOTIFY_SOCKET, which is for the server's READY=1.
    env = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    listing = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True,
                             check=True, env=env).stdout
    words = re.findall(r"^    ([@\w-]+)$", listing, re.M)
    return set().union(*map(members, words))


def allowed(unit):
    calls = set()
    with open(unit, encoding="utf-8") as file:
        for value in re.findall(r"^SystemCallFilter=(.*)$", file.read(), re.M):
            meant = set().union(*(members(word) for word in value.lstrip("~").split()))
            calls = calls - meant if value.startswith("~") else calls | meant
    return calls | members("@default")


def confine(calls):
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    for function in (lib.seccomp_load, lib.seccomp_rule_add_array):
        function.argtypes = None
    context = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(KILL_PROCESS)))
    for call in sorted(calls):
        number = lib.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            failed = lib.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, 0, None)
            assert failed == 0, (call, failed)
    assert lib.seccomp_load(context) == 0


def main():
    unit, path, *command = sys.argv[1:]
    calls = allowed(unit)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)  # if the listener already was 3, dup2 has changed nothing
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    confine(calls)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
