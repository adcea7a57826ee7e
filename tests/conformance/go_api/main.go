// Consul's own Go client, unmodified, against a running agent: go run . ADDRESS
//
// Exits 0 when everything held. A step that Consul 1.8 answers otherwise is passed over when
// WHARF_ORACLE is set, so that the same program can be held against it.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

var oracle = os.Getenv("WHARF_ORACLE") != ""

func fail(format string, values ...interface{}) {
	panic(fmt.Sprintf(format, values...))
}

func ok(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func equal(got, expected interface{}) {
	if !reflect.DeepEqual(got, expected) {
		fail("got %#v, expected %#v", got, expected)
	}
}

func hold(what string, condition bool) {
	if !condition {
		fail("%s does not hold", what)
	}
}

// refused insists on an error that says something.
func refused(err error, parts ...string) {
	if err == nil {
		fail("no error, expected one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			fail("the error %q does not say %q", err, part)
		}
	}
}

func eventually(what string, condition func() bool) {
	end := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(end) {
			fail("never happened: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// within insists that something that was started ends soon.
func within(what string, done <-chan struct{}) {
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		fail("never ended: %s", what)
	}
}

var steps = []struct {
	name string
	run  func(*api.Client)
}{
	{"status", status},
	{"agent", agent},
	{"services", services},
	{"service hash", serviceHash},
	{"checks", checks},
	{"replace existing checks", replaceExistingChecks},
	{"maintenance", maintenance},
	{"catalog", catalog},
	{"health", health},
	{"query options", queryOptions},
	{"keys", keys},
	{"blocking", blocking},
	{"config entries", configEntries},
	{"watch plans", plans},
	{"snapshots", snapshots},
	{"operator", operator},
	{"errors", errors},
}

func main() {
	config := api.DefaultConfig()
	if len(os.Args) > 1 {
		config.Address = os.Args[1]
	}
	client, err := api.NewClient(config)
	ok(err)
	failed := 0
	for _, step := range steps {
		if os.Getenv("STEP") != "" && os.Getenv("STEP") != step.name {
			continue
		}
		started := time.Now()
		if problem := attempt(step.run, client); problem != nil {
			failed++
			fmt.Printf("%-24s FAILED: %v\n", step.name, problem)
		} else {
			fmt.Printf("%-24s %v\n", step.name, time.Since(started).Round(time.Millisecond))
		}
	}
	if failed > 0 {
		fmt.Printf("the Go client: %d of %d steps failed\n", failed, len(steps))
		os.Exit(1)
	}
	fmt.Println("the Go client: everything held")
}

func attempt(step func(*api.Client), client *api.Client) (problem interface{}) {
	defer func() {
		problem = recover()
		if problem != nil && os.Getenv("STEP") != "" {
			panic(problem)
		}
	}()
	step(client)
	return nil
}

func status(client *api.Client) {
	leader, err := client.Status().Leader()
	ok(err)
	peers := servers(client)
	hold("the leader is a peer", contains(peers, leader))
	again, err := client.Status().LeaderWithQueryOptions(&api.QueryOptions{Datacenter: "dc1"})
	ok(err)
	equal(again, leader)
}

// servers are the addresses of the cluster's servers, each of them once.
func servers(client *api.Client) []string {
	peers, err := client.Status().Peers()
	ok(err)
	known := map[string]bool{}
	for _, peer := range peers {
		known[peer] = true
	}
	equal(len(known), len(peers))
	hold("a server", len(peers) > 0)
	return peers
}

func contains(list []string, one string) bool {
	for _, other := range list {
		if other == one {
			return true
		}
	}
	return false
}

func agent(client *api.Client) {
	own, err := client.Agent().Self()
	ok(err)
	equal(own["Config"]["Datacenter"], "dc1")
	hold("a node id", len(own["Config"]["NodeID"].(string)) == 36)
	hold("debug configuration", own["DebugConfig"] != nil)
	hold("a member", own["Member"]["Name"] != "")
	name, err := client.Agent().NodeName()
	ok(err)
	equal(own["Config"]["NodeName"], name)
	members, err := client.Agent().Members(false)
	ok(err)
	role := "node"
	if own["Config"]["Server"].(bool) {
		role = "consul"
	}
	itself, consuls := 0, 0
	for _, member := range members {
		equal(member.Status, 1)
		equal(member.Tags["dc"], "dc1")
		if member.Tags["role"] == "consul" {
			consuls++
		}
		if member.Name == name {
			itself++
			equal(member.Tags["role"], role)
		}
	}
	equal(itself, 1)
	equal(consuls, len(servers(client)))
	wan, err := client.Agent().MembersOpts(api.MembersOpts{WAN: true})
	ok(err)
	if role == "consul" {
		equal(len(wan), consuls)
	} else {
		// Clients are in no pool of several datacenters.
		equal(len(wan), 0)
	}
	metrics, err := client.Agent().Metrics()
	ok(err)
	hold("gauges", len(metrics.Gauges) > 0)
	ok(client.Agent().Reload())

	stop := make(chan struct{})
	lines, err := client.Agent().Monitor("debug", stop, nil)
	ok(err)
	_, err = client.Agent().Services()
	ok(err)
	select {
	case line := <-lines:
		hold("a line of the log", line != "")
	case <-time.After(10 * time.Second):
		fail("the log is silent")
	}
	close(stop)
}

func services(client *api.Client) {
	agent := client.Agent()
	ok(agent.ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: "go-web-1", Name: "go-web", Tags: []string{"v1", "primary"}, Port: 8080, Address: "10.0.0.7",
		TaggedAddresses: map[string]api.ServiceAddress{
			"lan": {Address: "10.0.0.7", Port: 8080}, "wan": {Address: "198.18.0.7", Port: 80}},
		EnableTagOverride: true,
		Meta:              map[string]string{"version": "1"},
		Weights:           &api.AgentWeights{Passing: 10, Warning: 2},
		Check:             &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
	}, api.ServiceRegisterOpts{}.WithContext(context.Background())))
	ok(agent.ServiceRegister(&api.AgentServiceRegistration{ID: "go-web-2", Name: "go-web", Port: 8081}))

	all, err := agent.Services()
	ok(err)
	service := all["go-web-1"]
	equal(service.Service, "go-web")
	equal(service.Tags, []string{"v1", "primary"})
	equal(service.Meta["version"], "1")
	equal(service.Weights, api.AgentWeights{Passing: 10, Warning: 2})
	equal(service.TaggedAddresses["wan"], api.ServiceAddress{Address: "198.18.0.7", Port: 80})
	equal(service.EnableTagOverride, true)
	equal(all["go-web-2"].Weights, api.AgentWeights{Passing: 1, Warning: 1})

	some, err := agent.ServicesWithFilter(`Service == "go-web" and Port != 8081`)
	ok(err)
	equal(len(some), 1)
	some, err = agent.ServicesWithFilter(`"v1" in Tags and Meta.version == "1" and Weights.Passing == 10`)
	ok(err)
	equal(len(some), 1)
	_, err = agent.ServicesWithFilter(`Nothing == 3`)
	refused(err, "400")

	status, infos, err := agent.AgentHealthServiceByName("go-web")
	ok(err)
	equal(status, api.HealthPassing)
	equal(len(infos), 2)
	status, one, err := agent.AgentHealthServiceByID("go-web-1")
	ok(err)
	equal(status, api.HealthPassing)
	equal(one.Service.ID, "go-web-1")
	status, one, err = agent.AgentHealthServiceByID("go-none")
	ok(err)
	equal(status, api.HealthCritical)
	hold("no service", one == nil)

	ok(agent.ServiceDeregister("go-web-2"))
	refused(agent.ServiceDeregister("go-web-2"), "404")
	ok(agent.ServiceDeregister("go-web-1"))
	eventually("both out of the catalog", func() bool {
		rows, _, err := client.Catalog().Service("go-web", "", nil)
		ok(err)
		return len(rows) == 0
	})
	refused(agent.ServiceRegister(&api.AgentServiceRegistration{Port: 1}), "400", "Missing service name")
}

func serviceHash(client *api.Client) {
	agent := client.Agent()
	register := func(port int) {
		ok(agent.ServiceRegister(&api.AgentServiceRegistration{ID: "go-hash", Name: "go-hash", Port: port}))
	}
	register(1)
	service, meta, err := agent.Service("go-hash", nil)
	ok(err)
	equal(service.Port, 1)
	hold("a hash", meta.LastContentHash != "" && service.ContentHash == meta.LastContentHash)
	done := make(chan struct{})
	go func() {
		defer close(done)
		changed, after, err := agent.Service("go-hash",
			&api.QueryOptions{WaitHash: meta.LastContentHash, WaitTime: 20 * time.Second})
		ok(err)
		equal(changed.Port, 2)
		hold("another hash", after.LastContentHash != meta.LastContentHash)
	}()
	select {
	case <-done:
		fail("a blocking read of a service did not block")
	case <-time.After(200 * time.Millisecond):
	}
	register(2)
	within("a blocking read of a service", done)
	ok(agent.ServiceDeregister("go-hash"))
	_, _, err = agent.Service("go-hash", nil)
	refused(err, "404")
}

func checks(client *api.Client) {
	agent := client.Agent()
	ok(agent.CheckRegister(&api.AgentCheckRegistration{ID: "go-disk", Name: "disk", Notes: "room",
		AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}))
	own := func() *api.AgentCheck {
		all, err := agent.Checks()
		ok(err)
		return all["go-disk"]
	}
	equal(own().Status, api.HealthCritical)
	equal(own().Notes, "room")
	ok(agent.UpdateTTL("go-disk", "half full", api.HealthPassing))
	equal(own().Status, api.HealthPassing)
	equal(own().Output, "half full")
	ok(agent.UpdateTTLOpts("go-disk", "nearly full", api.HealthWarning, nil))
	equal(own().Status, api.HealthWarning)
	ok(agent.PassTTL("go-disk", "a"))
	ok(agent.WarnTTL("go-disk", "b"))
	ok(agent.FailTTL("go-disk", "c"))
	equal(own().Status, api.HealthCritical)
	refused(agent.PassTTL("go-none", ""), "Unknown check")
	some, err := agent.ChecksWithFilter(`Status == "critical" and Name == "disk"`)
	ok(err)
	equal(len(some), 1)
	ok(agent.CheckDeregister("go-disk"))
	hold("no check", own() == nil)
	refused(agent.CheckRegister(&api.AgentCheckRegistration{Name: "nothing"}), "400")
	refused(agent.CheckRegister(&api.AgentCheckRegistration{Name: "orphan", ServiceID: "go-none",
		AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}), "go-none")

	// A check that is run, against the agent itself.
	address := os.Args[1]
	ok(agent.ServiceRegister(&api.AgentServiceRegistration{ID: "go-run", Name: "go-run", Port: 1,
		Checks: api.AgentServiceChecks{
			{CheckID: "go-http", Name: "over HTTP", HTTP: "http://" + address + "/v1/status/leader", Interval: "1s"},
			{CheckID: "go-tcp", TCP: address, Interval: "1s", Timeout: "1s"},
			{CheckID: "go-alias", AliasNode: nodeName(client)},
		}}))
	eventually("all checks pass", func() bool {
		rows, _, err := client.Health().Checks("go-run", nil)
		ok(err)
		return len(rows) == 3 && rows.AggregatedStatus() == api.HealthPassing
	})
	ok(agent.ServiceDeregister("go-run"))
}

func nodeName(client *api.Client) string {
	name, err := client.Agent().NodeName()
	ok(err)
	return name
}

func replaceExistingChecks(client *api.Client) {
	agent := client.Agent()
	register := func(replace bool, ids ...string) {
		service := &api.AgentServiceRegistration{ID: "go-replace", Name: "go-replace"}
		for _, id := range ids {
			service.Checks = append(service.Checks, &api.AgentServiceCheck{CheckID: id, TTL: "1h"})
		}
		ok(agent.ServiceRegisterOpts(service, api.ServiceRegisterOpts{ReplaceExistingChecks: replace}))
	}
	own := func() []string {
		all, err := agent.ChecksWithFilter(`ServiceID == "go-replace"`)
		ok(err)
		ids := []string{}
		for id := range all {
			ids = append(ids, id)
		}
		sort.Strings(ids)
		return ids
	}
	register(false, "go-one", "go-two")
	equal(own(), []string{"go-one", "go-two"})
	register(false, "go-three")
	equal(own(), []string{"go-one", "go-three", "go-two"})
	register(true, "go-four", "go-one")
	equal(own(), []string{"go-four", "go-one"})
	ok(agent.ServiceDeregister("go-replace"))
}

func maintenance(client *api.Client) {
	agent := client.Agent()
	ok(agent.ServiceRegister(&api.AgentServiceRegistration{ID: "go-maint", Name: "go-maint"}))
	passing := func() int {
		rows, _, err := client.Health().Service("go-maint", "", true, nil)
		ok(err)
		return len(rows)
	}
	eventually("it passes", func() bool { return passing() == 1 })
	ok(agent.EnableServiceMaintenance("go-maint", "an upgrade"))
	eventually("it is in maintenance", func() bool { return passing() == 0 })
	rows, _, err := client.Health().Checks("go-maint", nil)
	ok(err)
	equal(rows[0].CheckID, "_service_maintenance:go-maint")
	equal(rows[0].Notes, "an upgrade")
	equal(rows.AggregatedStatus(), api.HealthMaint)
	ok(agent.DisableServiceMaintenance("go-maint"))
	eventually("it passes again", func() bool { return passing() == 1 })
	ok(agent.EnableNodeMaintenance("a move"))
	eventually("the node is in maintenance", func() bool { return passing() == 0 })
	ok(agent.DisableNodeMaintenance())
	eventually("the node is back", func() bool { return passing() == 1 })
	refused(agent.EnableServiceMaintenance("go-none", ""), "404")
	ok(agent.ServiceDeregister("go-maint"))
}

// external is a node that is no agent, with two services.
func external(client *api.Client) {
	for i, service := range []string{"go-db", "go-queue"} {
		_, err := client.Catalog().Register(&api.CatalogRegistration{
			Node: "go-external", Address: "10.1.1.1", NodeMeta: map[string]string{"rack": "r1"},
			TaggedAddresses: map[string]string{"wan": "198.18.1.1"},
			Service: &api.AgentService{ID: service + "-1", Service: service, Port: 5432 + i,
				Tags: []string{"primary", fmt.Sprint("n", i)}, Meta: map[string]string{"engine": "pg"}},
			Checks: api.HealthChecks{
				{Node: "go-external", CheckID: "go-ping", Name: "ping", Status: api.HealthPassing},
				{Node: "go-external", CheckID: service, Name: "up", Status: api.HealthPassing, ServiceID: service + "-1",
					Definition: api.HealthCheckDefinition{HTTP: "http://10.1.1.1", IntervalDuration: 10 * time.Second}},
			},
		}, nil)
		ok(err)
	}
}

func removeExternal(client *api.Client) {
	_, err := client.Catalog().Deregister(&api.CatalogDeregistration{Node: "go-external"}, nil)
	ok(err)
}

func catalog(client *api.Client) {
	catalog := client.Catalog()
	external(client)
	centers, err := catalog.Datacenters()
	ok(err)
	equal(centers, []string{"dc1"})
	nodes, meta, err := catalog.Nodes(&api.QueryOptions{NodeMeta: map[string]string{"rack": "r1"}})
	ok(err)
	hold("an index", meta.LastIndex > 0 && meta.KnownLeader)
	equal(len(nodes), 1)
	equal(nodes[0].Address, "10.1.1.1")
	equal(nodes[0].TaggedAddresses["wan"], "198.18.1.1")
	nodes, _, err = catalog.Nodes(&api.QueryOptions{Filter: `Meta.rack == "r1" and Node matches "^go-"`})
	ok(err)
	equal(len(nodes), 1)
	nodes, _, err = catalog.Nodes(&api.QueryOptions{Near: "_agent"})
	ok(err)
	names := map[string]bool{}
	for _, node := range nodes {
		names[node.Node] = true
	}
	equal(len(names), len(nodes))
	hold("this node and the other", names[nodeName(client)] && names["go-external"])
	services, _, err := catalog.Services(&api.QueryOptions{NodeMeta: map[string]string{"rack": "r1"}})
	ok(err)
	sort.Strings(services["go-db"])
	equal(services, map[string][]string{"go-db": {"n0", "primary"}, "go-queue": {"n1", "primary"}})
	rows, _, err := catalog.Service("go-db", "primary", nil)
	ok(err)
	equal(len(rows), 1)
	equal(rows[0].ServicePort, 5432)
	equal(rows[0].ServiceMeta, map[string]string{"engine": "pg"})
	equal(rows[0].NodeMeta, map[string]string{"rack": "r1"})
	rows, _, err = catalog.ServiceMultipleTags("go-db", []string{"primary", "n1"}, nil)
	ok(err)
	equal(len(rows), 0)
	rows, _, err = catalog.Service("go-db", "", &api.QueryOptions{Filter: `ServiceMeta.engine == "pg" and "n0" in ServiceTags`})
	ok(err)
	equal(len(rows), 1)
	node, _, err := catalog.Node("go-external", nil)
	ok(err)
	equal(len(node.Services), 2)
	equal(node.Services["go-queue-1"].Port, 5433)
	node, _, err = catalog.Node("go-none", nil)
	ok(err)
	hold("no node", node == nil)
	list, _, err := catalog.NodeServiceList("go-external", nil)
	ok(err)
	equal(len(list.Services), 2)
	equal(list.Node.Node, "go-external")
	_, err = catalog.Deregister(&api.CatalogDeregistration{Node: "go-external", ServiceID: "go-db-1"}, nil)
	ok(err)
	rows, _, err = catalog.Service("go-db", "", nil)
	ok(err)
	equal(len(rows), 0)
	removeExternal(client)
	_, err = catalog.Register(&api.CatalogRegistration{Node: "go-bad"}, nil)
	refused(err, "Must provide")
}

func health(client *api.Client) {
	health := client.Health()
	external(client)
	checks, _, err := health.Node("go-external", nil)
	ok(err)
	equal(len(checks), 3)
	checks, _, err = health.Checks("go-db", nil)
	ok(err)
	equal(len(checks), 1)
	equal(checks[0].ServiceName, "go-db")
	equal(checks[0].Definition.HTTP, "http://10.1.1.1")
	equal(checks[0].Definition.IntervalDuration, 10*time.Second)
	entries, meta, err := health.Service("go-db", "primary", true, nil)
	ok(err)
	hold("an index", meta.LastIndex > 0)
	equal(len(entries), 1)
	equal(entries[0].Node.Address, "10.1.1.1")
	equal(entries[0].Service.ID, "go-db-1")
	equal(len(entries[0].Checks), 2)
	entries, _, err = health.ServiceMultipleTags("go-db", []string{"primary", "n0"}, true, nil)
	ok(err)
	equal(len(entries), 1)
	entries, _, err = health.Service("go-db", "", false,
		&api.QueryOptions{Filter: `Service.Meta.engine == "pg" and Checks.Status == passing and Node.Meta.rack == r1`})
	ok(err)
	equal(len(entries), 1)
	for state, count := range map[string]int{api.HealthAny: 3, api.HealthPassing: 3, api.HealthCritical: 0} {
		rows, _, err := health.State(state, &api.QueryOptions{NodeMeta: map[string]string{"rack": "r1"}})
		ok(err)
		equal(len(rows), count)
	}
	_, _, err = health.State("ill", nil)
	refused(err)
	removeExternal(client)
	entries, _, err = health.Service("go-db", "", false, nil)
	ok(err)
	hold("an empty list", entries != nil && len(entries) == 0)
}

func queryOptions(client *api.Client) {
	external(client)
	for _, options := range []api.QueryOptions{
		{AllowStale: true}, {RequireConsistent: true}, {UseCache: true}, {UseCache: true, MaxAge: time.Minute, StaleIfError: time.Hour},
		{Datacenter: "dc1"}, {Near: "_agent"}, {Near: "go-external"}, {WaitIndex: 1, WaitTime: time.Second},
		{RequireConsistent: true, WaitTime: time.Millisecond}, {Token: "anonymous"},
	} {
		options := options
		entries, meta, err := client.Health().Service("go-db", "", true, &options)
		ok(err)
		equal(len(entries), 1)
		hold("an index", meta.LastIndex > 0)
		hold("a leader", meta.KnownLeader || options.UseCache)
	}
	_, _, err := client.Health().Service("go-db", "", true, &api.QueryOptions{AllowStale: true, RequireConsistent: true})
	refused(err, "400")
	_, _, err = client.Health().Service("go-db", "", true, &api.QueryOptions{Datacenter: "dc9"})
	refused(err, "No path to datacenter")
	_, _, err = client.Health().Service("go-db", "", true, &api.QueryOptions{Filter: "(("})
	refused(err, "400")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, meta, err := client.Catalog().Nodes(nil)
	ok(err)
	_, _, err = client.Catalog().Nodes((&api.QueryOptions{WaitIndex: meta.LastIndex + 1000, WaitTime: time.Minute}).WithContext(ctx))
	refused(err, "deadline")
	removeExternal(client)
}

func keys(client *api.Client) {
	kv := client.KV()
	_, err := kv.DeleteTree("go/", nil)
	ok(err)
	put := func(key, value string) {
		_, err := kv.Put(&api.KVPair{Key: key, Value: []byte(value), Flags: 42}, nil)
		ok(err)
	}
	put("go/a", "one")
	put("go/b/c", "\x00\xff")
	put("go/key with space/ü?&=%#+", "odd")
	pair, meta, err := kv.Get("go/a", nil)
	ok(err)
	equal(string(pair.Value), "one")
	equal(pair.Flags, uint64(42))
	equal(pair.LockIndex, uint64(0))
	equal(pair.ModifyIndex, meta.LastIndex)
	odd, _, err := kv.Get("go/key with space/ü?&=%#+", nil)
	ok(err)
	equal(string(odd.Value), "odd")
	bytesOf, _, err := kv.Get("go/b/c", nil)
	ok(err)
	hold("bytes", bytes.Equal(bytesOf.Value, []byte{0, 255}))
	none, _, err := kv.Get("go/none", nil)
	ok(err)
	hold("no key", none == nil)

	pair.Value = []byte("two")
	done, _, err := kv.CAS(pair, nil)
	ok(err)
	equal(done, true)
	done, _, err = kv.CAS(pair, nil)
	ok(err)
	equal(done, false)
	done, _, err = kv.CAS(&api.KVPair{Key: "go/a", ModifyIndex: 0}, nil)
	ok(err)
	equal(done, false)
	done, _, err = kv.DeleteCAS(pair, nil)
	ok(err)
	equal(done, false)

	list, _, err := kv.List("go/", nil)
	ok(err)
	equal(len(list), 3)
	names, _, err := kv.Keys("go/", "/", nil)
	ok(err)
	equal(names, []string{"go/a", "go/b/", "go/key with space/"})
	names, _, err = kv.Keys("go/none", "", nil)
	ok(err)
	equal(len(names), 0)
	pair, _, err = kv.Get("go/a", nil)
	ok(err)
	done, _, err = kv.DeleteCAS(pair, nil)
	ok(err)
	equal(done, true)
	_, err = kv.Delete("go/b/c", nil)
	ok(err)
	_, err = kv.DeleteTree("go/", nil)
	ok(err)
	list, _, err = kv.List("go/", nil)
	ok(err)
	equal(len(list), 0)
	_, err = kv.Put(&api.KVPair{Key: "go/large", Value: make([]byte, 512*1024+1)}, nil)
	refused(err, "413")
	_, err = kv.Put(&api.KVPair{Key: "/go"}, nil)
	refused(err, "must not begin with a '/'")
}

func blocking(client *api.Client) {
	kv := client.KV()
	_, err := kv.Put(&api.KVPair{Key: "go/block", Value: []byte("1")}, nil)
	ok(err)
	_, meta, err := kv.Get("go/block", nil)
	ok(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pair, after, err := kv.Get("go/block", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 30 * time.Second})
		ok(err)
		equal(string(pair.Value), "2")
		hold("a later index", after.LastIndex > meta.LastIndex)
	}()
	_, err = kv.Put(&api.KVPair{Key: "go/other", Value: []byte("1")}, nil)
	ok(err)
	select {
	case <-done:
		fail("woken by another key")
	case <-time.After(200 * time.Millisecond):
	}
	_, err = kv.Put(&api.KVPair{Key: "go/block", Value: []byte("2")}, nil)
	ok(err)
	within("a blocking read of a key", done)
	started := time.Now()
	_, again, err := kv.Get("go/none", &api.QueryOptions{WaitIndex: 1 << 40, WaitTime: 200 * time.Millisecond})
	ok(err)
	hold("it waited", time.Since(started) >= 200*time.Millisecond)
	hold("an index", again.LastIndex > 0)
	_, err = kv.DeleteTree("go/", nil)
	ok(err)
}

