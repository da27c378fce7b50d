"""A MinIO as its clients see it: the admin API by this program, S3 by the server behind it. Signatures and
encryption are those of MinIO's own client library: what it does not take is refused, what it makes is sent.

usage: minio_server.py PORT S3_PORT ACCESS_KEY SECRET_KEY

Tests read and write the state at /test/state (JSON), and read the admin calls that came at /test/calls.
"""

import hashlib
import http.client
import io
import json
import sys
import threading
import zipfile
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from minio import Minio, crypto, signer
from minio.commonconfig import ENABLED
from minio.credentials import Credentials
from minio.versioningconfig import VersioningConfig

PORT, S3_PORT = int(sys.argv[1]), int(sys.argv[2])
ACCESS_KEY, SECRET_KEY = sys.argv[3], sys.argv[4]
IAM_FILES = [
    "policies", "users", "groups", "svcaccts", "user_mappings", "group_mappings", "stsuser_mappings",
]

lock = threading.Lock()
calls = []
state = {
    "version": "2025-10-15T17:29:55Z",
    # What is stored, what holds since the last start, what was stored before.
    "config": "# api requests_max=0\nregion name=us-east-1\n",
    "running": "# api requests_max=0\nregion name=us-east-1\n",
    "history": [],
    "iam": {name: {} for name in IAM_FILES},
    "metadata": {},
    "import_iam_v2": True,
    "restarts": 0,
    # Answers of the next admin calls: status and code; or seconds to wait.
    "refuse": [],
    "flip": False,
}


class Body(io.BytesIO):
    """What `crypto.decrypt` takes for an answer."""

    def release_conn(self):
        pass


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def client():
    return Minio(f"127.0.0.1:{S3_PORT}", ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1")


class Refused(Exception):
    pass


def import_iam(body):
    own, result = state["iam"], {kind: {} for kind in ("skipped", "removed", "added", "failed")}
    files = unzipped(body)
    parsed = {}
    for name in IAM_FILES:
        parsed[name] = json.loads(files.get(f"iam-assets/{name}.json", "{}"))
    for name, policy in parsed["policies"].items():
        if not policy.get("Statement"):
            result["removed"].setdefault("policies", []).append(name)
            continue
        own["policies"][name] = policy
        result["added"].setdefault("policies", []).append(name)
    for name, user in parsed["users"].items():
        if len(user.get("secretKey", "")) < 8:
            error = {"name": name, "error": "secret key too short"}
            result["failed"].setdefault("users", []).append(error)
            continue
        own["users"][name] = {**user, "updatedAt": "now"}
    for kind in ("groups", "svcaccts"):
        own[kind].update(parsed[kind])
    for kind in ("user_mappings", "group_mappings", "stsuser_mappings"):
        for name, mapping in parsed[kind].items():
            if mapping["policy"] not in own["policies"]:
                result["skipped"].setdefault("userPolicies", []).append({name: [mapping["policy"]]})
                continue
            own[kind][name] = {**mapping, "updatedAt": "now"}
    return result


def import_metadata(body):
    buckets = {}
    for name, content in unzipped(body).items():
        bucket, file = name.split("/")
        status = buckets.setdefault(bucket, {})
        if not client().bucket_exists(bucket_name=bucket):
            client().make_bucket(bucket_name=bucket)
        if file == "versioning.xml" and "Enabled" in content:
            client().set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))
        kind = {"policy.json": "policy", "versioning.xml": "versioning", "tagging.xml": "tagging",
                "lifecycle.xml": "lifecycle", "notification.xml": "notification", "quota.json": "quota",
                "bucket-encryption.xml": "sse", "object-lock.xml": "olock"}.get(file)
        if kind is None:
            continue
        if kind == "notification" and "arn:minio:sqs::" in content:
            wanted = content.split("arn:minio:sqs::")[1].split(":")[0]
            if f"notify_webhook:{wanted}" not in state["running"]:
                status[kind] = {"isSet": False, "error": "A specified destination ARN does not exist"}
                continue
        if kind == "lifecycle":
            content = content.replace("</Lifecycle", "<ExpiryUpdatedAt>now</ExpiryUpdatedAt></Lifecycle")
        status[kind] = {"isSet": True}
        state["metadata"].setdefault(bucket, {})[file] = content
    return {"buckets": buckets}


