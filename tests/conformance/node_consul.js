// The npm client `consul`, unmodified, against a running agent of any cluster: node node_consul.js HOST:PORT
//
// Found through NODE_PATH. Exits 0 when everything held, 3 when the client is not installed.
"use strict";

const assert = require("node:assert/strict");
const { setTimeout: sleep } = require("node:timers/promises");

let Consul;
try {
  Consul = require("consul");
} catch (error) {
  if (error.code !== "MODULE_NOT_FOUND") throw error;
  console.log("node has no package consul");
  process.exit(3);
}

async function eventually(what, condition, limit = 20000) {
  const end = Date.now() + limit;
  while (!(await condition())) {
    assert.ok(Date.now() < end, `never happened: ${what}`);
    await sleep(50);
  }
}

async function main(host, port) {
  const consul = new Consul({ host, port });

  // The cluster.
  const peers = await consul.status.peers();
  assert.ok(peers.includes(await consul.status.leader()), String(peers));
  const own = (await consul.agent.self()).Config;
  assert.equal(own.Datacenter, "dc1");
  const members = await consul.agent.members();
  assert.ok(members.every((member) => member.Status === 1), JSON.stringify(members));
  const self = members.filter((member) => member.Name === own.NodeName);
  assert.deepEqual(self.map((member) => member.Tags.role), [own.Server ? "consul" : "node"]);
  assert.equal(members.filter((member) => member.Tags.role === "consul").length, peers.length);
  assert.deepEqual(await consul.catalog.datacenters(), ["dc1"]);

  // Keys, with check-and-set.
  assert.equal(await consul.kv.set({ key: "node/a", value: "one", flags: 42 }), true);
  const read = await consul.kv.get("node/a");
  assert.equal(read.Value, "one");
  assert.equal(read.Flags, 42);
  assert.equal(await consul.kv.set({ key: "node/a", value: "two", cas: read.ModifyIndex }), true);
  // This client makes undefined of a body that is `false`.
  assert.ok(!(await consul.kv.set({ key: "node/a", value: "three", cas: read.ModifyIndex })));
  assert.ok(!(await consul.kv.set({ key: "node/a", value: "four", cas: "0" })));
  assert.equal(await consul.kv.set("node/b/c", "deep"), true);
  assert.deepEqual(await consul.kv.keys("node/"), ["node/a", "node/b/c"]);
  assert.deepEqual(await consul.kv.keys({ key: "node/", separator: "/" }), ["node/a", "node/b/"]);
  assert.equal((await consul.kv.get({ key: "node/", recurse: true })).length, 2);
  assert.equal(await consul.kv.get("node/none"), undefined);
  const raw = await consul.kv.get({ key: "node/a", raw: true });
  assert.equal(raw.toString(), "two");

  // The client's own watch is a loop of blocking queries.
  const seen = [];
  const watch = consul.watch({
    method: consul.kv.get,
    options: { key: "node/watched", wait: "30s" },
    backoffFactor: 100,
  });
  watch.on("change", (data) => seen.push(data && data.Value));
  watch.on("error", (error) => seen.push(error));
  await consul.kv.set("node/watched", "first");
  await eventually("the first value", () => seen.includes("first"));
  const before = seen.length;
  await consul.kv.set("node/unrelated", "x");
  await sleep(300);
  assert.equal(seen.length, before, "woken by another key");
  await consul.kv.set("node/watched", "second");
  await eventually("the second value", () => seen.includes("second"));
  watch.end();
  assert.ok(!seen.some((value) => value instanceof Error), String(seen));

  // Services and checks.
  await consul.agent.service.register({
    name: "node-web",
    id: "node-web-1",
    address: "10.0.0.6",
    port: 8081,
    tags: ["v1", "node"],
    meta: { team: "shop" },
    check: { ttl: "1h" },
  });
  assert.equal((await consul.agent.service.list())["node-web-1"].Port, 8081);
  assert.equal((await consul.agent.check.list())["service:node-web-1"].Status, "critical");
  await eventually("in the catalog", async () => (await consul.catalog.service.nodes("node-web")).length === 1);
  const row = (await consul.catalog.service.nodes("node-web"))[0];
  assert.deepEqual(row.ServiceTags, ["v1", "node"]);
  assert.deepEqual(row.ServiceMeta, { team: "shop" });
  assert.ok("node-web" in (await consul.catalog.service.list()));
  const passing = () => consul.health.service({ service: "node-web", passing: true });
  assert.deepEqual(await passing(), []);
  await consul.agent.check.pass({ id: "service:node-web-1", note: "fine" });
  await eventually("passing", async () => (await passing()).length === 1);
  await consul.agent.check.warn("service:node-web-1");
  await eventually("warning", async () => (await consul.health.checks("node-web"))[0].Status === "warning");
  await consul.agent.check.fail("service:node-web-1");
  const isOwn = (check) => check.CheckID === "service:node-web-1";
  await eventually("critical", async () => (await consul.health.state("critical")).some(isOwn));
  await consul.agent.service.maintenance({ id: "node-web-1", enable: true, reason: "upgrade" });
  await consul.agent.service.maintenance({ id: "node-web-1", enable: false });

  // A check of the node, and a node that is no agent.
  await consul.agent.check.register({ name: "disk", ttl: "1h" });
  await consul.agent.check.pass("disk");
  await consul.agent.check.deregister("disk");
  await consul.catalog.register({
    node: "node-external",
    address: "10.1.1.2",
    service: { service: "node-db", id: "node-db", port: 5432 },
  });
  assert.ok((await consul.catalog.node.list()).some((node) => node.Node === "node-external"));
  assert.equal((await consul.catalog.node.services("node-external")).Services["node-db"].Port, 5432);
  await consul.catalog.deregister({ node: "node-external" });

  await consul.agent.service.deregister("node-web-1");
  await eventually("out of the catalog", async () => (await consul.catalog.service.nodes("node-web")).length === 0);
  await assert.rejects(consul.agent.service.deregister("node-web-1"));
  assert.equal(await consul.kv.del({ key: "node/", recurse: true }), true);
  assert.equal(await consul.kv.get({ key: "node/", recurse: true }), undefined);
  console.log("consul for node: everything held");
}

const [host, port] = process.argv[2].split(":");
main(host, Number(port)).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
