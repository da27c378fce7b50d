"""A Qdrant server for tests: REST as documented, storage by Qdrant's own engine.

No package holds a real server. What is genuine here: collections are shards of `qdrant_edge`, the engine of
Qdrant, and snapshots are tar archives of those, made and loaded by it. What is pinned to the vendor's
documentation and source (1.19): paths, answers, status codes, names of snapshots, what stays on the
disk, what a recovery into an existing collection keeps. It is strict where clients go wrong: unknown
settings, wrong order of requests, missing rights are refused.

usage: qdrant_fake.py --data DIR --port N [--api-key KEY] [--read-only-key KEY] [--version V] [--peers N]

`POST /_fake` sets a fault for what comes next; `GET /_fake` counts requests. No real server has these.
"""

import argparse
import datetime
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid

import qdrant_edge as edge

PEER = 4611686018427387
READS = re.compile(r"/points/(scroll|count)$")
DISTANCES = {"Cosine": edge.Distance.Cosine, "Dot": edge.Distance.Dot, "Euclid": edge.Distance.Euclid}
INDEXES = {"keyword": "Keyword", "integer": "Integer", "float": "Float", "bool": "Bool"}
SETTINGS = {
    "vectors", "sparse_vectors", "shard_number", "sharding_method", "replication_factor",
    "write_consistency_factor", "on_disk_payload", "hnsw_config", "optimizers_config", "wal_config",
    "quantization_config", "strict_mode_config", "metadata",
}


class Refused(Exception):
    def __init__(self, status, why):
        super().__init__(why)
        self.status, self.why = status, why


def not_found(name):
    return Refused(404, f"Not found: Collection `{name}` doesn't exist!")


def merged(defaults, given):
    return {**defaults, **{key: value for key, value in (given or {}).items() if value is not None}}


