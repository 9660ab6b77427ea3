import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, InstanceService, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { staticRegistry } from "../../services/discovery/static.ts";
import { serveRpc, type RpcServer } from "../../services/rpc/server.ts";
import { defineService } from "../../services/rpc/service.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { eventually, freePort } from "../support/waits.ts";

function instance(listen: string, info: () => Partial<Info>, token?: string): Promise<RpcServer> {
  const getInfo = async () => ({ info: create(InfoSchema, info() as never) });
  const unused = async () => ({});
  const service = defineService(
    InstanceService,
    {
      getInfo,
      drain: unused,
      undrain: unused,
      async *watchLoad() {},
    } as never,
    { access: "token" },
  );
  return serveRpc({ listen, services: [service], token, log: silentLog, graceMs: 0 });
}

describe("a static list of instances", () => {
  it("learns which instance is at each address, also later and after a change, and forgets none", async () => {
    const [port, latePort] = [await freePort(), await freePort()];
    let kvAddress = "127.0.0.1:1";
    const first = await instance(`127.0.0.1:${port}`, () => ({ instanceId: "a", model: "m", kvAddress }));
    let seen: string[] = [];
    const clock = manualClock();
    const watch = staticRegistry([`127.0.0.1:${port}`, `127.0.0.1:${latePort}`], {
      log: silentLog,
      clock,
    }).watch((entries) => (seen = entries.map((entry) => `${entry.instanceId}@${entry.kvAddress}`).sort()));
    assert.deepEqual(seen, []);
    const round = async (): Promise<void> => {
      clock.advance(1_000);
      await clock.untilPending(2);
    };
    await clock.untilPending(2);
    assert.deepEqual(seen, ["a@127.0.0.1:1"]);
    const late = await instance(`127.0.0.1:${latePort}`, () => ({ instanceId: "b", model: "m" }));
    await eventually("the late one", async () => (await round(), seen.length === 2));
    kvAddress = "127.0.0.1:2";
    await round();
    assert.equal(seen[0], "a@127.0.0.1:2");
    await late[Symbol.asyncDispose]();
    await round();
    assert.equal(seen.length, 2);
    await watch[Symbol.asyncDispose]();
    await first[Symbol.asyncDispose]();
  });

  it("says why a listed instance can't be used, each time that changes", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const sink = logSink();
    const clock = manualClock();
    const watch = staticRegistry([address], { token: "wrong", log: sink.log, clock }).watch(() => {});
    const faults = (): unknown[] => sink.events("a listed instance can't be used").map(({ fault }) => fault);
    await clock.untilPending();
    assert.equal(faults().length, 1);
    await using _ = await instance(address, () => ({ instanceId: "a", model: "m" }), "right");
    await eventually("the token is wrong", () => (clock.advance(1_000), faults().length === 2));
    assert.deepEqual(faults(), ["address", "credentials"]);
    assert.match(String(sink.lines.at(-1)!["because"]), /^The join tokens differ/);
    await watch[Symbol.asyncDispose]();
  });

  it("waits for an instance whose engine is still loading", async () => {
    let model = "";
    await using server = await instance("127.0.0.1:0", () => ({ instanceId: "a", model }));
    let count = 0;
    const clock = manualClock();
    const watch = staticRegistry([server.address], { log: silentLog, clock }).watch(
      (entries) => (count = entries.length),
    );
    await clock.untilPending();
    assert.equal(count, 0);
    model = "m";
    clock.advance(1_000);
    await clock.untilPending();
    assert.equal(count, 1);
    await watch[Symbol.asyncDispose]();
  });
});
