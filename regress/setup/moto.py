"""moto's S3 server, one request at a time: moto itself looks and then stores, and of two conditional
puts at once both may win. usage: moto.py PORT [CERTIFICATE KEY]"""

import copy
import sys
import threading

# This file's folder, where it would be taken for moto itself.
sys.path.pop(0)

from moto.moto_server.utilities import RegexConverter
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3 import models
from werkzeug.serving import run_simple


class Copying:
    """A listing copies every version with its content, to mark the newest: copies of what is told do as well."""

    copy = staticmethod(copy.copy)

    @staticmethod
    def deepcopy(what):
        if not isinstance(what, list):
            return copy.deepcopy(what)
        return [shallow(version) for version in what]


def shallow(version):
    twin = object.__new__(Listed if isinstance(version, models.FakeKey) else type(version))
    twin.__dict__.update(version.__dict__)
    return twin


class Listed(models.FakeKey):
    # moto asks every class what service it is of.
    __module__ = models.__name__

    def __del__(self):
        """What it shares stays open."""


models.copy = Copying
plain = RegexConverter.__init__


def of_every_letter(self, url_map, *items):
    """Keys may hold line ends."""
    plain(self, url_map, *items)
    self.regex = f"(?s:{self.regex})"


RegexConverter.__init__ = of_every_letter
base = DomainDispatcherApplication(create_backend_app)
lock = threading.Lock()


def app(environ, start_response):
    with lock:
        if environ["REQUEST_METHOD"] == "GET" and environ["QUERY_STRING"].startswith("versioning"):
            return versioning(environ, start_response)
        return base(environ, start_response)


def versioning(environ, start_response):
    """The answer has a name that S3's has not, and strict clients do not take it."""
    seen = []
    body = b"".join(base(environ, lambda status, headers, *_: seen.append((status, headers))))
    body = body.replace(b"GetBucketVersioningResponse", b"VersioningConfiguration")
    status, headers = seen[0]
    headers = [(n, v) for n, v in headers if n.lower() != "content-length"]
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]


tls = tuple(sys.argv[2:4]) or None
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True, ssl_context=tls)
