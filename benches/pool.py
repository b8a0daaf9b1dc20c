#!/usr/bin/env python3
"""pool.py [DIR]: firn beside restic, borg, qemu-img and cp on guests' disks; a table in Markdown on stdout.

DIR (target/bench-data) holds guest-a.raw, guest-a2.raw and guest-b.raw as lab/make-bench-images.sh makes them. Each
round gives each tool a fresh repository on the same file system, in turn, with the images in the page cache:

  first       guest-a into the empty repository
  again       guest-a once more, read in full (restic --force, borg without its files cache)
  changed     guest-a2
  other       guest-b, installed separately with other packages
  restore     guest-a to a raw file, which is compared with the original in the first round

Times are wall clock of the whole command, opening the repository included; before each the file system is synced.
Stored bytes are those of the repository's files. Memory is the highest resident set over all steps of a round, and of
that the anonymous part (sampled every 10 ms; what is mapped from files does not count there). A table gives medians.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("first", "again", "changed", "other", "restore")
MB = 1e6


@dataclass
class Usage:
    """What one command took."""

    seconds: float
    resident: int
    anonymous: int


@dataclass
class Round:
    """What one tool took in one round: by step, seconds and bytes stored after it."""

    seconds: dict = field(default_factory=dict)
    stored: dict = field(default_factory=dict)
    resident: int = 0
    anonymous: int = 0


def anonymous_bytes(pid):
    """Anonymous resident memory of a process, 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def measure(command, env, cwd=None):
    """Runs a command to its end; a failure ends the benchmark."""
    os.sync()
    start = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peak = 0
    done = threading.Event()

    def sample():
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_bytes(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    sampler.join()
    if process.returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{complaint.decode(errors='replace')}")
    return Usage(seconds, usage.ru_maxrss * 1024, peak)


def stored_bytes(folder):
    """Bytes that the files below take; a hole takes none."""
    total = 0
    for path in Path(folder).rglob("*"):
        if path.is_file():
            status = path.stat()
            total += min(status.st_size, status.st_blocks * 512)
    return total


class Tool:
    """A tool under test. Its repository is the folder `store`; nothing else of it outlives a round."""

    name = ""

    def __init__(self, work):
        self.work = work
        self.store = work / "store"
        self.env = {"HOME": str(work / "home"), "XDG_CACHE_HOME": str(work / "home/cache"), "TMPDIR": str(work)}

    def version(self):
        """The tool and its version, or None if it is not installed."""
        raise NotImplementedError

    def init(self):
        """Commands that make an empty repository."""
        return []

    def snap(self, label, image):
        """The command that takes the disk `image` in as `label`."""
        raise NotImplementedError

    def restore(self, label, image, out):
        """The command that gives `label` back below the folder `out`, and the file that it makes there."""
        raise NotImplementedError


class Firn(Tool):
    name = "firn"
    program = str(Path(os.environ.get("FIRN", ROOT / "target/release/firn")).resolve())

    def version(self):
        return first_line([self.program, "--version"])

    def call(self, *words):
        return [self.program, "--pool", self.store, *words]

    def init(self):
        return [[self.program, "init", self.store, "--no-password"]]

    def snap(self, label, image):
        return self.call("snap", label, f"vda={image}")

    def restore(self, label, image, out):
        return self.call("restore", f"{label}@first", out / "restored.raw"), out / "restored.raw"


class Restic(Tool):
    name = "restic"

    def version(self):
        return first_line(["restic", "version"])

    def call(self, *words):
        self.env.update(RESTIC_PASSWORD="benchmark", RESTIC_CACHE_DIR=str(self.work / "home/restic"))
        return ["restic", "--quiet", "--repo", self.store, *words]

    def init(self):
        return [self.call("init", "--repository-version", "2")]

    def snap(self, label, image):
        return self.call("backup", "--force", "--host", label, image)

    def restore(self, label, image, out):
        # The newest snapshot of that path is its only content.
        command = self.call("restore", "latest", "--host", label, "--path", image, "--target", out)
        return command, out / str(image).lstrip("/")


class Borg(Tool):
    compression = "lz4"

    @property
    def name(self):
        return f"borg ({self.compression})"

    def version(self):
        return first_line(["borg", "--version"])

    def call(self, *words):
        self.env.update(
            BORG_PASSPHRASE="benchmark",
            BORG_BASE_DIR=str(self.work / "home/borg"),
            BORG_RELOCATED_REPO_ACCESS_IS_OK="yes",
        )
        return ["borg", *words]

    def init(self):
        return [self.call("init", "--encryption=repokey-blake2", self.store)]

    def snap(self, label, image):
        archive = f"{self.store}::{label}-{{now:%s.%f}}"
        return self.call("create", "--files-cache=disabled", f"--compression={self.compression}", archive, image)

    def restore(self, label, image, out):
        listing = subprocess.run(
            self.call("list", "--short", "--glob-archives", f"{label}-*", "--first", "1", self.store),
            env={**os.environ, **self.env},
            check=True,
            capture_output=True,
            text=True,
        )
        archive = f"{self.store}::{listing.stdout.strip()}"
        return self.call("extract", "--sparse", archive), out / str(image).lstrip("/")


class BorgZstd(Borg):
    compression = "zstd,1"


class QemuImg(Tool):
    name = "qemu-img convert (qcow2)"
    options = ()

    def version(self):
        return first_line(["qemu-img", "--version"])

    def file(self, label):
        """Each state is a file of its own; the first one keeps its name."""
        self.store.mkdir(exist_ok=True)
        return self.store / f"{label}-{len(list(self.store.iterdir()))}"

    def snap(self, label, image):
        return ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *self.options, image, self.file(label)]

    def restore(self, label, image, out):
        first = self.store / f"{label}-0"
        return ["qemu-img", "convert", "-O", "raw", first, out / "restored.raw"], out / "restored.raw"


