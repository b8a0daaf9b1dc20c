#!/usr/bin/env python3
"""load.py FOLDER: writes files into FOLDER without end, each made durable before its name and SHA-256 are.

Whatever stands in FOLDER/list at any instant, with a whole line, is a file that was fsynced before, folder included: a
crash-consistent copy of the disk has it with that hash. Old files go, so that space is reused, after a line says so.
"""

import hashlib
import os
import sys


def durable(path, data, mode):
    with open(path, mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def main():
    os.chdir(sys.argv[1])
    folder = os.open(".", os.O_RDONLY)
    number = 0
    while True:
        data = os.urandom(64 + number * 7919 % 300000)
        durable(f"f{number}", data, "wb")
        os.fsync(folder)
        durable("list", f"+ f{number} {hashlib.sha256(data).hexdigest()}\n".encode(), "ab")
        os.fsync(folder)
        if number >= 60:
            durable("list", f"- f{number - 60}\n".encode(), "ab")
            os.unlink(f"f{number - 60}")
        number += 1


if __name__ == "__main__":
    main()
