"""moto's S3 server, one request at a time: moto itself looks and then stores, and of two conditional
puts at once both may win. usage: moto.py PORT [CERTIFICATE KEY]"""

import sys
import threading

# This file's folder, where it would be taken for moto itself.
sys.path.pop(0)

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

base = DomainDispatcherApplication(create_backend_app)
lock = threading.Lock()


def app(environ, start_response):
    with lock:
        return base(environ, start_response)


tls = tuple(sys.argv[2:4]) or None
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True, ssl_context=tls)
