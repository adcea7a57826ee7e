"""py-consul, unmodified, against a running agent of any cluster: python3 py_consul.py HOST:PORT

Exits 0 when everything held, 3 when the client is not installed.
"""

import sys
import threading
import time

try:
    import consul
except ImportError:
    print("python3 has no py-consul")
    sys.exit(3)


def eventually(what, condition, limit=20):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)


def main(host, port):
    client = consul.Consul(host=host, port=port)

    # The cluster.
    peers = client.status.peers()
    assert client.status.leader() in peers and len(set(peers)) == len(peers), peers
    own = client.agent.self()
    assert own["Config"]["Datacenter"] == "dc1"
    members = {member["Name"]: member for member in client.agent.members()}
    assert all(member["Status"] == 1 for member in members.values()), members
    role = "consul" if own["Config"]["Server"] else "node"
    assert members[own["Config"]["NodeName"]]["Tags"]["role"] == role, members
    servers = [member for member in members.values() if member["Tags"]["role"] == "consul"]
    assert len(servers) == len(peers), (servers, peers)
    assert set(members) <= {node["Node"] for node in client.catalog.nodes()[1]}
    assert client.catalog.datacenters() == ["dc1"]

    # Keys, with check-and-set.
    assert client.kv.put("py/a", "one", flags=42) is True
    index, data = client.kv.get("py/a")
    assert data["Value"] == b"one" and data["Flags"] == 42, data
    assert int(index) >= data["ModifyIndex"]
    assert client.kv.put("py/a", "two", cas=data["ModifyIndex"]) is True
    assert client.kv.put("py/a", "three", cas=data["ModifyIndex"]) is False
    assert client.kv.put("py/a", "four", cas=0) is False
    assert client.kv.put("py/b/c", b"\x00\xff\x80") is True
    assert client.kv.get("py/b/c")[1]["Value"] == b"\x00\xff\x80"
    assert client.kv.put("py/empty", "") is True
    assert client.kv.get("py/empty")[1]["Value"] is None
    assert client.kv.get("py/", keys=True)[1] == ["py/a", "py/b/c", "py/empty"]
    assert client.kv.get("py/", keys=True, separator="/")[1] == ["py/a", "py/b/", "py/empty"]
    assert len(client.kv.get("py/", recurse=True)[1]) == 3
    assert client.kv.get("py/none")[1] is None
    assert client.kv.put("py/key with space/ü", "x") is True
    assert client.kv.get("py/key with space/ü")[1]["Value"] == b"x"

    # A blocking query is woken by the write it waits for, and by no other.
    index, _ = client.kv.get("py/a")
    woken = []

    def wait():
        other = consul.Consul(host=host, port=port)
        woken.append(other.kv.get("py/a", index=index, wait="30s"))

    thread = threading.Thread(target=wait)
    thread.start()
    client.kv.put("py/unrelated", "x")
    thread.join(0.5)
    assert thread.is_alive(), "woken by another key"
    client.kv.put("py/a", "woken")
    thread.join(20)
    assert woken and woken[0][1]["Value"] == b"woken" and int(woken[0][0]) > int(index), woken

    # ... and one that nothing wakes ends with the index it began with.
    index, _ = client.kv.get("py/a")
    again, _ = client.kv.get("py/a", index=index, wait="200ms")
    assert again == index

    # Services and checks.
    check = consul.Check.ttl("1h")
    assert client.agent.service.register(
        "py-web", service_id="py-web-1", address="10.0.0.5", port=8080, tags=["v1", "py"], check=check
    )
    assert client.agent.services()["py-web-1"]["Port"] == 8080
    assert client.agent.checks()["service:py-web-1"]["Status"] == "critical"
    eventually("in the catalog", lambda: client.catalog.service("py-web")[1])
    row = client.catalog.service("py-web")[1][0]
    assert row["ServiceAddress"] == "10.0.0.5" and row["ServiceTags"] == ["v1", "py"], row
    assert client.catalog.services()[1]["py-web"] == ["py", "v1"] or client.catalog.services()[1]["py-web"] == ["v1", "py"]
    index, rows = client.health.service("py-web", passing=True)
    assert rows == [], rows

    healthy = []

    def wait_health():
        other = consul.Consul(host=host, port=port)
        healthy.append(other.health.service("py-web", passing=True, index=index, wait="30s"))

    thread = threading.Thread(target=wait_health)
    thread.start()
    assert client.agent.check.ttl_pass("service:py-web-1", notes="fine")
    thread.join(20)
    assert healthy and healthy[0][1][0]["Service"]["ID"] == "py-web-1", healthy
    assert client.health.checks("py-web")[1][0]["Output"] == "fine"
    assert client.agent.check.ttl_warn("service:py-web-1")
    eventually("warning", lambda: client.health.checks("py-web")[1][0]["Status"] == "warning")
    assert client.agent.check.ttl_fail("service:py-web-1")
    eventually("critical", lambda: "service:py-web-1" in [c["CheckID"] for c in client.health.state("critical")[1]])
    assert client.agent.service.maintenance("py-web-1", True, "upgrade")
    assert client.agent.service.maintenance("py-web-1", False)

    # A check of the node, and a node that is no agent.
    assert client.agent.check.register("disk", check=consul.Check.ttl("1h"), check_id="disk")
    assert client.agent.check.ttl_pass("disk")
    assert client.agent.check.deregister("disk")
    assert client.catalog.register(
        "py-external", "10.1.1.1", service={"Service": "py-db", "ID": "py-db", "Port": 5432}
    )
    assert "py-external" in [node["Node"] for node in client.catalog.nodes()[1]]
    assert client.catalog.node("py-external")[1]["Services"]["py-db"]["Port"] == 5432
    assert client.catalog.deregister("py-external")

    assert client.agent.service.deregister("py-web-1")
    eventually("out of the catalog", lambda: client.catalog.service("py-web")[1] == [])
    # This client makes a false of a 404.
    assert client.agent.service.deregister("py-web-1") is False
    assert client.kv.delete("py/", recurse=True) is True
    assert client.kv.get("py/", recurse=True)[1] is None
    print("py-consul: everything held")


host, _, port = sys.argv[1].rpartition(":")
main(host, int(port))