func configEntries(client *api.Client) {
	entries := client.ConfigEntries()
	set, _, err := entries.Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "go-web", Protocol: "http",
		Meta: map[string]string{"by": "go"}, ExternalSNI: "web.example"}, nil)
	ok(err)
	equal(set, true)
	entry, _, err := entries.Get(api.ServiceDefaults, "go-web", nil)
	ok(err)
	service := entry.(*api.ServiceConfigEntry)
	equal(service.Protocol, "http")
	equal(service.ExternalSNI, "web.example")
	equal(service.Meta, map[string]string{"by": "go"})
	hold("indexes", service.CreateIndex > 0 && service.ModifyIndex >= service.CreateIndex)
	service.Protocol = "grpc"
	set, _, err = entries.CAS(service, service.ModifyIndex, nil)
	ok(err)
	equal(set, true)
	set, _, err = entries.CAS(service, service.ModifyIndex, nil)
	ok(err)
	equal(set, false)
	_, _, err = entries.Set(&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		Config: map[string]interface{}{"protocol": "http", "local_connect_timeout_ms": 1000.0}}, nil)
	ok(err)
	entry, _, err = entries.Get(api.ProxyDefaults, api.ProxyConfigGlobal, nil)
	ok(err)
	equal(entry.(*api.ProxyConfigEntry).Config["protocol"], "http")
	list, _, err := entries.List(api.ServiceDefaults, nil)
	ok(err)
	equal(len(list), 1)
	if !oracle {
		entry, _, err = entries.Get(api.ServiceDefaults, "go-web", nil)
		ok(err)
		gone, _, err := entries.DeleteCAS(api.ServiceDefaults, "go-web", 1, nil)
		ok(err)
		equal(gone, false)
		gone, _, err = entries.DeleteCAS(api.ServiceDefaults, "go-web", entry.GetModifyIndex(), nil)
		ok(err)
		equal(gone, true)
	}
	_, err = entries.Delete(api.ServiceDefaults, "go-web", nil)
	ok(err)
	_, err = entries.Delete(api.ProxyDefaults, api.ProxyConfigGlobal, nil)
	ok(err)
	_, _, err = entries.Get(api.ServiceDefaults, "go-web", nil)
	refused(err, "404", "Config entry not found")
	_, _, err = entries.Set(&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: "other"}, nil)
	refused(err, "global")
}