def answer(method, call, query, body):
    """Bytes to send."""
    encrypted = lambda plain: crypto.encrypt(plain, SECRET_KEY)
    if (method, call) == ("GET", "info"):
        return json.dumps({"mode": "online", "servers": [{"version": state["version"]}]}).encode()
    if (method, call) == ("GET", "config"):
        return encrypted(state["config"].encode())
    if (method, call) == ("PUT", "config"):
        if len(body) > 262272:
            raise Refused(400, "XMinioAdminConfigTooLarge")
        try:
            text = crypto.decrypt(Body(body), SECRET_KEY).decode()
        except (ValueError, IOError):
            raise Refused(400, "XMinioAdminConfigBadJSON") from None
        for line in text.splitlines():
            if line and not line.startswith("#") and "=" not in line:
                raise Refused(400, "XMinioConfigError")
        state["history"].append({"restoreId": str(len(state["history"])), "data": state["config"]})
        state["config"] = text
        return b""
    if (method, call) == ("GET", "list-config-history-kv"):
        return encrypted(json.dumps(state["history"][:int(query["count"])]).encode())
    if (method, call) == ("POST", "service"):
        assert query == {"action": "restart", "type": "2"}
        state["running"] = state["config"]
        state["restarts"] += 1
        return b"{}"
    if (method, call) == ("GET", "export-iam"):
        return zipped({f"iam-assets/{n}.json": json.dumps(state["iam"][n]) for n in IAM_FILES})
    if (method, call) == ("PUT", "import-iam-v2"):
        if not state["import_iam_v2"]:
            raise Refused(404, "XMinioAdminNotFound")
        return json.dumps(import_iam(body)).encode()
    if (method, call) == ("PUT", "import-iam"):
        import_iam(body)
        return b""
    if (method, call) == ("GET", "export-bucket-metadata"):
        assert query == {"bucket": ""}
        files = state["metadata"].items()
        return zipped({f"{b}/{f}": content for b, own in files for f, content in own.items()})
    if (method, call) == ("PUT", "import-bucket-metadata"):
        return json.dumps(import_metadata(body)).encode()
    raise Refused(404, "XMinioAdminNotFound")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def check(self, url, body):
        """Signs the request as the library does, and compares."""
        digest = hashlib.sha256(body).hexdigest()
        given = self.headers.get("authorization", "")
        if self.headers.get("x-amz-content-sha256") != digest:
            raise Refused(400, "XAmzContentSHA256Mismatch")
        if f"Credential={ACCESS_KEY}/" not in given:
            raise Refused(403, "InvalidAccessKeyId")
        names = given.split("SignedHeaders=")[1].split(",")[0].split(";")
        assert {"host", "x-amz-content-sha256", "x-amz-date"} <= set(names)
        date = datetime.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        region = given.split("Credential=")[1].split("/")[2]
        signed = signer.sign_v4_s3(
            method=self.command, url=url, region=region,
            headers={name: self.headers[name] for name in names},
            credentials=Credentials(ACCESS_KEY, SECRET_KEY), content_sha256=digest, date=date)
        if signed["Authorization"] != given:
            raise Refused(403, "SignatureDoesNotMatch")

    def admin(self, url, body):
        call = url.path.removeprefix("/minio/admin/v3/")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        try:
            with lock:
                calls.append(f"{self.command} {call}")
                if state["refuse"]:
                    status, code = state["refuse"].pop(0)
                    if status == 0:
                        self.close_connection = True
                        return
                    raise Refused(status, code)
                self.check(url, body)
                found = answer(self.command, call, query, body)
                if state["flip"] and found:
                    found = found[:-20] + bytes([found[-20] ^ 1]) + found[-19:]
            self.send(200, found)
        except Refused as refused:
            status, code = refused.args
            text = json.dumps({"Code": code, "Message": f"by the test: {code}"})
            self.send(status, text.encode(), [("Content-Type", "application/json")])

    def test(self, url, body):
        with lock:
            if url.path == "/test/calls":
                found = list(calls)
                calls.clear()
            else:
                if body:
                    state.update(json.loads(body))
                found = state
            self.send(200, json.dumps(found).encode())

    def forward(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", S3_PORT)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        found = connection.getresponse()
        content = found.read()
        skip = ("connection", "transfer-encoding", "content-length", "server", "date")
        headers = [(n, v) for n, v in found.getheaders() if n.lower() not in skip]
        if self.command == "HEAD" and found.getheader("content-length"):
            self.send_response(found.status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", found.getheader("content-length"))
            self.end_headers()
        else:
            self.send(found.status, content, headers)
        connection.close()

    def handle_any(self):
        if "chunked" in self.headers.get("transfer-encoding", ""):
            raise NotImplementedError
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = urlsplit(f"http://{self.headers['host']}{self.path}")
        if url.path.startswith("/minio/admin/"):
            self.admin(url, body)
        elif url.path.startswith("/test/"):
            self.test(url, body)
        else:
            self.forward(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
