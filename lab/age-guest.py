#!/usr/bin/env python3
"""age-guest.py ROOT: change the mounted guest under ROOT as some days of work would.

Always the same changes (a fixed seed), through the kernel's file system, so that blocks move as they do in life:
upgraded packages (new file, rename over the old one), logs that grew and rotated, a database with pages changed
in place, new files of users, and deleted ones.
"""

import os
import random
import sys

PAGE = 8192


def regular_files(top):
    """All regular files under top, in a fixed order."""
    found = []
    for folder, names, files in os.walk(top):
        names.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                found.append(path)
    return found


def upgrade(root, rng):
    """A tenth of the libraries come again as another build: the same but for patches, and a few bytes longer."""
    candidates = [p for p in regular_files(os.path.join(root, "usr/lib")) if "/modules/" not in p]
    total = 0
    for path in rng.sample(candidates, len(candidates) // 10):
        with open(path, "rb") as file:
            data = bytearray(file.read())
        if not data:
            continue
        for _ in range(1 + len(data) // 16384):
            at = rng.randrange(len(data))
            data[at : at + 8] = rng.randbytes(8)
        middle = rng.randrange(len(data))
        data[middle:middle] = rng.randbytes(rng.randrange(1, 64))
        with open(path + ".dpkg-new", "wb") as file:
            file.write(data)
        os.rename(path + ".dpkg-new", path)
        total += len(data)
    return total


def log_lines(rng, count):
    """Lines as a web server writes them."""
    agents = ["Mozilla/5.0 (X11; Linux x86_64)", "curl/8.5.0", "Go-http-client/1.1", "Prometheus/2.45"]
    for second in range(count):
        yield (
            f"10.{rng.randrange(4)}.{rng.randrange(256)}.{rng.randrange(256)} - - "
            f"[{1 + second // 86400:02}/Nov/2026:{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02} +0000] "
            f'"GET /item/{rng.randrange(100000)} HTTP/1.1" {rng.choice([200, 200, 200, 304, 404])} '
            f'{rng.randrange(50000)} "-" "{rng.choice(agents)}"\n'
        )


def grow_logs(root, rng):
    """A log that was rotated and one that goes on."""
    folder = os.path.join(root, "var/log")
    for name, count in (("web-access.log.1", 150000), ("web-access.log", 60000)):
        with open(os.path.join(folder, name), "w", encoding="ascii") as file:
            file.writelines(log_lines(rng, count))
    return sum(os.path.getsize(os.path.join(folder, name)) for name in ("web-access.log.1", "web-access.log"))


def change_database(root, rng):
    """A table of 48 MiB, then 600 of its pages rewritten in place."""
    path = os.path.join(root, "var/lib/table.db")
    pages = 48 * 1024 * 1024 // PAGE
    with open(path, "wb") as file:
        for number in range(pages):
            row = f"{number:016x} customer {rng.randrange(10**9):010} balance {rng.randrange(10**6):08} ".encode()
            file.write((row * (PAGE // len(row) + 1))[: PAGE - 64] + rng.randbytes(64))
    os.sync()
    with open(path, "r+b") as file:
        for _ in range(600):
            file.seek(rng.randrange(pages) * PAGE + rng.randrange(PAGE - 128))
            file.write(rng.randbytes(96))
    return pages * PAGE


def add_files(root, rng):
    """New files that do not compress (photographs), and copies of files that are there already."""
    folder = os.path.join(root, "srv/photographs")
    os.makedirs(folder)
    total = 0
    for number in range(20):
        size = rng.randrange(500_000, 2_000_000)
        with open(os.path.join(folder, f"{number:03}.jpg"), "wb") as file:
            file.write(rng.randbytes(size))
        total += size
    copies = os.path.join(root, "srv/copy-of-share")
    os.makedirs(copies)
    for number, path in enumerate(rng.sample(regular_files(os.path.join(root, "usr/share")), 1000)):
        with open(path, "rb") as source, open(os.path.join(copies, f"{number:04}"), "wb") as file:
            total += file.write(source.read())
    return total


def delete_files(root, rng):
    """What is deleted leaves its blocks behind until the next trim."""
    total = 0
    for path in rng.sample(regular_files(os.path.join(root, "usr/share/doc")), 300):
        total += os.path.getsize(path)
        os.unlink(path)
    return total


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = sys.argv[1]
    rng = random.Random(20261117)
    for step in (upgrade, grow_logs, change_database, add_files, delete_files):
        print(f"{step.__name__}: {step(root, rng) / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