// plans runs watch plans of every type in scope until each has seen the change that is made for it.
func plans(client *api.Client) {
	agent, kv := client.Agent(), client.KV()
	cases := []struct {
		parameters map[string]interface{}
		change     func()
		seen       func(interface{}) bool
	}{
		{map[string]interface{}{"type": "key", "key": "go/watched"},
			func() { put(kv, "go/watched", "1") },
			func(value interface{}) bool {
				pair, is := value.(*api.KVPair)
				return is && pair != nil && string(pair.Value) == "1"
			}},
		{map[string]interface{}{"type": "keyprefix", "prefix": "go/prefix/"},
			func() { put(kv, "go/prefix/a", "1") },
			func(value interface{}) bool { return len(value.(api.KVPairs)) == 1 }},
		{map[string]interface{}{"type": "services"},
			func() {
				ok(agent.ServiceRegister(&api.AgentServiceRegistration{Name: "go-watched", Tags: []string{"t"}}))
			},
			func(value interface{}) bool { return value.(map[string][]string)["go-watched"] != nil }},
		{map[string]interface{}{"type": "service", "service": "go-watched", "tag": "t", "passingonly": true},
			func() {
				ok(agent.ServiceRegister(&api.AgentServiceRegistration{ID: "go-watched-2", Name: "go-watched", Tags: []string{"t"}}))
			},
			func(value interface{}) bool { return len(value.([]*api.ServiceEntry)) == 2 }},
		{map[string]interface{}{"type": "nodes"},
			func() { external(client) },
			func(value interface{}) bool {
				for _, node := range value.([]*api.Node) {
					if node.Node == "go-external" {
						return true
					}
				}
				return false
			}},
		{map[string]interface{}{"type": "checks", "service": "go-db"},
			func() { external(client) },
			func(value interface{}) bool { return len(value.([]*api.HealthCheck)) == 1 }},
		{map[string]interface{}{"type": "checks", "state": "warning"},
			func() {
				ok(agent.CheckRegister(&api.AgentCheckRegistration{ID: "go-watched", Name: "w",
					AgentServiceCheck: api.AgentServiceCheck{TTL: "1h", Status: api.HealthWarning}}))
			},
			func(value interface{}) bool {
				for _, check := range value.([]*api.HealthCheck) {
					equal(check.Status, api.HealthWarning)
					if check.CheckID == "go-watched" {
						return true
					}
				}
				return false
			}},
		{map[string]interface{}{"type": "agent_service", "service_id": "go-watched"},
			func() {
				ok(agent.ServiceRegister(&api.AgentServiceRegistration{Name: "go-watched", Tags: []string{"t"}, Port: 7}))
			},
			func(value interface{}) bool { return value.(*api.AgentService).Port == 7 }},
	}
	for _, each := range cases {
		name := fmt.Sprint("a watch of ", each.parameters)
		plan, err := watch.Parse(each.parameters)
		ok(err)
		seen := make(chan struct{})
		var calls int
		plan.Handler = func(_ uint64, value interface{}) {
			if calls++; value != nil && each.seen(value) {
				select {
				case <-seen:
				default:
					close(seen)
				}
			}
		}
		// What has no index, as the agent's own services, has a hash.
		plan.HybridHandler = func(_ watch.BlockingParamVal, value interface{}) { plan.Handler(0, value) }
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			ok(plan.RunWithClientAndHclog(client, nil))
		}()
		each.change()
		within(name, seen)
		plan.Stop()
		within("a stopped watch", ended)
	}
	ok(agent.CheckDeregister("go-watched"))
	ok(agent.ServiceDeregister("go-watched"))
	ok(agent.ServiceDeregister("go-watched-2"))
	removeExternal(client)
	_, err := kv.DeleteTree("go/", nil)
	ok(err)
}

