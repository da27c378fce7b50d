#!/usr/bin/env python3
"""An independent reader of pgark repositories, written from docs/formats/ alone.

    pgark_reader.py list REPO
    pgark_reader.py restore REPO COMPONENT LABEL TARGET [--tablespace-map OID=DIR]...
    pgark_reader.py wal REPO SYSID NAME OUT

An encrypted repository needs [--key-file FILE] (a recovery kit will do) or [--passphrase-file FILE].

It checks every digest that the format has and writes nothing that fails one. It restores the files
of a base backup, backup_label and tablespace_map included; settings for recovery are the caller's.
"""

import argparse
import json
import os
import struct
import sys
import zlib

import zstandard
from blake3 import blake3

MAGICS = {"packs": b"PGARKPK1", "meta": b"PGARKMT1", "components": b"PGARKMF1"}
PAGES, CHUNKS, LAYERS, FILE_TABLE, MANIFEST = 1, 2, 3, 4, 5
PLAIN_MAX = 16 << 20
WAL_MAX = 1 << 30


class Refused(Exception):
    """The repository is damaged, or of a format that this reader does not know."""


def require(condition, why):
    if not condition:
        raise Refused(why)


def zero(data):
    return not any(data)


def crockford(raw):
    """The text of a binary ULID."""
    number = int.from_bytes(raw, "big")
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[number >> 5 * n & 31] for n in range(25, -1, -1))


def binary(text):
    """The 16 bytes of a ULID."""
    number = 0
    require(len(text) == 26, "malformed ULID")
    for letter in text:
        number = number << 5 | "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(letter)
    return number.to_bytes(17, "big")[1:]


def crc32c_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC32C = crc32c_table()


def crc32c(data):
    crc, table = 0xFFFFFFFF, CRC32C
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def decompress(payload, codec, plain_len):
    """The plain bytes of a payload, never more than `plain_len` of them."""
    if codec == 0:
        plain = payload
    else:
        require(codec == 1, "unknown codec")
        stream = zstandard.ZstdDecompressor().decompressobj()
        try:
            frame = zstandard.get_frame_parameters(payload)
            known = frame.content_size not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)
            require(not known or frame.content_size == plain_len, "wrong length in a zstd frame")
            plain = stream.decompress(payload)
        except zstandard.ZstdError as error:
            raise Refused(f"a payload does not decompress: {error}") from error
        require(stream.eof and not stream.unused_data, "bytes behind a zstd frame")
    require(len(plain) == plain_len, "wrong plain length")
    return plain


def unseal(data, key):
    require(data[:9] == b'{"seal":"' and data[73:75] == b'",', f"{key}: not sealed")
    require(blake3(data[75:]).hexdigest().encode() == data[9:73], f"{key}: broken seal")
    return json.loads(data)


class Fields:
    """Reads a binary record from front to back."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        require(self.at + length <= len(self.data), "a record ends too early")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length):
        return int.from_bytes(self.take(length), "little")

    def numbers(self, count, length):
        return [self.number(length) for _ in range(count)]


def key_of_text(text):
    """The 32 bytes of a key file or a recovery kit."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    require(len(lines) == 4, "no key file: it has no four lines")
    key = b""
    for number, line in enumerate(lines, 1):
        digits = line.translate({ord(c): None for c in " \t-"}).lower()
        require(len(digits) == 21 and digits[0] == str(number), f"key file: line {number} is malformed")
        part, check = bytes.fromhex(digits[1:17]), bytes.fromhex(digits[17:])
        found = blake3(b"pgark key line\0" + bytes([number]) + part).digest()[:2]
        require(found == check, f"key file: line {number} has a slip in it")
        key += part
    return key


def xaes_open(key, nonce, message, aad):
    """Decrypts XAES-256-GCM; the tag stands behind the ciphertext."""
    # Here, so that a repository in clear is read without a library of ciphers.
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.cmac import CMAC

    derived = b""
    for counter in (1, 2):
        mac = CMAC(AES(key))
        mac.update(bytes([0, counter]) + b"X\0" + nonce[:12])
        derived += mac.finalize()
    try:
        return AESGCM(derived).decrypt(nonce[12:], message, aad)
    except InvalidTag:
        raise Refused("damaged, or another key") from None


def unwrap(key, wrapped, aad):
    nonce = bytes.fromhex(wrapped["nonce"])
    require(len(nonce) == 24, "malformed nonce")
    return xaes_open(key, nonce, bytes.fromhex(wrapped["message"]), aad)


