#!/usr/bin/env python3
"""recover.py: reads a pool of firn with nothing but its key and docs/format.md, from which it was written.

  recover.py POOL list
  recover.py POOL restore MACHINE DISK OUT [--sequence N]     the newest snapshot, or the one of that number

The key: --key-file FILE (a key file, or what `firn key export` wrote), --password-file FILE, --recovery-file FILE; none
for a pool that needs none. It needs Python 3.9 and the packages cryptography and zstandard, for passwords also
argon2-cffi (Debian: python3-cryptography python3-zstandard python3-argon2). It writes OUT as a raw image with holes, and
reads a pool in a folder only. Every byte that it writes went through an authenticated seal.
"""

import argparse
import os
import struct
import sys
import uuid

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FRAME = 48
REGION = 16 << 20
BLOCK = 4096
FAN_OUT = 256
HOLE, ZEROS, NODE = 0, 1, 2
CHUNK, LEAF, INNER = 1, 2, 3
KINDS = {"key slot": 2, "data pack": 3, "node pack": 4, "manifest": 6, "note": 7, "fate": 9}
# Bit 0: a manifest is a snapshot only when its fate says so.
WITH_FATES = 1
KNOWN_INCOMPAT = WITH_FATES
CONFIRMED = 1
DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Damaged(Exception):
    """This object, or this copy of it, cannot be used."""


def hkdf(secret, salt, info):
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info.encode()).derive(secret)


def unseal(key, nonce, aad, sealed):
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Damaged("a seal does not open: wrong key, or damage") from None


class Fields:
    """A row of fields: tag, length, value."""

    def __init__(self, data):
        self.values, at = {}, 0
        while at < len(data):
            if at + 6 > len(data):
                raise Damaged("a field is cut off")
            tag, length = struct.unpack_from("<HI", data, at)
            if at + 6 + length > len(data):
                raise Damaged("a field is longer than its record")
            self.values.setdefault(tag, []).append(data[at + 6 : at + 6 + length])
            at += 6 + length

    def all(self, tag):
        return self.values.get(tag, [])

    def bytes(self, tag):
        if tag not in self.values:
            raise Damaged(f"field {tag} is missing")
        return self.values[tag][0]

    def text(self, tag):
        return self.bytes(tag).decode()

    def number(self, tag):
        return int.from_bytes(self.bytes(tag), "little")

    def encode(self, tags):
        """Fields again as they were encoded."""
        return b"".join(struct.pack("<HI", tag, len(v)) + v for tag in tags for v in self.all(tag)[:1])


class Folder:
    """A pool in a folder."""

    def __init__(self, path):
        self.path = path
        self.domain = None

    def names(self, prefix):
        found = []
        for folder, _, files in os.walk(os.path.join(self.path, prefix)):
            found += [os.path.relpath(os.path.join(folder, file), self.path) for file in files if "#" not in file]
        return sorted(found)

    def read(self, name, kind):
        """The payload of an object, its frame checked."""
        with open(os.path.join(self.path, name), "rb") as file:
            data = file.read()
        self.check(data[:FRAME], kind)
        return data

    def check(self, frame, kind):
        if len(frame) < FRAME or frame[:8] != b"FIRNPOOL" or frame[8] != kind:
            raise Damaged("this is not what its name says")
        if frame[9] > 1:
            raise Damaged(f"format version {frame[9]} is newer than this program")
        if struct.unpack_from("<I", frame, 12)[0] & ~KNOWN_INCOMPAT:
            raise Damaged("it has features that this program does not know")
        domain = frame[32:48]
        if self.domain not in (None, domain):
            raise Damaged("it belongs to another key domain")
        self.domain = domain


def copies(names):
    """Objects that are stored twice: the name without its -a or -b, and the copies that are there."""
    both = {}
    for name in names:
        if name.endswith(("-a", "-b")):
            both.setdefault(name[:-2], []).append(name)
    return both


def first_good(names, read):
    """What `read` makes of the first copy that is whole."""
    trouble = None
    for name in names:
        try:
            return read(name)
        except (Damaged, OSError, UnicodeDecodeError, zstandard.ZstdError) as error:
            trouble = Damaged(f"{name}: {error}")
    raise trouble or Damaged("no copy is there")


def recovery_bytes(text):
    """The 20 bytes of a recovery key; its check digits are left to the seal."""
    text = text.upper().replace("O", "0").replace("I", "1").replace("L", "1")
    digits = [DIGITS.index(c) for c in text if c in DIGITS][:32]
    number = 0
    for digit in digits:
        number = number << 5 | digit
    return number.to_bytes(20, "big")