class QemuImgZstd(QemuImg):
    name = "qemu-img convert -c (zstd)"
    options = ("-c", "-o", "compression_type=zstd")


class Cp(QemuImg):
    name = "cp --sparse=always"

    def version(self):
        return first_line(["cp", "--version"])

    def snap(self, label, image):
        return ["cp", "--sparse=always", image, self.file(label)]

    def restore(self, label, image, out):
        return ["cp", "--sparse=always", self.store / f"{label}-0", out / "restored.raw"], out / "restored.raw"


TOOLS = (Firn, Restic, Borg, BorgZstd, QemuImg, QemuImgZstd, Cp)


def first_line(command):
    """The first line that a program prints, None if there is no such program."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, PermissionError):
        return None
    return result.stdout.splitlines()[0]


def warm(image):
    """Reads a file into the page cache."""
    with open(image, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def run_round(kind, images, work, compare):
    """One round of one tool, in an empty folder `work`."""
    (work / "home").mkdir(parents=True)
    out = work / "out"
    out.mkdir()
    tool = kind(work)
    result = Round()

    def step(name, command, image, cwd=None):
        warm(image)
        usage = measure(command, tool.env, cwd)
        result.seconds[name] = usage.seconds
        result.stored[name] = stored_bytes(tool.store)
        result.resident = max(result.resident, usage.resident)
        result.anonymous = max(result.anonymous, usage.anonymous)

    for command in tool.init():
        measure(command, tool.env)
    step("first", tool.snap("web1", images["a"]), images["a"])
    step("again", tool.snap("web1", images["a"]), images["a"])
    step("changed", tool.snap("web1", images["a2"]), images["a2"])
    step("other", tool.snap("web2", images["b"]), images["b"])
    command, restored = tool.restore("web1", images["a"], out)
    step("restore", command, images["a"], cwd=out)
    if compare and subprocess.run(["cmp", "--quiet", images["a"], restored], check=False).returncode != 0:
        sys.exit(f"{tool.name}: what was restored to {restored} differs from {images['a']}")
    return result


def median_round(rounds):
    """The median of each figure over the rounds of a tool."""
    return Round(
        {step: statistics.median(r.seconds[step] for r in rounds) for step in STEPS},
        {step: statistics.median(r.stored[step] for r in rounds) for step in STEPS},
        statistics.median(r.resident for r in rounds),
        statistics.median(r.anonymous for r in rounds),
    )


def print_table(header, rows):
    """A Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|---" + "|--:" * (len(header) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def print_results(results, data):
    """The medians of each tool, in its own units."""

    def timed(result, step, amount):
        seconds = result.seconds[step]
        return f"{seconds:.2f} s, {data[amount] / MB / seconds:.0f} MB/s"

    def size(value):
        return f"{value / MB:.0f}"

    print("Time of each step, and MB of guest data by second:\n")
    print_table(
        ("", "first snapshot", "again, unchanged", "changed guest", "other guest", "restore"),
        [
            [name] + [timed(r, s, a) for s, a in zip(STEPS, ("a", "a", "a2", "b", "a"))]
            for name, r in results.items()
        ],
    )
    print("MB stored, and memory:\n")
    print_table(
        ("", "one guest", "+ again", "+ changed", "two guests", "peak memory MB", "of it anonymous MB"),
        [
            [name]
            + [size(r.stored[step]) for step in ("first", "again", "changed", "other")]
            + [size(r.resident), size(r.anonymous)]
            for name, r in results.items()
        ],
    )