class Keyring:
    """The keys of an encrypted repository."""

    def __init__(self, repository, credential):
        self.repository, self.data_keys = repository, {}
        epochs = [record for _, record in self.records("keys/epoch")]
        require(epochs, "there is no key epoch")
        current = max(epochs, key=lambda record: record["number"])
        number, epoch = current["number"], binary(current["epoch"])
        aad = b"pgark key epoch v1\0" + repository.id + struct.pack("<I", number) + epoch
        secret = unwrap(self.master(current["epoch"], credential), current["wrapped"], aad)
        require(len(secret) == 32 + 32 * number, "malformed key epoch")
        self.digest_key = secret[:32]
        self.private = {n: secret[32 * n : 32 * n + 32] for n in range(1, number + 1)}

    def records(self, folder):
        """The records of this repository in a folder, by name; damaged ones are no keys."""
        for name in self.repository.names(folder):
            if not name.endswith(".json"):
                continue
            try:
                record = self.repository.sealed(f"{folder}/{name}")
            except (Refused, ValueError):
                continue
            if record.get("repository") == self.repository.id.hex() and record.get("format") == 1:
                yield name, record

    def master(self, epoch, credential):
        """The master key, by the first slot of the epoch that the credential opens."""
        kind, secret = credential
        for _, slot in self.records("keys"):
            method = slot["method"]
            if slot["epoch"] != epoch or method["kind"] != kind:
                continue
            key = secret
            if kind == "passphrase":
                from argon2.low_level import Type, hash_secret_raw

                key = hash_secret_raw(
                    secret,
                    bytes.fromhex(method["salt"]),
                    time_cost=method["passes"],
                    memory_cost=method["memory_kib"],
                    parallelism=method["lanes"],
                    hash_len=32,
                    type=Type.ID,
                    version=0x13,
                )
            aad = b"pgark key slot v1\0" + self.repository.id
            aad += binary(slot["slot"]) + binary(epoch) + kind.encode()
            try:
                return unwrap(key, method["wrapped"], aad)
            except Refused:
                continue
        raise Refused("the key opens no slot of this repository")

    def data_key(self, raw):
        """The data key with this ULID."""
        if raw not in self.data_keys:
            from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            text = crockford(raw)
            names = [n for n in self.repository.names("keys/dek") if n.endswith(f"-{text}.json")]
            require(len(names) == 1, f"data key {text} is missing")
            record = self.repository.sealed(f"keys/dek/{names[0]}")
            require(record["repository"] == self.repository.id.hex(), "a data key of another repository")
            require(record["data_key"] == text and record["epoch"] in self.private, "malformed data key")
            private = X25519PrivateKey.from_private_bytes(self.private[record["epoch"]])
            own = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            public = bytes.fromhex(record["public"])
            agreed = private.exchange(X25519PublicKey.from_public_bytes(public))
            aad = b"pgark data key v1\0" + self.repository.id + raw
            wrapping = blake3(aad + public + own + agreed, key=self.digest_key).digest()
            self.data_keys[raw] = unwrap(wrapping, record["wrapped"], aad)
        return self.data_keys[raw]


