"""What a program does with python-consul (Debian: python3-consul2), step by step.

Each step prints the call and what came back, and must hold.
"""
import base64
import os
import threading
import time

import consul

c = consul.Consul(host="127.0.0.1", port=int(os.environ["HTTP_PORT"]))
failed = []


def step(what, got, holds):
    ok = holds(got)
    text = repr(got)
    print(f"{'ok  ' if ok else 'FAIL'} {what}\n       -> {text if len(text) < 160 else text[:157] + '...'}")
    if not ok:
        failed.append(what)
    return got


def eventually(what, call, holds, within=15):
    end = time.time() + within
    while not holds(call()) and time.time() < end:
        time.sleep(0.05)
    return step(what, call(), holds)


# key/value
step("kv.put", c.kv.put("py/a", "1", flags=7), lambda r: r is True)
index, one = step("kv.get", c.kv.get("py/a"), lambda r: r[1]["Value"] == b"1" and r[1]["Flags"] == 7)
step("kv.put cas, stale", c.kv.put("py/a", "2", cas=one["ModifyIndex"] - 1), lambda r: r is False)
step("kv.put cas", c.kv.put("py/a", "2", cas=one["ModifyIndex"]), lambda r: r is True)
step("kv.get keys", c.kv.get("py/", keys=True), lambda r: r[1] == ["py/a"])
step("kv.get recurse", c.kv.get("py/", recurse=True), lambda r: len(r[1]) == 1)
step("kv.get of none", c.kv.get("py/none"), lambda r: r[1] is None)
threading.Timer(0.5, lambda: consul.Consul(port=int(os.environ["HTTP_PORT"])).kv.put("py/a", "3")).start()
begin = time.time()
index, _ = c.kv.get("py/a")
step("kv.get blocks until the change", c.kv.get("py/a", index=index, wait="10s"), lambda r: r[1]["Value"] == b"3" and time.time() - begin < 5)
step("txn.put", c.txn.put([{"KV": {"Verb": "set", "Key": "py/t", "Value": base64.b64encode(b"x").decode()}}, {"KV": {"Verb": "get", "Key": "py/a"}}]), lambda r: len(r["Results"]) == 2)

# sessions and locks
s = step("session.create", c.session.create(name="py", ttl=10, lock_delay=0, behavior="delete"), lambda r: len(r) == 36)
step("kv.put acquire", c.kv.put("py/lock", "me", acquire=s), lambda r: r is True)
other = c.session.create(name="other", ttl=10, lock_delay=0)
step("kv.put acquire by another", c.kv.put("py/lock", "you", acquire=other), lambda r: r is False)
step("session.info", c.session.info(s), lambda r: r[1]["Behavior"] == "delete")
step("session.renew", c.session.renew(s), lambda r: r["ID"] == s)
step("session.list", c.session.list(), lambda r: len(r[1]) == 2)
step("session.destroy", c.session.destroy(s), lambda r: r is True)
step("the key of a session that deletes is gone", c.kv.get("py/lock"), lambda r: r[1] is None)
step("kv.put acquire, now free", c.kv.put("py/lock", "you", acquire=other), lambda r: r is True)
step("kv.put release", c.kv.put("py/lock", "", release=other), lambda r: r is True)

# services and health
step("agent.service.register", c.agent.service.register("api", service_id="api1", address="10.0.0.1", port=80, tags=["v1"], check=consul.Check.ttl("30s")), lambda r: r is True)
step("agent.services", c.agent.services(), lambda r: r["api1"]["Port"] == 80)
eventually("health.service: critical until its TTL is passed", lambda: c.health.service("api"), lambda r: len(r[1]) == 1)
step("health.service passing", c.health.service("api", passing=True), lambda r: r[1] == [])
step("agent.check.ttl_pass", c.agent.check.ttl_pass("service:api1", "fine"), lambda r: r is True)
eventually("health.service passing", lambda: c.health.service("api", passing=True, tag="v1"), lambda r: len(r[1]) == 1)
eventually("health.checks", lambda: c.health.checks("api"), lambda r: r[1][0]["Output"] == "fine")
step("health.state", c.health.state("passing"), lambda r: len(r[1]) == 2)
step("health.node", c.health.node("host1"), lambda r: len(r[1]) == 2)
step("catalog.services", c.catalog.services(), lambda r: r[1]["api"] == ["v1"])
step("catalog.nodes", c.catalog.nodes(), lambda r: r[1][0]["Node"] == "host1")
step("catalog.register", c.catalog.register("far", "10.9.9.9", service={"Service": "db", "Port": 5432}, check={"Name": "up", "Status": "passing"}), lambda r: r is True)
step("catalog.service", c.catalog.service("db"), lambda r: r[1][0]["ServicePort"] == 5432)
step("catalog.node", c.catalog.node("far"), lambda r: "db" in r[1]["Services"])
step("catalog.deregister", c.catalog.deregister("far"), lambda r: r is True)
step("agent.service.maintenance", c.agent.service.maintenance("api1", True, "work"), lambda r: r is True)
eventually("health.service passing, in maintenance", lambda: c.health.service("api", passing=True), lambda r: r[1] == [])
step("agent.service.maintenance", c.agent.service.maintenance("api1", False), lambda r: r is True)
step("agent.check.register", c.agent.check.register("disk", consul.Check.ttl("1m"), check_id="disk"), lambda r: r is True)
step("agent.check.ttl_warn", c.agent.check.ttl_warn("disk", "90 %"), lambda r: r is True)
step("agent.checks", c.agent.checks(), lambda r: r["disk"]["Status"] == "warning")
step("agent.check.deregister", c.agent.check.deregister("disk"), lambda r: r is True)
step("agent.service.deregister", c.agent.service.deregister("api1"), lambda r: r is True)
eventually("catalog.services without it", lambda: c.catalog.services(), lambda r: "api" not in r[1])

# events, prepared queries, coordinates, status
step("event.fire", c.event.fire("deploy", "v2"), lambda r: r["Name"] == "deploy")
eventually("event.list", lambda: c.event.list("deploy"), lambda r: r[1][0]["Payload"] == "djI=")
q = step("query.create", c.query.create("consul", name="servers"), lambda r: "ID" in r)
step("query.execute", c.query.execute("servers"), lambda r: r["Service"] == "consul")
step("query.explain", c.query.explain("servers"), lambda r: r["Query"]["Name"] == "servers")
step("query.list", c.query.list(), lambda r: len(r) == 1)
step("query.delete", c.query.delete(q["ID"]), lambda r: r is True)
step("coordinate.nodes", c.coordinate.nodes(), lambda r: isinstance(r[1], list))
step("status.leader", c.status.leader(), lambda r: ":" in r)
step("status.peers", c.status.peers(), lambda r: len(r) == 1)
step("agent.self", c.agent.self(), lambda r: r["Config"]["NodeName"] == "host1")
step("agent.members", c.agent.members(), lambda r: r[0]["Name"] == "host1")
step("operator.raft_config", c.operator.raft_config(), lambda r: r["Servers"][0]["Leader"])

print(f"\n{'FAILED: ' + ', '.join(failed) if failed else 'every step holds'}")
raise SystemExit(bool(failed))
