#!/usr/bin/env python3
"""Makes version 4 XFS images that are cut off with a log to replay, and lists of what the kernel's recovery makes of them.

Run it as root in a guest whose kernel mounts version 4 (Debian 12: Linux 6.1, xfsprogs 6.1). It leaves NAME.image and
NAME.list in /out, and all of them as a tar archive on /dev/vdb. crates/firn-format/tests/data/xfs has them by zstd -19.
"""
import hashlib, os, random, stat, subprocess, sys

def run(*words, env=None):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=env)

def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

def write(path, data, at=0):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, data, at)
    os.close(fd)

ACL = bytes([2,0,0,0, 1,0,6,0,255,255,255,255, 2,0,4,0,210,4,0,0, 4,0,4,0,255,255,255,255,
             16,0,6,0,255,255,255,255, 32,0,0,0,255,255,255,255])

def fill(root, seed):
    rng = random.Random(seed)
    noise = rng.randbytes(4096)
    for name, count in (("short", 3), ("block", 25), ("leaf", 200), ("node", 1500)):
        folder = f"{root}/{name}"
        os.mkdir(folder)
        for n in range(count):
            write(f"{folder}/a-name-of-some-length-{n}", b"%d" % n if n % 50 == 0 else b"")
        if name == "node":
            for n in range(200, 1400):
                os.unlink(f"{folder}/a-name-of-some-length-{n}")
    for name, count in (("few", 6), ("many", 300)):
        for n in range(count):
            write(f"{root}/{name}", noise[:512], n * 8192)
            if n % 8 == 0:
                sync(f"{root}/{name}")
    for length in (1, 60, 200, 500, 1023):
        os.symlink("l" * length, f"{root}/link{length}")
    for name, count, length in (("small", 2, 20), ("leafed", 15, 60), ("noded", 120, 50), ("remote", 4, 5000)):
        write(f"{root}/x-{name}", b"x")
        for n in range(count):
            os.setxattr(f"{root}/x-{name}", f"user.name{n}", (noise * 2)[n:n + length])
    os.setxattr(f"{root}/x-small", "system.posix_acl_access", ACL)
    os.setxattr(f"{root}/x-small", "security.of-a-kind", b"s")
    os.mknod(f"{root}/char", stat.S_IFCHR | 0o600, os.makedev(5, 70000))
    os.mkfifo(f"{root}/fifo")
    os.link(f"{root}/few", f"{root}/short/hard")
    os.chown(f"{root}/few", 70000, 80000)
    fd = os.open(f"{root}/reserved", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 100000)
    os.pwrite(fd, noise, 30000)
    os.close(fd)

def change(root, seed):
    rng = random.Random(seed)
    noise = rng.randbytes(3000)
    for n in range(120):
        path = f"{root}/block/new{n}"
        write(path, noise[:rng.randrange(3000)])
        if n % 3 == 0:
            sync(path)
        if n % 4 == 0:
            os.unlink(path)
        elif n % 7 == 0:
            os.rename(path, f"{root}/short/moved{n}")
    for n in range(0, 200, 3):
        os.unlink(f"{root}/leaf/a-name-of-some-length-{n}")
    for n in range(40):
        write(f"{root}/few", noise[:700], rng.randrange(100) * 8192)
    os.truncate(f"{root}/many", 1000000)
    os.removexattr(f"{root}/x-leafed", "user.name3")
    os.setxattr(f"{root}/x-small", "user.name0", noise[:900])
    sync(f"{root}/few")
    held = os.open(f"{root}/held", os.O_RDWR | os.O_CREAT)
    os.unlink(f"{root}/held")
    sync(root)
    return held

def listed(root):
    lines = []
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in [b""] + files + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            path = os.path.join(folder, name) if name else folder
            s = os.lstat(path)
            content = "-"
            if stat.S_ISREG(s.st_mode):
                content = hashlib.sha256(open(path, "rb").read()).hexdigest()
            elif stat.S_ISLNK(s.st_mode):
                content = os.readlink(path).decode()
            xattrs = sorted((n, os.getxattr(path, n, follow_symlinks=False).hex()) for n in os.listxattr(path, follow_symlinks=False)
                            if not n.startswith("trusted.SGI_ACL"))
            device = f"{os.major(s.st_rdev)}:{os.minor(s.st_rdev)}" if s.st_rdev else "-"
            xhash = hashlib.sha256(repr(xattrs).replace("'", "").encode()).hexdigest()[:16] if xattrs else "-"
            lines.append("\t".join(map(str, (os.fsdecode(path)[len(root):] or "/", s.st_ino, oct(s.st_mode), s.st_uid, s.st_gid, s.st_size,
                         s.st_blocks * 512, s.st_nlink, device, s.st_mtime_ns, s.st_ctime_ns, xhash, content))))
    return "\n".join(sorted(lines)) + "\n"

os.makedirs("/out", exist_ok=True)
os.makedirs("/m", exist_ok=True)
small = dict(os.environ, TEST_DIR="1", TEST_DEV="1", QA_CHECK_FS="1")
for seed, (name, options) in enumerate([
    ("v4", ["-m", "crc=0,finobt=0"]),
    ("v4-small-blocks", ["-m", "crc=0,finobt=0", "-b", "size=512", "-n", "ftype=0", "-l", "version=1"]),
    ("v4-folders", ["-m", "crc=0,finobt=0", "-b", "size=1024", "-n", "size=8192", "-i", "attr=1,projid32bit=0,size=512"]),
]):
    image = f"/out/{name}.image"
    subprocess.run(["truncate", "-s", "24M", image], check=True)
    run("mkfs.xfs", "-q", "-f", *options, image, env=small)
    run("mount", "-o", "loop,noatime", image, "/m")
    fill("/m", seed)
    run("umount", "/m")
    run("mount", "-o", "loop,noatime", image, "/m")
    held = change("/m", seed)
    run("xfs_io", "-x", "-c", "shutdown" if seed != 1 else "shutdown -f", "/m")
    os.close(held)
    run("umount", "/m")
    run("cp", "--sparse=always", image, "/tmp/recovered")
    run("mount", "-o", "loop,noatime,nouuid", "/tmp/recovered", "/m")
    open(f"/out/{name}.list", "w").write(listed("/m"))
    run("umount", "/m")
    print(name, "done", flush=True)
os.chdir("/out")
run("tar", "-cSf", "/dev/vdb", *sorted(os.listdir(".")))
run("sync")