func put(kv *api.KV, key, value string) {
	_, err := kv.Put(&api.KVPair{Key: key, Value: []byte(value)}, nil)
	ok(err)
}

// snapshots: everything in an archive, and back.
func snapshots(client *api.Client) {
	kv := client.KV()
	put(kv, "go/kept", "before")
	archive, meta, err := client.Snapshot().Save(nil)
	ok(err)
	equal(meta.LastIndex > 0 && meta.KnownLeader, true)
	content, err := io.ReadAll(archive)
	ok(err)
	ok(archive.Close())
	put(kv, "go/kept", "after")
	ok(client.Snapshot().Restore(nil, bytes.NewReader(content)))
	pair, _, err := kv.Get("go/kept", nil)
	ok(err)
	equal(string(pair.Value), "before")
	refused(client.Snapshot().Restore(nil, bytes.NewReader(content[:len(content)/2])), "failed to read snapshot file")
	_, err = kv.DeleteTree("go/", nil)
	ok(err)
}

// operator: the servers as the leader knows them.
func operator(client *api.Client) {
	raft, err := client.Operator().RaftGetConfiguration(nil)
	ok(err)
	peers := servers(client)
	equal(len(raft.Servers), len(peers))
	leaders := 0
	for _, server := range raft.Servers {
		hold("a voter", server.Voter && contains(peers, server.Address))
		if server.Leader {
			leaders++
		}
	}
	equal(leaders, 1)
	refused(client.Operator().RaftRemovePeerByID("no-such-server", nil), "")
}