class Repository:
    """A repository in a directory."""

    def __init__(self, path, credential=None):
        self.path, self.keyring = path, None
        identity = self.sealed("repository.json")
        require(identity["format"] == 1, "a repository of another format")
        require(identity["encryption"] in ("none", "xaes-256-gcm"), "an unknown encryption")
        require(not identity.get("features_required"), "a repository with unknown features")
        self.id = bytes.fromhex(identity["id"])
        require(len(self.id) == 16, "malformed repository.json")
        if identity["encryption"] == "none":
            self.key = bytes.fromhex(identity["digest_key"])
        else:
            require(credential, "an encrypted repository: --key-file or --passphrase-file")
            self.keyring = Keyring(self, credential)
            self.key = self.keyring.digest_key
        require(len(self.key) == 32, "malformed repository.json")

    def require_as_encrypted(self, encrypted):
        require(encrypted == (self.keyring is not None), "not as encrypted as its repository")

    def get(self, key):
        """The bytes of an object; None when there is none."""
        try:
            with open(os.path.join(self.path, key), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def sealed(self, key):
        data = self.get(key)
        require(data is not None, f"{key} is missing")
        return unseal(data, key)

    def names(self, key):
        try:
            return sorted(os.listdir(os.path.join(self.path, key)))
        except FileNotFoundError:
            return []

    def digest(self, data):
        return blake3(data, key=self.key)

    def frames(self, key, data):
        """Checks a whole object but for its digest; returns its ULID and {offset: frame bytes}."""
        magic = MAGICS[key.split("/")[0]]
        require(len(data) >= 128, f"{key}: too short")
        length = {b"\1\0": 64, b"\2\0": 96}.get(data[8:10])
        require(data[:8] == magic and length, f"{key}: another magic or version")
        head, foot = data[:length], data[-64:]
        require(struct.unpack_from("<I", head, length - 4)[0] == zlib.crc32(head[:-4]), f"{key}: damaged header")
        # Version 2 names the session and the data key; the latter is zero without encryption.
        data_key = head[64:80] if length == 96 else bytes(16)
        require(zero(head[10:16]) and zero(head[80 if length == 96 else 48 : -4]), f"{key}: unknown features")
        require(head[16:32] == self.id, f"{key}: belongs to another repository")
        self.require_as_encrypted(not zero(data_key))
        toc_at, count, toc_crc, digest, spare, crc, mark = struct.unpack("<QII32sII8s", foot)
        require(mark == magic and spare == 0 and crc == zlib.crc32(foot[:52]), f"{key}: damaged footer")
        require(toc_at + 24 * count == len(data) - 64, f"{key}: wrong length")
        toc = data[toc_at:-64]
        require(toc_crc == zlib.crc32(toc) and digest == blake3(data[:-64]).digest(), f"{key}: damaged")
        frames, at = {}, length
        for offset, stored, plain, class_ in struct.iter_unpack("<QIIQ", toc):
            frame = data[at : at + stored + 44]
            require(offset == at and at + stored + 44 <= toc_at, f"{key}: wrong table of contents")
            require(struct.unpack_from("<IIxxxxI", frame) == (stored, plain, class_), f"{key}: wrong table of contents")
            frames[at] = Frame(self, frame, head[32:48], at, data_key)
            at += len(frame)
        require(at == toc_at, f"{key}: bytes behind the last frame")
        return crockford(head[32:48]), frames


class Frame:
    """A stored frame, and where it stands."""

    def __init__(self, repository, data, ulid, offset, data_key):
        self.repository, self.data, self.place, self.data_key = repository, data, (ulid, offset), data_key

    def open(self, class_):
        """Checks the frame and returns its plain bytes."""
        data = self.data
        stored, plain_len, codec, cipher, number, found, spare, nonce = struct.unpack_from("<IIBBHB3s24s", data)
        require(struct.unpack_from("<I", data, len(data) - 4)[0] == zlib.crc32(data[:-4]), "damaged frame")
        require(found == class_ and stored == len(data) - 44 and plain_len <= PLAIN_MAX, "not the frame expected")
        keyring = self.repository.keyring
        require(zero(spare) and (cipher, number) == ((1, 1) if keyring else (0, 0)), "a frame of unknown features")
        payload = data[40:-4]
        if keyring:
            ulid, offset = self.place
            aad = b"pgark frame v1\0" + self.repository.id + ulid + struct.pack("<Q", offset) + data[:16]
            payload = xaes_open(keyring.data_key(self.data_key), nonce, payload, aad)
        else:
            require(zero(nonce), "a frame of unknown features")
        return decompress(payload, codec, plain_len)


class Backup:
    """A committed backup."""

    def __init__(self, repository, component, label):
        self.repository = repository
        key = f"components/{component}/backups/{label}/manifest"
        data = repository.get(key)
        require(data is not None, f"{key} is missing")
        _, frames = repository.frames(key, data)
        self.manifest = json.loads(b"".join(frame.open(MANIFEST) for frame in frames.values()))
        require(self.manifest["format"] == 1, f"{key}: another format")
        require((self.manifest["component"], self.manifest["label"]) == (component, label), f"{key}: misplaced")
        end = repository.sealed(f"sessions/{self.manifest['session']}/end")
        require(end["decision"] == "COMMIT" and end["manifest"] == key, f"{key}: not committed")
        require(end["root_digest"] == blake3(data).hexdigest(), f"{key}: not the manifest that was committed")
        objects = self.manifest["objects"]
        self.keys = {entry["key"].rsplit("/", 1)[-1][:26]: entry for entry in objects}
        require(len(self.keys) == len(objects), f"{key}: an object is listed twice")
        self.opened = {}

    def object(self, ulid):
        """The frames of an object; one pack and the meta objects are kept, checked once."""
        if ulid not in self.opened:
            require(ulid in self.keys, f"object {ulid} is not in the manifest")
            key, size = self.keys[ulid]["key"], self.keys[ulid]["size"]
            data = self.repository.get(key)
            require(data is not None and len(data) == size, f"{key}: missing or of another length")
            b3 = blake3(data).hexdigest()[:32]
            kind = key.split("/")[0]
            require(key in (f"packs/{b3[:2]}/{ulid}-{b3}.pack", f"meta/{b3[:2]}/{ulid}-{b3}.meta"), f"{key}: wrong digest")
            found, frames = self.repository.frames(key, data)
            require(found == ulid, f"{key}: another ULID in its header")
            named = self.keys[ulid].get("data_key")
            require(all(f.data_key == (binary(named) if named else bytes(16)) for f in frames.values()), f"{key}: another data key")
            if kind == "packs":
                self.opened = {u: o for u, o in self.opened.items() if o[0] == "meta"}
            self.opened[ulid] = (kind, frames, {})
        return self.opened[ulid]

    def frame(self, ulid, offset, stored_len, class_):
        kind, frames, plain = self.object(ulid)
        if offset not in plain:
            require(offset in frames and len(frames[offset].data) == stored_len + 44, "a reference to no frame")
            if kind == "packs":
                plain.clear()
            plain[offset] = frames[offset].open(class_)
        return plain[offset]

    def slice(self, slice_, class_):
        reference = slice_["frame"]
        plain = self.frame(reference["object"], reference["offset"], reference["stored_len"], class_)
        piece = plain[slice_["at"] : slice_["at"] + slice_["len"]]
        require(len(piece) == slice_["len"], "a slice lies outside its frame")
        return piece

    def tree(self):
        """The lines of the entry table of a component beside Postgres, each with its path's bytes."""
        before = None
        for part in self.manifest["entry_table"]:
            reference = part["frame"]
            lines = self.frame(reference["object"], reference["offset"], reference["stored_len"], FILE_TABLE)
            require(self.repository.digest(lines).hexdigest() == part["digest"], "wrong digest of a table frame")
            for n, line in enumerate(lines.split(b"\n")[:-1]):
                entry = json.loads(line)
                path = raw(entry["path"])
                require(n or path == raw(part["first"]), "a table frame begins with another path")
                require(before is None or before < path, "the entry table is not sorted")
                require(path and not {b"", b".", b".."} & set(path.split(b"/")) and b"\0" not in path, "no path")
                before = path
                yield path, entry

    def tree_content(self, entry):
        """The content of a file of a component; every piece is checked before it is handed out."""
        chunks, size, digest = entry.get("chunks", []), 0, self.repository.digest(b"")
        for chunk in chunks:
            if "zero" in chunk:
                pieces = [bytes(min(1 << 20, chunk["zero"] - at)) for at in range(0, chunk["zero"], 1 << 20)]
            else:
                piece = self.slice(chunk, CHUNKS)
                wanted = chunk["digest"] if len(chunks) > 1 or "digest" in chunk else entry["digest"]
                require(self.repository.digest(piece).hexdigest() == wanted, "wrong digest of a chunk")
                pieces = [piece]
            for piece in pieces:
                size += len(piece)
                digest.update(piece)
                yield piece
        require(size == entry.get("size", 0) and digest.hexdigest() == entry["digest"], "wrong content")

    def entries(self):
        """The lines of the file table."""
        before = None
        for reference in self.manifest["file_table"]:
            lines = self.frame(reference["object"], reference["offset"], reference["stored_len"], FILE_TABLE)
            for line in lines.splitlines():
                entry = json.loads(line)
                path = entry["path"].encode()
                require(before is None or before < path, "the file table is not sorted")
                before = path
                yield entry

    def content(self, entry):
        """The content of a file, in pieces that are checked; all of it is checked at the end."""
        size, crc, digest = 0, [], self.repository.digest(b"")
        layered = entry["kind"] == "relation"
        pieces = self.relation(entry) if layered else (self.slice(s, CHUNKS) for s in entry.get("chunks", []))
        for piece in pieces:
            size += len(piece)
            crc.append(piece)
            digest.update(piece)
            yield piece
        require(size == entry.get("size", 0), "wrong length")
        require(f"{crc32c(b''.join(crc)):08x}" == entry["crc32c"], "wrong CRC-32C")
        require(layered or digest.hexdigest() == entry["digest"], "wrong digest")

    def relation(self, entry):
        layers = [Layer(self.slice(s, LAYERS)) for s in entry["layers"]]
        newest = layers[0]
        require(all(layer.page_size == newest.page_size for layer in layers), "layers of several page sizes")
        for block in range(newest.pages):
            for layer in layers:
                if layer.has(layer.bitmap, block):
                    yield self.page(layer, block)
                    break
                if block >= layer.limit_block:
                    yield bytes(newest.page_size)
                    break
            else:
                raise Refused(f"block {block} is in no layer")
        yield newest.tail

    def page(self, layer, block):
        if layer.has(layer.zero_bitmap, block):
            return bytes(layer.page_size)
        (ulid, offset, stored_len, at), digest, checksum = layer.stored[block]
        plain = self.frame(ulid, offset, stored_len, PAGES)
        page = plain[at * layer.page_size : (at + 1) * layer.page_size]
        found = int.from_bytes(self.repository.digest(page).digest()[:8], "little")
        require(len(page) == layer.page_size and found == digest, f"block {block} does not match its digest")
        require(crc32c(page) == checksum, f"block {block} does not match its CRC-32C")
        return page


class Layer:
    """A layer record."""

    def __init__(self, record):
        fields = Fields(record)
        require(fields.take(6) == b"PGLY\1\0" and fields.number(1) in (1, 2, 3), "unknown layer record")
        require(fields.number(1) == 0, "a layer record of unknown features")
        self.page_size, self.pages, self.limit_block = fields.numbers(3, 4)
        require(512 <= self.page_size <= 65536, "impossible page size")
        length = (self.pages + 7) // 8
        self.bitmap, self.zero_bitmap = fields.take(length), fields.take(length)
        spare = -self.pages % 8
        require(not spare or self.bitmap[-1] >> 8 - spare == 0, "spare bits in a bitmap")
        require(all(z & ~b == 0 for b, z in zip(self.bitmap, self.zero_bitmap)), "zero pages outside the bitmap")
        objects = [crockford(fields.take(16)) for _ in range(fields.number(4))]
        places = []
        for _ in range(fields.number(4)):
            number, offset, stored_len, first, pages = struct.unpack("<IQIBB", fields.take(18))
            require(number < len(objects), "a run in an unknown object")
            places += [(objects[number], offset, stored_len, first + at) for at in range(pages)]
        count = fields.number(4)
        digests, checksums = fields.numbers(count, 8), fields.numbers(count, 4)
        blocks = [b for b in range(self.pages) if self.has(self.bitmap, b) and not self.has(self.zero_bitmap, b)]
        require(len(blocks) == len(places) == count, "a layer record contradicts itself")
        self.stored = dict(zip(blocks, zip(places, digests, checksums)))
        self.tail = fields.take(fields.number(4))
        require(len(self.tail) < self.page_size and fields.at == len(record), "a layer record contradicts itself")

    @staticmethod
    def has(bitmap, block):
        at = block >> 3
        return at < len(bitmap) and bitmap[at] >> (block & 7) & 1 == 1


def decode_path(text):
    path = bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()
    parts = path.lstrip(b"/").split(b"/")
    require(b"\0" not in path and not {b"", b".", b".."} & set(parts), f"malformed path {text!r}")
    return path


def place(entry, target, tablespaces):
    """Where an entry goes."""
    path = decode_path(entry["path"])
    if entry["kind"] == "config":
        return os.path.join(target, b"pgark_config", path.lstrip(b"/"))
    require(not path.startswith(b"/"), f"malformed path {entry['path']!r}")
    parts = path.split(b"/", 2)
    if len(parts) == 3 and parts[0] == b"pg_tblspc" and parts[1] in tablespaces:
        return os.path.join(tablespaces[parts[1]], parts[2])
    return os.path.join(target, path)


def write(path, pieces, mode):
    """Writes a file under a temporary name first: what fails a check is never there."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    unchecked = path + b".unchecked"
    with open(os.open(unchecked, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece)
        os.fchmod(file.fileno(), mode)
    os.rename(unchecked, path)


def restore(backup, target, mapping):
    """Restores a backup into an empty or absent directory."""
    target = os.path.abspath(os.fsencode(target))
    os.makedirs(target, mode=0o700, exist_ok=True)
    require(not os.listdir(target), "the target directory is not empty")
    os.chmod(target, 0o700)
    links = {os.fsencode(str(oid)): os.path.abspath(os.fsencode(path)) for oid, path in mapping.items()}
    os.makedirs(os.path.join(target, b"pg_tblspc"), mode=0o700)
    for oid, path in links.items():
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.symlink(path, os.path.join(target, b"pg_tblspc", oid))
    control, modes, files, captured = None, [], 0, set()
    for entry in backup.entries():
        path = place(entry, target, links)
        if entry["kind"] == "directory":
            os.makedirs(path, mode=0o700, exist_ok=True)
            modes.append((path, entry["mode"]))
            continue
        files += 1
        if entry["kind"] == "control":
            control = (path, entry)
            continue
        require(entry["kind"] in ("relation", "file", "config"), "unknown kind of file")
        if entry["kind"] == "config":
            captured.add(path)
        elif path in captured:
            continue
        write_entry(backup, path, entry)
    require(control is not None, "the backup has no pg_control")
    require(files == backup.manifest["file_count"], "another number of files than the manifest says")
    write(os.path.join(target, b"backup_label"), [backup.manifest["backup_label"].encode()], 0o600)
    lines = []
    # A tablespace that is restored into the target itself is no link and needs no line.
    for oid, path in links.items():
        escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\\n").replace(b"\r", b"\\\r")
        lines.append(oid + b" " + escaped + b"\n")
    if lines:
        write(os.path.join(target, b"tablespace_map"), lines, 0o600)
    for path, mode in reversed(modes):
        os.chmod(path, mode)
    write_entry(backup, *control)


def raw(text):
    """The bytes of a path or a name."""
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def restore_tree(backup, target):
    """Restores a component beside Postgres into an empty directory."""
    os.makedirs(target, mode=0o700, exist_ok=True)
    require(not os.listdir(target), "the target directory is not empty")
    directories, links, entries = [], [], 0
    for path, entry in backup.tree():
        entries += 1
        place = os.path.join(os.fsencode(target), path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        kind = entry["kind"]
        if kind == "directory":
            os.makedirs(place, exist_ok=True)
            directories.append((place, entry))
            continue
        if kind == "hard_link":
            links.append((place, os.path.join(os.fsencode(target), raw(entry["target"]))))
            continue
        if kind == "symlink":
            os.symlink(raw(entry["target"]), place)
        elif kind == "fifo":
            os.mkfifo(place)
        else:
            require(kind == "file", "unknown kind of entry")
            with open(place, "xb") as file:
                for piece in backup.tree_content(entry):
                    # Zeros are left out: they read as zeros.
                    file.seek(len(piece), 1) if zero(piece) else file.write(piece)
                file.truncate(entry.get("size", 0))
        dress(place, entry)
    for place, to in links:
        os.link(to, place, follow_symlinks=False)
    for place, entry in reversed(directories):
        dress(place, entry)
    require(entries == backup.manifest["entry_count"], "another number of entries than the manifest says")


def dress(place, entry):
    """Owner, attributes, mode and time."""
    link = entry["kind"] == "symlink"
    if os.geteuid() == 0:
        os.chown(place, entry.get("uid", 0), entry.get("gid", 0), follow_symlinks=False)
    for name, value in entry.get("xattrs", []):
        os.setxattr(place, raw(name), bytes.fromhex(value), follow_symlinks=False)
    if not link:
        os.chmod(place, entry["mode"])
    os.utime(place, ns=(entry["mtime_ns"], entry["mtime_ns"]), follow_symlinks=False)


def write_entry(backup, path, entry):
    try:
        write(path, backup.content(entry), entry["mode"])
    except Refused as error:
        raise Refused(f"file {entry['path']}: {error}") from error
    os.utime(path, (entry["mtime"], entry["mtime"]))


def container(repository, sysid, name, data):
    """The content of a WAL container."""
    require(data[:8] == b"PGARKWAL" and len(data) >= 140, "no WAL container")
    require(blake3(data[:-32]).digest() == data[-32:], "wrong digest")
    header = struct.unpack_from("<HHIQQQIBBBB24s32s", data, 8)
    version, flags, timeline, found, plain_len, stored, epoch, codec, cipher, length, spare, nonce, tag = header
    require(version == 1 and not (flags or epoch or spare) and cipher in (0, 1), "unknown features")
    repository.require_as_encrypted(cipher == 1)
    named = 104 + length
    end = named + 16 * cipher
    require(len(data) >= end + 36 and struct.unpack_from("<I", data, end)[0] == zlib.crc32(data[:end]), "damaged header")
    require(data[104:named] == name and found == sysid and timeline == int(name[:8], 16), "another file")
    require(plain_len <= WAL_MAX and stored == len(data) - end - 36, "wrong length")
    body = data[end + 4 : -32]
    if cipher:
        aad = b"pgark wal container v1\0" + repository.id + data[:end]
        body = xaes_open(repository.keyring.data_key(data[named:end]), nonce, body, aad)
    else:
        require(zero(nonce), "unknown features")
    plain = decompress(body, codec, plain_len)
    identity = b"pgark wal v1\0" + struct.pack("<QIB", sysid, timeline, length) + name
    require(repository.digest(identity + plain).digest() == tag, "wrong content tag")
    return plain


def wal(repository, sysid, name):
    """The content of a WAL file: of its main copy, or of a variant."""
    folder = "history" if name.endswith(".history") else f"{name[:8]}/{name[8:16]}"
    folder = f"wal/{sysid}/{folder}"
    variants = [n for n in repository.names(folder) if n.startswith(f"{name}.r") and "-" in n]
    found, why = set(), "it is not stored"
    for stored in [name, *variants]:
        data = repository.get(f"{folder}/{stored}")
        try:
            if data is not None:
                found.add(container(repository, sysid, name.encode(), data))
        except Refused as error:
            why = str(error)
        if stored == name and found:
            break
    require(found, f"WAL file {name}: {why}")
    require(len(found) == 1, f"WAL file {name}: variants differ")
    return found.pop()


def list_backups(repository):
    damaged = False
    for component in repository.names("components"):
        for label in repository.names(f"components/{component}/backups"):
            folder = f"components/{component}/backups/{label}"
            try:
                if repository.get(f"{folder}/manifest") is None:
                    print(component, label, "uncommitted", sep="\t")
                    continue
                manifest = Backup(repository, component, label).manifest
                if manifest["kind"] != "postgres":
                    print(component, label, manifest["kind"], manifest["stopped_at"], sep="\t")
                    continue
                system = manifest["postgres"]["system_identifier"]
                wanted = ("stopped_at", "timeline", "start_lsn", "stop_lsn", "first_segment", "last_segment")
                print(component, label, system, *(manifest[field] for field in wanted), sep="\t")
            except (Refused, ValueError, KeyError) as error:
                damaged = True
                print(component, label, f"refused: {error}", sep="\t")
    return 3 if damaged else 0


def credential(args):
    """What opens an encrypted repository: the kind of its slot, and the secret."""
    if args.key_file:
        with open(args.key_file, encoding="utf-8") as file:
            return "key-file", key_of_text(file.read())
    if args.passphrase_file:
        with open(args.passphrase_file, "rb") as file:
            return "passphrase", file.read().rstrip(b"\r\n")
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, names in {"list": [], "restore": ["component", "label", "target"], "wal": ["sysid", "name", "out"]}.items():
        sub = verbs.add_parser(verb)
        for name in ["repo", *names]:
            sub.add_argument(name, type=int if name == "sysid" else str)
        keys = sub.add_mutually_exclusive_group()
        keys.add_argument("--key-file", metavar="FILE")
        keys.add_argument("--passphrase-file", metavar="FILE", help="line ends behind it do not count")
        if verb == "restore":
            sub.add_argument("--tablespace-map", action="append", default=[], metavar="OID=DIR")
    args = parser.parse_args()
    try:
        repository = Repository(args.repo, credential(args))
        if args.verb == "list":
            return list_backups(repository)
        if args.verb == "restore":
            mapping = {int(oid): path for oid, _, path in (text.partition("=") for text in args.tablespace_map)}
            backup = Backup(repository, args.component, args.label)
            if backup.manifest["kind"] == "postgres":
                restore(backup, args.target, mapping)
            else:
                restore_tree(backup, args.target)
        else:
            plain = wal(repository, args.sysid, args.name)
            write(os.path.abspath(os.fsencode(args.out)), [plain], 0o600)
        return 0
    except (Refused, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 30


if __name__ == "__main__":
    sys.exit(main())
