#!/usr/bin/env python3
"""files.py [DIR]: firn's look, ls, cat and cp beside guestfish, debugfs, 7z and the kernel's mount; Markdown on stdout.

DIR (target/bench-files) gets what is needed, once: an ext4 file system with a large file and 20,000 small ones, the same
on LVM on a partition in a VMDK, and a pool with a snapshot of that. Making the volume group and the kernel's mount take
root and loop devices. With --guest FILE.raw that disk's first partition becomes the file system on LVM.

Rounds go through all tools in turn, with the images in the page cache; the first round is not counted. Times are wall
clock of the whole process, memory is its highest resident set. What a tool cannot do is left out.
"""

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGE = 1 << 30
SMALL_FILES = 20_000


def run(*command, **options):
    """Runs a command that must succeed."""
    return subprocess.run([str(part) for part in command], check=True, **options)


def output(*command):
    return run(*command, stdout=subprocess.PIPE, text=True).stdout


def measure(command):
    """Seconds that one command takes, its output thrown away; None when it fails."""
    began = time.perf_counter()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        print(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}", file=sys.stderr)
        return None
    return seconds


def peak_memory(command, report):
    """Peak resident bytes of one command. A child of this process would count what this process has."""
    if not shutil.which("time"):
        return None
    run("time", "-f", "%M", "-o", report, *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return int(report.read_text().split()[-1]) * 1024


def make_tree(tree):
    """A large file, 20,000 small ones in 100 folders; the seed is fixed."""
    source = random.Random(1)
    for folder in range(100):
        place = tree / "small" / f"{folder:03}"
        place.mkdir(parents=True)
        for number in range(SMALL_FILES // 100):
            (place / f"{number:03}").write_bytes(source.randbytes(source.randint(100, 9000)))
    with open(tree / "large", "wb") as large:
        for _ in range(LARGE >> 20):
            large.write(source.randbytes(1 << 20))


def first_partition(disk, target):
    """Copies the first partition of a disk."""
    line = next(line for line in output("sfdisk", "-d", disk).splitlines() if "start=" in line)
    fields = dict(field.strip().split("=") for field in line.split(":", 1)[1].split(",") if "=" in field)
    run("dd", f"if={disk}", f"of={target}", "bs=1M", f"skip={int(fields['start']) // 2048}",
        f"count={int(fields['size']) // 2048}", "conv=sparse", "status=none")


VOLUME = """
logical_volumes {
  root {
    id = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"
    status = ["READ", "WRITE", "VISIBLE"]
    flags = []
    segment_count = 1
    segment1 { start_extent = 0 extent_count = COUNT type = "striped" stripe_count = 1 stripes = ["pv0", 0] }
  }
}
"""


def make_lvm(system, disk):
    """Puts a file system on a logical volume in a partition.

    Without device-mapper lvcreate does not work; the volume is put into the group's metadata as its own backup.
    """
    size = system.stat().st_size + (8 << 20)
    with open(disk, "wb") as file:
        file.truncate(size + (2 << 20))
    run("sfdisk", "-q", disk, input=f"label: gpt\nstart=2048, size={size // 512}, type=lvm\n", text=True)
    loop = output("losetup", "-f", "--show", "-o", 1 << 20, "--sizelimit", size, disk).strip()
    backup = disk.with_suffix(".lvm")
    try:
        only = ["--nolocking", "--config", f'devices {{ use_devicesfile=0 filter=["a|^{loop}$|","r|.*|"] }}']
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run("pvcreate", *only, loop, **quiet)
        run("vgcreate", *only, "bench", loop, **quiet)
        run("vgcfgbackup", *only, "-f", backup, "bench", **quiet)
        text = backup.read_text()
        count = int(next(line for line in text.splitlines() if "pe_count" in line).split("=")[1].split("#")[0])
        start = int(next(line for line in text.splitlines() if "pe_start" in line).split("=")[1].split("#")[0]) * 512
        end = text.rindex("}", 0, text.rindex("}\n\n}") + 4) if "}\n\n}" in text else text.rindex("}")
        backup.write_text(text[:end] + VOLUME.replace("COUNT", str(count)) + text[end:])
        run("vgcfgrestore", *only, "-f", backup, "bench", **quiet)
    finally:
        run("losetup", "-d", loop)
    run("dd", f"if={system}", f"of={disk}", "bs=1M", f"seek={1 + (start >> 20)}", "conv=notrunc,sparse", "status=none")


def prepare(folder, guest, firn):
    """Makes what is missing in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "files.img").exists():
        make_tree(folder / "tree")
        with open(folder / "new.img", "wb") as file:
            file.truncate(2 << 30)
        run("mkfs.ext4", "-q", "-F", "-d", folder / "tree", folder / "new.img")
        shutil.rmtree(folder / "tree")
        os.rename(folder / "new.img", folder / "files.img")
    if not (folder / "lvm.vmdk").exists():
        system = folder / "files.img"
        if guest:
            system = folder / "guest.img"
            first_partition(guest, system)
        make_lvm(system, folder / "lvm.raw")
        run("qemu-img", "convert", "-O", "vmdk", folder / "lvm.raw", folder / "new.vmdk")
        os.rename(folder / "new.vmdk", folder / "lvm.vmdk")
    key = folder / "key"
    if not (folder / "pool").exists():
        key.write_bytes(random.Random(2).randbytes(64))
        run(firn, "-q", "--key-file", key, "init", folder / "new-pool", stdout=subprocess.DEVNULL)
        run(firn, "-q", "--pool", folder / "new-pool", "--key-file", key, "snap", "web1", folder / "lvm.vmdk",
            stdout=subprocess.DEVNULL)
        os.rename(folder / "new-pool", folder / "pool")


def tasks(folder, firn, mount):
    """The work: its name, and what each tool has to run for it."""
    image, vmdk, out = folder / "files.img", folder / "lvm.vmdk", folder / "out"
    pool = ["--pool", folder / "pool", "--key-file", folder / "key"]
    where = output(firn, "-q", "ls", vmdk).split()
    listed = "/etc" if "etc" in where else "/small/007"
    inside = "/dev/bench/root"
    has = shutil.which
    yield "look at LVM in a VMDK", {"firn": [firn, "-q", "look", vmdk]}
    yield f"ls {listed}, LVM + ext4 in a VMDK", {
        "firn": [firn, "-q", "ls", f"{vmdk}:{listed}"],
        "firn, out of a pool": [firn, "-q", *pool, "ls", f"web1:{listed}"],
        "guestfish": has("guestfish") and ["guestfish", "--ro", "-a", vmdk, "run", ":", "mount-ro", inside, "/", ":",
                                           "ls", listed],
    }
    yield "ls /small/007, ext4 alone", {
        "firn": [firn, "-q", "ls", f"{image}:/small/007"],
        "debugfs": has("debugfs") and ["debugfs", "-R", "ls -l /small/007", image],
        "7z": has("7z") and ["7z", "l", image, "small/007"],
    }
    yield "cp one file of 1 GiB", {
        "kernel mount, cp": mount and ["cp", "-a", mount / "large", out],
        "firn": [firn, "-q", "cp", f"{image}:/large", out],
        "debugfs": has("debugfs") and ["debugfs", "-R", f"dump -p /large {out}", image],
        "7z": has("7z") and ["7z", "e", "-y", f"-o{out}", image, "large"],
    }
    yield f"cp {SMALL_FILES} small files", {
        "kernel mount, cp": mount and ["cp", "-a", mount / "small", out],
        "firn": [firn, "-q", "cp", "-r", f"{image}:/small", out],
        "debugfs": has("debugfs") and ["sh", "-c", f"mkdir {out} && debugfs -R 'rdump /small {out}' {image}"],
        "7z": has("7z") and ["7z", "x", "-y", f"-o{out}", image, "small"],
    }


def put_away(out):
    """Makes room for the next copy. A folder is kept until the end: ext4 is slow to use inodes again that were freed
    a moment ago, which would be measured instead of the copying."""
    if out.is_dir():
        out.rename(out.with_name(f"done-{time.monotonic_ns()}"))
    out.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "target/bench-files")
    parser.add_argument("--guest", type=Path, help="a raw disk whose first partition is a Linux root in ext4")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    folder = arguments.folder.resolve()
    firn = Path(os.environ.get("FIRN", ROOT / "target/release/firn")).resolve()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    prepare(folder, arguments.guest, firn)
    mount = None
    if os.geteuid() == 0:
        mount = folder / "mnt"
        mount.mkdir(exist_ok=True)
        run("mount", "-o", "loop,ro", folder / "files.img", mount)
    try:
        print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
              f"medians of {arguments.rounds} rounds\n")
        print("| work | tool | seconds | least to most | memory | of the first |\n|---|---|---|---|---|---|")
        for name, tools in tasks(folder, firn, mount):
            measured = {tool: [] for tool, command in tools.items() if command}
            memory = {}
            for number in range(arguments.rounds + 1):
                for tool, seconds in measured.items():
                    put_away(folder / "out")
                    os.sync()
                    if number == 0:
                        memory[tool] = peak_memory(tools[tool], folder / "peak")
                    else:
                        seconds.append(measure(tools[tool]))
            reference = None
            for tool, seconds in measured.items():
                if None in seconds:
                    continue
                median = statistics.median(seconds)
                reference = reference or median
                peak = f"{memory[tool] / 1e6:.0f} MB" if memory[tool] else "?"
                print(f"| {name} | {tool} | {median:.3f} | {min(seconds):.3f} to {max(seconds):.3f} "
                      f"| {peak} | {reference / median:.2f} x |", flush=True)
                name = ""
    finally:
        put_away(folder / "out")
        for done in folder.glob("done-*"):
            shutil.rmtree(done)
        if mount:
            run("umount", mount)


if __name__ == "__main__":
    main()