def config_of(body):
    """What a collection that is made with `body` says of itself."""
    unknown = set(body) - SETTINGS
    if unknown or not (body.get("vectors") or body.get("sparse_vectors")):
        raise Refused(400, f"Bad request: unknown settings {sorted(unknown)} or no vectors")
    params = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True}
    names = ("vectors", "sparse_vectors", "sharding_method", *params)
    config = {
        "params": merged(params, {name: body.get(name) for name in names}),
        "hnsw_config": merged(
            {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": False},
            body.get("hnsw_config"),
        ),
        "optimizer_config": merged(
            {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
             "max_segment_size": None, "indexing_threshold": 10000, "flush_interval_sec": 5},
            body.get("optimizers_config"),
        ),
        "wal_config": merged({"wal_capacity_mb": 32, "wal_segments_ahead": 0}, body.get("wal_config")),
        "quantization_config": body.get("quantization_config"),
    }
    if body.get("metadata"):
        config["metadata"] = body["metadata"]
    return config


def edge_config(config):
    params = config["params"]
    vectors = params.get("vectors") or {}
    if "size" in vectors:
        vectors = {"": vectors}
    dense = {}
    for name, one in vectors.items():
        many = None
        if one.get("multivector_config"):
            many = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
        dense[name] = edge.EdgeVectorParams(one["size"], DISTANCES[one["distance"]], multivector_config=many)
    sparse = {name: edge.EdgeSparseVectorParams() for name in params.get("sparse_vectors") or {}}
    return edge.EdgeConfig(vectors=dense or None, sparse_vectors=sparse or None)


def vector_in(value):
    def one(value):
        if isinstance(value, dict):
            return edge.SparseVector(value["indices"], value["values"])
        return value

    return {name: one(part) for name, part in value.items()} if isinstance(value, dict) else value


def vector_out(value):
    if isinstance(value, edge.SparseVector):
        return {"indices": list(value.indices), "values": list(value.values)}
    if isinstance(value, dict):
        return {name: vector_out(part) for name, part in value.items()}
    return value


def id_order(value):
    return (0, value, "") if isinstance(value, int) else (1, 0, str(value))


class Collection:
    """Shards in directories of their own."""

    def __init__(self, folder, config, indexes, make):
        self.folder, self.config, self.indexes = folder, config, indexes
        self.shards = []
        for number in range(config["params"]["shard_number"]):
            path = os.path.join(folder, str(number))
            if make:
                os.makedirs(path)
                self.shards.append(edge.EdgeShard.create(path, edge_config(config)))
            else:
                self.shards.append(edge.EdgeShard.load(path))

    def shard_of(self, point):
        number = point if isinstance(point, int) else uuid.UUID(point).int
        return self.shards[number % len(self.shards)]

    def upsert(self, points):
        for shard in self.shards:
            own = [edge.Point(p["id"], vector_in(p["vector"]), p.get("payload")) for p in points
                   if self.shard_of(p["id"]) is shard]
            if own:
                shard.update(edge.UpdateOperation.upsert_points(own))

    def delete(self, points):
        for point in points:
            self.shard_of(point).update(edge.UpdateOperation.delete_points([point]))

    def index(self, field, kind):
        if kind not in INDEXES:
            raise Refused(400, f"Bad request: the fake knows no index of type {kind}")
        for shard in self.shards:
            shard.update(edge.UpdateOperation.create_field_index(field, getattr(edge.PayloadSchemaType, INDEXES[kind])))
        self.indexes[field] = kind

    def count(self):
        return sum(shard.count(edge.CountRequest(exact=True)) for shard in self.shards)

    def scroll(self, limit, offset, with_payload, with_vector):
        found = []
        for shard in self.shards:
            found += shard.scroll(edge.ScrollRequest(
                offset=offset, limit=limit + 1, with_payload=with_payload, with_vector=with_vector))[0]
        found.sort(key=lambda record: id_order(record.id))
        show = lambda value: value if isinstance(value, int) else str(value)
        points = []
        for record in found[:limit]:
            point = {"id": show(record.id)}
            if with_payload:
                point["payload"] = record.payload or {}
            if with_vector:
                point["vector"] = vector_out(record.vector)
            points.append(point)
        return {"points": points, "next_page_offset": show(found[limit].id) if len(found) > limit else None}

    def close(self):
        for shard in self.shards:
            shard.close()


class Store:
    """Everything that outlives the process lies in `data`."""

    def __init__(self, data):
        self.data, self.lock = data, threading.RLock()
        self.collections, self.aliases = {}, {}
        for folder in ("collections", "snapshots", "tmp"):
            os.makedirs(os.path.join(data, folder), exist_ok=True)
        # As the server does at its start.
        shutil.rmtree(os.path.join(data, "tmp"))
        os.makedirs(os.path.join(data, "tmp"))
        if os.path.exists(self.path("state.json")):
            with open(self.path("state.json")) as file:
                state = json.load(file)
            self.aliases = state["aliases"]
            for name, (config, indexes) in state["collections"].items():
                self.collections[name] = Collection(self.folder("collections", name), config, indexes, False)

    def path(self, *parts):
        return os.path.join(self.data, *parts)

    def folder(self, kind, name):
        return self.path(kind, urllib.parse.quote(name, safe=""))

    def save(self):
        state = {"aliases": self.aliases,
                 "collections": {name: [c.config, c.indexes] for name, c in self.collections.items()}}
        with open(self.path("state.new"), "w") as file:
            json.dump(state, file)
        os.replace(self.path("state.new"), self.path("state.json"))

    def find(self, name):
        name = self.aliases.get(name, name)
        if name not in self.collections:
            raise not_found(name)
        return name, self.collections[name]

    def create(self, name, config):
        if name in self.collections or name in self.aliases:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self.collections[name] = Collection(self.folder("collections", name), config, {}, True)
        self.save()

    def drop(self, name):
        if name not in self.collections:
            return False
        self.collections.pop(name).close()
        shutil.rmtree(self.folder("collections", name))
        self.aliases = {alias: to for alias, to in self.aliases.items() if to != name}
        self.save()
        return True

    def change_aliases(self, actions):
        aliases = dict(self.aliases)
        for action in actions:
            (kind, body), = action.items()
            if kind == "create_alias":
                alias, name = body["alias_name"], body["collection_name"]
                if name not in self.collections:
                    raise not_found(name)
                if alias in self.collections:
                    raise Refused(400, f"Wrong input: Alias `{alias}` is the name of a collection")
                aliases[alias] = name
            elif kind == "delete_alias":
                aliases.pop(body["alias_name"], None)
            else:
                raise Refused(400, f"Bad request: {kind}")
        self.aliases = aliases
        self.save()

    def tar(self, out, collection, shards, top):
        """An archive of `shards`, sparse as the server's own; `top`: with the collection around them."""
        stage = tempfile.mkdtemp(dir=self.path("tmp"))
        for number in shards:
            own = os.path.join(stage, str(number))
            os.makedirs(own)
            for name, content in (("shard_config.json", {"type": "ReplicaSet"}), ("newest_clocks.json", {"clocks": []}),
                                  ("replica_state.json", {"is_local": True, "this_peer_id": PEER, "peers": {str(PEER): "Active"}})):
                with open(os.path.join(own, name), "w") as file:
                    json.dump(content, file)
            collection.shards[number].flush()
        command = ["tar", "--format=gnu", "--sparse", "-cf", out]
        if top:
            for name, content in (("config.json", collection.config), ("shard_key_mapping.json", []),
                                  ("version.info", arguments.version), ("payload_index.json", collection.indexes)):
                with open(os.path.join(stage, name), "w") as file:
                    file.write(content) if isinstance(content, str) else json.dump(content, file)
            names = [str(number) for number in shards]
            command += ["-C", stage, "version.info", "config.json", "shard_key_mapping.json", "payload_index.json"]
            command += [*names, "-C", collection.folder, *names]
        else:
            name = str(shards[0])
            command += ["-C", os.path.join(stage, name), ".", "-C", os.path.join(collection.folder, name), "."]
        subprocess.run(command, check=True)
        shutil.rmtree(stage)

    def snapshot(self, name, now):
        """Named by when it was begun."""
        _, collection = self.find(name)
        folder = self.folder("snapshots", name)
        os.makedirs(folder, exist_ok=True)
        file = f"{name}-{PEER}-{now:%Y-%m-%d-%H-%M-%S}.snapshot"
        making = self.path("tmp", file)
        self.tar(making, collection, range(len(collection.shards)), True)
        with open(making, "rb") as content:
            checksum = hashlib.sha256(content.read()).hexdigest()
        with open(os.path.join(folder, file + ".checksum"), "w") as out:
            out.write(checksum)
        os.replace(making, os.path.join(folder, file))
        return self.describe(name, file)

    def describe(self, name, file):
        path = os.path.join(self.folder("snapshots", name), file)
        checksum = None
        if os.path.exists(path + ".checksum"):
            with open(path + ".checksum") as content:
                checksum = content.read()
        made = datetime.datetime.fromtimestamp(os.path.getmtime(path), datetime.timezone.utc)
        return {"name": file, "creation_time": f"{made:%Y-%m-%dT%H:%M:%S}", "size": os.path.getsize(path), "checksum": checksum}

    def snapshots(self, name):
        self.find(name)
        folder = self.folder("snapshots", name)
        files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [self.describe(name, file) for file in files if not file.endswith(".checksum")]

    def snapshot_path(self, name, file):
        self.find(name)
        path = os.path.join(self.folder("snapshots", name), os.path.basename(file))
        if not os.path.exists(path):
            raise Refused(404, f"Not found: Snapshot {file} not found")
        return path

    def unpack(self, archive):
        folder = tempfile.mkdtemp(dir=self.path("tmp"))
        done = subprocess.run(["tar", "-xf", archive, "-C", folder], capture_output=True)
        if done.returncode:
            raise Refused(500, "Service internal error: failed to iterate over archive")
        return folder

    def load(self, path):
        """The engine itself says whether a shard is whole."""
        try:
            shard = edge.EdgeShard.load(path)
            shard.count(edge.CountRequest(exact=True))
            shard.close()
        except BaseException as error:  # The engine's panics are no Exception.
            raise Refused(500, f"Service internal error: {error}") from None

    def replace(self, collection, number, path):
        collection.shards[number].close()
        own = os.path.join(collection.folder, str(number))
        shutil.rmtree(own)
        shutil.move(path, own)
        collection.shards[number] = edge.EdgeShard.load(own)

    def recover(self, name, archive):
        folder = self.unpack(archive)
        if not os.path.exists(os.path.join(folder, "config.json")):
            raise Refused(500, "Service internal error: config.json is missing in the snapshot")
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        with open(os.path.join(folder, "payload_index.json")) as file:
            indexes = json.load(file)
        # An alias is not followed: the name is the new collection's.
        new = name not in self.collections
        if new:
            self.create(name, config)
        collection = self.collections[name]
        for key in ("vectors", "shard_number"):
            if collection.config["params"].get(key) != config["params"].get(key):
                raise Refused(400, f"Bad request: Snapshot is not compatible with existing collection: {key}")
        for number in range(len(collection.shards)):
            self.load(os.path.join(folder, str(number)))
        for number in range(len(collection.shards)):
            self.replace(collection, number, os.path.join(folder, str(number)))
        if new:
            collection.indexes = indexes
        self.save()
        shutil.rmtree(folder)

    def recover_shard(self, name, number, archive):
        _, collection = self.find(name)
        if number >= len(collection.shards):
            raise Refused(404, f"Not found: Shard {number} doesn't exist")
        folder = self.unpack(archive)
        self.load(folder)
        self.replace(collection, number, folder)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # In one piece: small ones would wait for each other's acknowledgement.
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def allowed(self, path):
        key = self.headers.get("api-key")
        if not arguments.api_key or key == arguments.api_key:
            return
        if key is None:
            raise Refused(401, "Must provide an API key or an Authorization bearer token")
        if key != arguments.read_only_key:
            raise Refused(401, "Invalid API key or JWT")
        if self.command != "GET" and not READS.search(path):
            raise Refused(403, "Forbidden: Global manage access is required")

    def serve(self):
        began = time.monotonic()
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
        with counted:
            shown = self.command + " " + re.sub(r"(/(collections|shards|snapshots)/)(?!aliases|upload)[^/]+", r"\1*", path)
            counts[shown] = counts.get(shown, 0) + 1
        try:
            self.allowed(path)
            result = self.answer(parts)
        except Refused as refused:
            # What was not read of the request would be taken for the next one.
            self.close_connection = True
            return self.send(refused.status, {"status": {"error": refused.why}, "time": 0.0})
        if result is None:
            return
        if parts == [""]:
            return self.send(200, result)
        self.send(200, {"result": result, "status": "ok", "time": time.monotonic() - began})

    do_GET = do_PUT = do_POST = do_DELETE = serve

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")

    def answer(self, parts):
        method, wait = self.command, self.query.get("wait") != "false"
        match method, parts:
            case "GET", [""]:
                return {"title": "qdrant - vector search engine", "version": arguments.version, "commit": "0"}
            case "POST", ["_fake"]:
                faults.clear()
                faults.update(self.body())
                return True
            case "GET", ["_fake"]:
                return counts
            case "GET", ["cluster"]:
                if arguments.peers == 1:
                    return {"status": "disabled"}
                peers = {str(PEER + n): {"uri": f"http://peer{n}:6335/"} for n in range(arguments.peers)}
                return {"status": "enabled", "peer_id": PEER, "peers": peers}
            case "POST", ["collections", name, "snapshots"]:
                return self.make_snapshot(name, wait)
            case "GET", ["collections", name, "snapshots", file]:
                with store.lock:
                    path = store.snapshot_path(name, file)
                return self.stream(path, True)
            case "POST", ["collections", name, "snapshots", "upload"]:
                path, file = self.uploaded()
                with store.lock:
                    kept = store.folder("snapshots", name)
                    os.makedirs(kept, exist_ok=True)
                    kept = os.path.join(kept, os.path.basename(file))
                    shutil.move(path, kept)
                    self.fail("recover")
                    store.recover(name, kept)
                return True
            case "GET", ["collections", name, "shards", shard, "snapshot"]:
                with store.lock:
                    _, collection = store.find(name)
                    path = store.path("tmp", f"stream-{uuid.uuid4()}")
                    store.tar(path, collection, [int(shard)], False)
                self.stream(path, False)
                os.unlink(path)
                return None
            case "POST", ["collections", name, "shards", shard, "snapshots", "upload"]:
                path, _ = self.uploaded()
                with store.lock:
                    store.recover_shard(name, int(shard), path)
                return True
            case _:
                with store.lock:
                    return self.plain(method, parts)

    def plain(self, method, parts):
        match method, parts:
            case "GET", ["collections"]:
                return {"collections": [{"name": name} for name in store.collections]}
            case "GET", ["aliases"]:
                return {"aliases": [{"alias_name": a, "collection_name": c} for a, c in store.aliases.items()]}
            case "POST", ["collections", "aliases"]:
                store.change_aliases(self.body()["actions"])
                return True
            case "PUT", ["collections", name]:
                store.create(name, config_of(self.body()))
                return True
            case "DELETE", ["collections", name]:
                return store.drop(name)
            case "GET", ["collections", name]:
                _, collection = store.find(name)
                points = collection.count()
                schema = {field: {"data_type": kind, "points": points} for field, kind in collection.indexes.items()}
                return {"status": "green", "optimizer_status": "ok", "points_count": points, "config": collection.config,
                        "segments_count": len(collection.shards), "payload_schema": schema}
            case "GET", ["collections", name, "cluster"]:
                _, collection = store.find(name)
                shards = [{"shard_id": number, "points_count": 0, "state": "Active"} for number in range(len(collection.shards))]
                return {"peer_id": PEER, "shard_count": len(shards), "local_shards": shards, "remote_shards": [], "shard_transfers": []}
            case "PUT", ["collections", name, "index"]:
                body = self.body()
                schema = body["field_schema"]
                store.find(name)[1].index(body["field_name"], schema if isinstance(schema, str) else schema["type"])
                store.save()
                return {"operation_id": 0, "status": "completed"}
            case "PUT", ["collections", name, "points"]:
                store.find(name)[1].upsert(self.body()["points"])
                return {"operation_id": 0, "status": "completed"}
            case "POST", ["collections", name, "points", "delete"]:
                store.find(name)[1].delete(self.body()["points"])
                return {"operation_id": 0, "status": "completed"}
            case "POST", ["collections", name, "points", "count"]:
                self.body()
                return {"count": store.find(name)[1].count()}
            case "POST", ["collections", name, "points", "scroll"]:
                body = self.body()
                return store.find(name)[1].scroll(body.get("limit", 10), body.get("offset"),
                                                  body.get("with_payload", True), body.get("with_vector", False))
            case "GET", ["collections", name, "snapshots"]:
                return store.snapshots(name)
            case "DELETE", ["collections", name, "snapshots", file]:
                path = store.snapshot_path(name, file)
                os.unlink(path)
                if os.path.exists(path + ".checksum"):
                    os.unlink(path + ".checksum")
                return True
        raise Refused(404, "Not found")

    def fail(self, what):
        if faults.pop(what + "_hang", None):
            time.sleep(3600)
        error = faults.pop(what + "_error", None)
        if error:
            raise Refused(*error)

    def make_snapshot(self, name, wait):
        self.fail("snapshot")
        now = datetime.datetime.now(datetime.timezone.utc)
        if not wait:
            threading.Thread(target=lambda: store.snapshot(name, now)).start()
            self.send(202, {"status": "accepted", "time": 0.0})
            return None
        time.sleep(faults.get("snapshot_delay", 0))
        with store.lock:
            made = store.snapshot(name, now)
        if faults.pop("snapshot_die", None):
            os._exit(9)
        return made

    def stream(self, path, sized):
        """Sends a file: with its length, or in chunks. Faults: at so many bytes of it, one bit differs, or
        the stream ends, or stands still, or the server dies. `flip_in`: where these bytes are."""
        at = {name: faults.pop(name, None) for name in ("flip", "cut", "stall", "die")}
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        size = os.path.getsize(path)
        if "flip_in" in faults:
            with open(path, "rb") as file:
                found = file.read().rfind(bytes.fromhex(faults["flip_in"]))
            if found >= 0:
                at["flip"] = found + 1
        if sized:
            self.send_header("Content-Length", str(size))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        with open(path, "rb") as file:
            while piece := bytearray(file.read(1 << 14)):
                within = lambda name: at[name] is not None and sent <= min(at[name], size - 1) < sent + len(piece)
                if within("flip"):
                    piece[min(at["flip"], size - 1) - sent] ^= 4
                if within("die"):
                    self.wfile.flush()
                    os._exit(9)
                if within("stall"):
                    self.wfile.flush()
                    time.sleep(3600)
                if within("cut"):
                    self.close_connection = True
                    return
                self.wfile.write(piece if sized else b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += len(piece)
        if not sized:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def uploaded(self):
        """The file of a multipart body, whose checksum is that of the query, and its name."""
        boundary = re.search(r"boundary=(.+)$", self.headers["Content-Type"]).group(1).encode()
        left = int(self.headers["Content-Length"])
        raw = self.rfile.read(left)
        if len(raw) != left:
            raise Refused(400, "Bad request: Multipart stream is incomplete")
        head, _, rest = raw.partition(b"\r\n\r\n")
        end = b"\r\n--" + boundary + b"--\r\n"
        if not head.startswith(b"--" + boundary) or b'name="snapshot"' not in head or not rest.endswith(end):
            raise Refused(400, "Bad request: Multipart error")
        content = rest[: -len(end)]
        expected, found = self.query.get("checksum"), hashlib.sha256(content).hexdigest()
        if expected and expected != found:
            raise Refused(400, f"Bad request: Snapshot checksum mismatch: expected {expected}, got {found}")
        with tempfile.NamedTemporaryFile(dir=store.path("tmp"), delete=False) as file:
            file.write(content)
        return file.name, re.search(rb'filename="([^"]*)"', head).group(1).decode()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        # Clients go away: so do their threads.
        pass


parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--api-key")
parser.add_argument("--read-only-key")
parser.add_argument("--version", default="1.19.0")
parser.add_argument("--peers", type=int, default=1)
arguments = parser.parse_args()
store = Store(arguments.data)
faults, counts, counted = {}, {}, threading.Lock()
Server(("127.0.0.1", arguments.port), Handler).serve_forever()