def exported(text):
    """The master key out of what `firn key export` wrote."""
    lines = dict(line.split(" ", 1) for line in text.splitlines()[1:] if " " in line)
    return bytes.fromhex(lines["key"])


def master_key(folder, arguments):
    key_file = open(arguments.key_file, "rb").read() if arguments.key_file else None
    if key_file and key_file.startswith(b"firn master key"):
        return exported(key_file.decode())

    def open_slot(name):
        slot = Fields(folder.read(name, KINDS["key slot"])[FRAME:-32])
        kind, scope, sealed = slot.number(2), slot.number(3), slot.bytes(8)
        salt = slot.bytes(6)
        if scope != 0:
            raise Damaged("this slot opens the structure only")
        if kind == 0:
            return sealed
        if kind == 1 and arguments.password_file:
            import argon2.low_level

            password = open(arguments.password_file, "rb").readline().rstrip(b"\r\n")
            memory, passes, lanes = struct.unpack("<III", slot.bytes(7))
            kind_id = argon2.low_level.Type.ID
            wrapping = argon2.low_level.hash_secret_raw(password, salt, passes, memory, lanes, 32, kind_id, 0x13)
        elif kind == 2 and key_file:
            wrapping = hkdf(key_file, salt, "firn 0 key slot")
        elif kind == 3 and arguments.recovery_file:
            wrapping = hkdf(recovery_bytes(open(arguments.recovery_file).read()), salt, "firn 0 key slot")
        else:
            raise Damaged("nothing was given that opens this slot")
        return unseal(wrapping, bytes(12), folder.domain + slot.encode(range(1, 8)), sealed)

    slots = [name for both in copies(folder.names("key")).values() for name in both]
    return first_good(slots, open_slot)