def print_ratios(results):
    """firn against each peer: how many times faster, and its stored bytes in percent of theirs."""
    if "firn" not in results:
        return
    firn = results["firn"]
    print("firn against each: how many times as fast, and its stored bytes in percent of theirs:\n")
    rows = []
    for name, peer in results.items():
        if name != "firn":
            faster = [f"{peer.seconds[step] / firn.seconds[step]:.2f} ×" for step in STEPS]
            smaller = [f"{100 * firn.stored[step] / peer.stored[step]:.0f} %" for step in ("first", "changed", "other")]
            rows.append([name] + faster + smaller)
    header = ("", "first", "again", "changed", "other", "restore", "one guest", "one guest, changed", "two guests")
    print_table(header, rows)


def sparse_disk(work):
    """firn's memory on a sparse disk of 1 TiB."""
    work.mkdir(parents=True)
    (work / "home").mkdir()
    image = work / "sparse.raw"
    with open(image, "wb") as file:
        file.truncate(1 << 40)
        for at in range(0, 1 << 40, 1 << 34):
            file.seek(at)
            file.write(os.urandom(1 << 16))
    tool = Firn(work)
    for command in tool.init():
        measure(command, tool.env)
    snap = measure(tool.snap("sparse", image), tool.env)
    print(
        f"Sparse disk of 1 TiB with 4 MiB of data, `firn snap`: {snap.seconds:.2f} s, "
        f"peak memory {snap.resident / MB:.0f} MB, of it anonymous {snap.anonymous / MB:.0f} MB.\n"
    )


def describe_machine():
    """What the figures were taken on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} × {models[0] if models else 'CPU'}, {memory >> 30} GiB of memory, Linux {platform.release()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT / "target/bench-data", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAMES", help="only tools whose name begins with one of these, by commas")
    parser.add_argument("--work", type=Path, help="where repositories are made (DIR/work)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single figure there")
    options = parser.parse_args()

    data = options.data.resolve()
    images = {key: data / f"guest-{key}.raw" for key in ("a", "a2", "b")}
    for image in images.values():
        if not image.exists():
            sys.exit(f"{image} is missing; make it with lab/make-bench-images.sh {data}")
    work = (options.work or data / "work").resolve()
    wanted = tuple(options.only.split(","))
    tools, versions = [], []
    for kind in TOOLS:
        tool = kind(work)
        if not tool.name.startswith(wanted):
            continue
        version = tool.version()
        if version is None:
            print(f"{tool.name} is not there and is left out", file=sys.stderr)
        else:
            tools.append((tool.name, kind))
            if version not in versions:
                versions.append(version)

    rounds = {name: [] for name, _ in tools}
    for number in range(options.rounds):
        for name, kind in tools:
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
            shutil.rmtree(work, ignore_errors=True)
            rounds[name].append(run_round(kind, images, work, compare=number == 0))
    shutil.rmtree(work, ignore_errors=True)

    bytes_of_data = {key: image.stat().st_blocks * 512 for key, image in images.items()}
    print(f"Machine: {describe_machine()}.")
    print("Tools: " + "; ".join(versions) + ".")
    sizes = ", ".join(f"{images[key].name} {value / MB:.0f} MB" for key, value in bytes_of_data.items())
    print(f"Data: {sizes} in {images['a'].stat().st_size / MB:.0f} MB of virtual disk each.")
    print(f"Medians of {options.rounds} rounds.\n")
    results = {name: median_round(taken) for name, taken in rounds.items()}
    print_results(results, bytes_of_data)
    print_ratios(results)
    if "firn" in results:
        sparse_disk(work)
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        figures = {name: [vars(taken) for taken in each] for name, each in rounds.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
