"""HAProxy, unmodified, that finds its servers through an agent's DNS: haproxy.py HTTP_HOST:PORT DNS_HOST:PORT

One backend follows SRV records (addresses, ports), one A records. Exits 0 when everything held,
3 when HAProxy is not installed.
"""

import http.server
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

CONFIG = """
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
    retries 2

resolvers agent
    nameserver dns {dns}
    accepted_payload_size 4096
    timeout resolve 200ms
    timeout retry 200ms
    hold valid 200ms
    hold nx 200ms
    hold obsolete 200ms

frontend srv
    bind fd@{srv}
    default_backend srv
backend srv
    server-template web 5 _web._tcp.service.consul resolvers agent resolve-prefer ipv4 init-addr none

frontend a
    bind fd@{a}
    default_backend a
backend a
    server-template web 5 v1.web.service.consul:{port} resolvers agent resolve-prefer ipv4 init-addr none
"""


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.server_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main(api, dns):
    if not shutil.which("haproxy"):
        print("this machine has no haproxy")
        sys.exit(3)

    def put(path, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(f"http://{api}/v1/agent/{path}", data=data, method="PUT")
        urllib.request.urlopen(request, timeout=10).read()

    def register(host, port):
        put("service/register", {
            "ID": host, "Name": "web", "Address": host, "Port": port, "Tags": ["v1"],
            "Check": {"TTL": "1h", "Status": "passing"}})

    # The same port everywhere: an A record has none.
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    port = 0
    for host in hosts:
        server = http.server.ThreadingHTTPServer((host, port), Web)
        server.daemon_threads = True
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        register(host, port)

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    fronts = [listener.getsockname()[1] for listener in listeners]
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        srv, a = (listener.fileno() for listener in listeners)
        config.write(CONFIG.format(dns=dns, srv=srv, a=a, port=port))
        config.flush()
        haproxy = subprocess.Popen(["haproxy", "-db", "-f", config.name], pass_fds=[srv, a])
        try:
            follow(fronts, hosts, put, lambda host: register(host, port))
        finally:
            haproxy.terminate()
            haproxy.wait(20)
    print("haproxy: everything held")


def follow(fronts, hosts, put, register):
    def used(front):
        """Who answers one round of requests; None when somebody did not."""
        answers = set()
        for _ in range(6):
            try:
                answers.add(urllib.request.urlopen(f"http://127.0.0.1:{front}/", timeout=20).read().decode())
            except OSError:
                return None
        return answers

    def settles(expected, may_fail=False):
        end = time.monotonic() + 30
        for front in fronts:
            while (answers := used(front)) != set(expected):
                # Every server answers all the time: a change costs no request.
                assert answers is not None or may_fail, "a request failed"
                assert time.monotonic() < end, f"{answers} answer, not {expected}"
                time.sleep(0.05)

    one, two, three = hosts
    settles(hosts, may_fail=True)
    put(f"check/fail/service:{two}")
    settles([one, three])
    put(f"service/deregister/{one}")
    settles([three])
    put(f"check/pass/service:{two}")
    register(one)
    settles(hosts)


main(sys.argv[1], sys.argv[2])