class Pool:
    def __init__(self, path, arguments):
        self.folder = Folder(path)
        header = first_good(["header-a", "header-b"], lambda name: self.folder.read(name, 1))
        self.has_fates = struct.unpack_from("<I", header, 12)[0] & WITH_FATES
        master = master_key(self.folder, arguments)
        self.structure = hkdf(master, self.folder.domain, "firn 0 structure")
        self.data = hkdf(master, self.folder.domain, "firn 0 data")
        self.places = None

    def small(self, name, kind, subject):
        """The fields of a manifest or note, whose name says `subject`."""
        data = self.folder.read(name, kind)
        key = hkdf(self.structure, data[48:64], "firn 0 object")
        return Fields(unseal(key, bytes(12), data[:FRAME] + subject, data[64:-32]))

    def snapshots(self):
        """Each snapshot as the fields of its manifest."""
        for name, both in copies(self.folder.names("snap")).items():
            _, machine, rest = name.split("/")
            sequence, snapshot = rest.split("-")
            if self.has_fates and not self.is_snapshot(snapshot):
                continue
            subject = bytes.fromhex(machine) + int(sequence, 16).to_bytes(8, "little") + bytes.fromhex(snapshot)
            try:
                yield first_good(both, lambda copy: self.small(copy, KINDS["manifest"], subject))
            except Damaged as error:
                print(f"recover.py: a snapshot cannot be read: {error}", file=sys.stderr)

    def is_snapshot(self, snapshot):
        """Whether a manifest was confirmed, and not forgotten since. What cannot be read speaks for it."""
        fates = copies(self.folder.names("fate")).get(f"fate/{snapshot}", [])
        subject = bytes.fromhex(snapshot)
        try:
            fate = first_good(fates, lambda name: self.small(name, KINDS["fate"], subject)).number(1)
        except Damaged:
            fate = CONFIRMED if fates else None
        notes = [name for name in self.folder.names("lock") if name.startswith(f"lock/{snapshot}-")]
        return fate == CONFIRMED and not any(self.says_forgotten(note, subject) for note in notes)

    def says_forgotten(self, name, subject):
        number = int(name.rsplit("-", 1)[1], 16).to_bytes(8, "little")
        try:
            return bool(self.small(name, KINDS["note"], subject + number + b"lock").all(4))
        except Damaged:
            return False

    def index(self):
        """Where each blob stands, from the directories of the packs: id -> [(pack, offset, length)]."""
        self.places = {}
        for prefix in ("data", "node"):
            for name in self.folder.names(prefix):
                try:
                    self.read_directory(name)
                except (Damaged, OSError, struct.error) as error:
                    print(f"recover.py: {name} is passed over: {error}", file=sys.stderr)

    def read_directory(self, name):
        with open(os.path.join(self.folder.path, name), "rb") as file:
            self.folder.check(file.read(FRAME), KINDS["data pack" if name.startswith("data") else "node pack"])
            end = file.seek(0, os.SEEK_END)
            file.seek(end - 40)
            count, length = struct.unpack("<II", file.read(8))
            if length != 72 * count or length > end - 104:
                raise Damaged("the directory does not fit its pack")
            file.seek(end - 40 - length)
            directory, at = file.read(length), 64
            for entry in range(0, length, 72):
                stored = struct.unpack_from("<I", directory, entry + 4)[0]
                self.places.setdefault(directory[entry + 8 : entry + 40], []).append((name, at, stored))
                at += stored

    def blob(self, kind, identity):
        """The content of a blob, from whichever pack has it whole."""
        if self.places is None:
            self.index()

        def read(place):
            name, offset, length = place
            with open(os.path.join(self.folder.path, name), "rb") as file:
                file.seek(48)
                pack = file.read(16)
                file.seek(offset)
                sealed = file.read(length)
            key = hkdf(self.data if kind == CHUNK else self.structure, pack, "firn 0 pack")
            aad = self.folder.domain + bytes([kind]) + identity
            plain = unseal(key, struct.pack("<QI", offset, 0), aad, sealed)
            if plain[0] == 0:
                return plain[1:]
            return zstandard.ZstdDecompressor().decompress(plain[1:], max_output_size=192 << 10)

        return first_good(self.places.get(identity, []), read)

    def restore(self, disk, out):
        length = disk.number(2)
        regions = -(-length // REGION)
        level = 0
        while FAN_OUT**level < regions:
            level += 1
        root = disk.bytes(4)
        with open(out, "xb") as file:
            file.truncate(length)
            if regions:
                self.node(file, length, regions, level, 0, root[0], root[1:])
            file.flush()
            os.fsync(file.fileno())

    def node(self, file, length, regions, level, first, kind, identity):
        if kind in (HOLE, ZEROS):
            return
        if level == 0:
            self.leaf(file, length, first * REGION, self.blob(LEAF, identity))
            return
        content = self.blob(INNER, identity)
        step = FAN_OUT ** (level - 1)
        count = struct.unpack_from("<H", content)[0]
        if count != min(FAN_OUT, -(-(regions - first) // step)):
            raise Damaged("a node does not fit its disk")
        kinds, at = content[2 : 2 + count], 2 + count
        for child, kind in enumerate(kinds):
            identity = None
            if kind == NODE:
                identity, at = content[at : at + 32], at + 32
            self.node(file, length, regions, level - 1, first + child * step, kind, identity)

    def leaf(self, file, length, start, content):
        count = struct.unpack_from("<H", content)[0]
        runs = struct.unpack_from(f"<{count}H", content, 2)
        at, offset = 2 + 2 * count, start
        for run in runs:
            blocks, kind = run & 0x3FFF, run >> 14
            if kind == NODE:
                chunk = self.blob(CHUNK, content[at : at + 32])
                at += 32
                if len(chunk) != blocks * BLOCK:
                    raise Damaged("a chunk has another length than its leaf says")
                file.seek(offset)
                file.write(chunk[: length - offset])
            offset += blocks * BLOCK
        if offset != start + -(-min(REGION, length - start) // BLOCK) * BLOCK:
            raise Damaged("a leaf does not fit its region")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool")
    for name in ("key", "password", "recovery"):
        parser.add_argument(f"--{name}-file")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    restore = commands.add_parser("restore")
    restore.add_argument("machine")
    restore.add_argument("disk")
    restore.add_argument("out")
    restore.add_argument("--sequence", type=int)
    arguments = parser.parse_args()
    pool = Pool(arguments.pool, arguments)
    snapshots = sorted(pool.snapshots(), key=lambda fields: (fields.text(2), fields.number(4)))
    if arguments.command == "list":
        for fields in snapshots:
            disks = " ".join(f"{disk.text(1)}:{disk.number(2)}" for disk in map(Fields, fields.all(9)))
            print(fields.text(2), fields.number(4), uuid.UUID(bytes=fields.bytes(3)), disks)
        return
    wanted = [fields for fields in snapshots if fields.text(2) == arguments.machine]
    wanted = [fields for fields in wanted if arguments.sequence in (None, fields.number(4))]
    disks = [disk for disk in map(Fields, wanted[-1].all(9)) if disk.text(1) == arguments.disk] if wanted else []
    if not disks:
        sys.exit(f"recover.py: there is no disk {arguments.disk} of {arguments.machine} in this pool; see `list`")
    pool.restore(disks[0], arguments.out)


if __name__ == "__main__":
    try:
        main()
    except (Damaged, OSError) as error:
        sys.exit(f"recover.py: {error}")
