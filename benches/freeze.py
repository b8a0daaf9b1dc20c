#!/usr/bin/env python3
"""freeze.py GUEST-FOLDER [ROUNDS]: what a snapshot costs a running guest. Needs root, QEMU and a guest of lab/make-guest.sh.

Boots the guest, runs fio in it (random 4 KiB writes, a flush every eight), and takes ROUNDS (50) snapshots meanwhile.
Prints how long the guest was frozen (p50, p90, max), how much each snapshot read, and fio's own write latencies with and
without snapshots going on. FIRN names the program (target/release/firn). Nothing is asserted.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
LAB = os.path.join(HERE, "..", "lab")
FIRN = os.path.abspath(os.environ.get("FIRN", os.path.join(HERE, "..", "target", "release", "firn")))
FIO = (
    "fio --name=load --directory=/data --rw=randwrite --bs=4k --size=256M --ioengine=psync --fsync=8 --rate_iops=400 "
    "--time_based --runtime={seconds} --output-format=json --output=/tmp/fio.json"
)


class Guest:
    def __init__(self, folder):
        self.run = os.path.join(os.path.abspath(folder), "run", f"freeze-{os.getpid()}")
        subprocess.run([os.path.join(LAB, "vm.sh"), folder, os.path.basename(self.run)], check=True)
        self.shell("true", 300)

    def shell(self, command, seconds=120):
        script = os.path.join(LAB, "guest-exec.py")
        agent = os.path.join(self.run, "ga.sock")
        done = subprocess.run(["python3", script, agent, command, str(seconds)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"in the guest: {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def uri(self):
        return f"qemu:{self.run}/qmp.sock?agent={self.run}/ga.sock"

    def stop(self):
        with open(os.path.join(self.run, "pid")) as file:
            os.kill(int(file.read()), 9)
        shutil.rmtree(self.run, ignore_errors=True)


def latencies(guest):
    """fio's completion latencies of writes in milliseconds."""
    # fio may have something to say before its document.
    text = guest.shell("cat /tmp/fio.json")
    write = json.loads(text[text.index("{") : text.rindex("}") + 1])["jobs"][0]["write"]
    share = write["clat_ns"]["percentile"]
    return [share["50.000000"] / 1e6, share["99.000000"] / 1e6, write["clat_ns"]["max"] / 1e6, write["iops"]]


def snapshots(guest, rounds, folder):
    pool = os.path.join(folder, "pool")
    environment = dict(os.environ, FIRN_POOL=pool, FIRN_STATE=os.path.join(folder, "state"))
    subprocess.run([FIRN, "init", pool, "--no-password"], check=True, capture_output=True)
    taken = []
    for _ in range(rounds):
        words = [FIRN, "snap", "web1", guest.uri(), "--json", "--quiet", "--freeze", "require"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        taken.append(json.loads(done.stdout))
    return taken


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    rounds = int(sys.argv[2]) if len(sys.argv) == 3 else 50
    guest = Guest(sys.argv[1])
    folder = tempfile.mkdtemp()
    try:
        guest.shell("mkfs.ext4 -q -F /dev/vdb && mkdir -p /data && mount /dev/vdb /data")
        guest.shell(FIO.format(seconds=30), 120)
        alone = latencies(guest)
        guest.shell("setsid " + FIO.format(seconds=100000) + " >/dev/null 2>&1 & sleep 1")
        taken = snapshots(guest, rounds, folder)
        guest.shell("pkill -INT fio; while pgrep -x fio >/dev/null; do sleep 0.2; done")
        beside = latencies(guest)
    finally:
        guest.stop()
        shutil.rmtree(folder, ignore_errors=True)
    frozen = sorted(snapshot["frozen_milliseconds"] for snapshot in taken)
    read = [snapshot["bytes_read"] / 1e6 for snapshot in taken[1:]]
    whole = [snapshot["milliseconds"] / 1e3 for snapshot in taken[1:]]
    print(f"frozen, ms, {rounds} snapshots: p50 {statistics.median(frozen):.0f}  p90 {frozen[int(rounds * 0.9) - 1]}  max {frozen[-1]}")
    print(f"read by the first: {taken[0]['bytes_read'] / 1e6:.0f} MB in {taken[0]['milliseconds'] / 1e3:.1f} s")
    if read:
        print(f"read by each other, median: {statistics.median(read):.1f} MB in {statistics.median(whole):.2f} s")
    print(f"{'write latency in the guest, ms':<34}{'p50':>8}{'p99':>8}{'max':>9}{'IOPS':>8}")
    for name, (p50, p99, most, iops) in (("alone", alone), ("while snapshots are taken", beside)):
        print(f"  {name:<32}{p50:>8.2f}{p99:>8.2f}{most:>9.1f}{iops:>8.0f}")


if __name__ == "__main__":
    main()