// errors: what is not built says so, and nothing hangs.
func errors(client *api.Client) {
	if oracle {
		return
	}
	_, _, err := client.Session().Create(nil, nil)
	refused(err, "501")
	_, _, err = client.ACL().TokenReadSelf(nil)
	refused(err, "501")
	_, _, _, err = client.KV().Txn(api.KVTxnOps{{Verb: api.KVGet, Key: "a"}}, nil)
	refused(err, "not built yet")
	_, _, err = client.Event().Fire(&api.UserEvent{Name: "deploy"}, nil)
	refused(err, "501")
	_, _, err = client.Agent().ConnectCARoots(nil)
	refused(err, "501")
	_, _, err = client.Connect().CARoots(nil)
	refused(err, "501")
	_, _, err = client.PreparedQuery().List(nil)
	refused(err, "501")
	_, _, err = client.Health().Connect("web", "", true, nil)
	refused(err, "501")
	_, _, err = client.Coordinate().Nodes(nil)
	refused(err, "501")
	lock, err := client.LockKey("go/lock")
	ok(err)
	_, err = lock.Lock(nil)
	refused(err, "501")
	_, _, err = client.KV().Acquire(&api.KVPair{Key: "go/lock", Session: "5"}, nil)
	refused(err, "sessions")
	response, err := http.Get("http://" + os.Args[1] + "/v1/nothing")
	ok(err)
	defer response.Body.Close()
	equal(response.StatusCode, 404)
}
