// Entries that a stranger wrote to Consul, or changed there.
import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { instanceRecord } from "../../services/discovery/consul.ts";
import { consulDirectory } from "../../services/discovery/consul-directory.ts";
import { provenMeta, type HealthEntry } from "../../services/discovery/consul-record.ts";
import { logSink } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";

const TOKEN = "the-join-token";

const info = (kvAddress = "10.0.0.7:21001") =>
  create(InfoSchema, {
    instanceId: "decode-1",
    role: Role.DECODE,
    model: "m",
    connector: "nixl",
    grpcAddress: "10.0.0.7:3201",
    kvAddress,
    startedUnixMs: 1_000n,
  });

/** As an instance registers with this token. */
function entryOf(token: string, version = 1): HealthEntry {
  const { id, meta } = instanceRecord(info());
  const own = provenMeta(id, { deployment: "default", ...meta }, token);
  return { Service: { ID: id, ModifyIndex: version, Meta: own }, Checks: [] };
}

const withMeta = (entry: HealthEntry, meta: Record<string, string>): HealthEntry => ({
  ...entry,
  Service: { ...entry.Service, Meta: { ...entry.Service.Meta, ...meta } },
});

function directory(token: string) {
  const sink = logSink();
  let listed: readonly string[] = [];
  const onChange = (entries: readonly { instanceId: string; kvAddress: string }[]): void => {
    listed = entries.map(({ instanceId, kvAddress }) => `${instanceId}@${kvAddress}`);
  };
  const clock = manualClock();
  const made = consulDirectory(onChange, { token, log: sink.log, clock, forgetMs: 1_000, isDown: () => false });
  return {
    learn: made.learn,
    unproven: () => made.unproven,
    reasons: () => made.unproven.map(({ reason }) => reason),
    listed: () => listed,
    sink,
  };
}

describe("an entry in Consul", () => {
  it("counts if a member of the deployment wrote it", () => {
    const one = directory(TOKEN);
    one.learn("decode", [entryOf(TOKEN)], false);
    assert.deepEqual(one.listed(), ["decode-1@10.0.0.7:21001"]);
    assert.deepEqual(one.reasons(), []);
  });

  it("is ignored and reported without a proof, or with one of another token", () => {
    for (const [entry, expected] of [
      [entryOf(""), /has no proof/],
      [entryOf("another"), /is wrong/],
      [withMeta(entryOf(TOKEN), { proof: "" }), /is wrong/],
    ] as const) {
      const one = directory(TOKEN);
      one.learn("decode", [entry], false);
      assert.deepEqual(one.listed(), []);
      assert.match(one.reasons()[0]!, expected);
      assert.match(String(one.sink.events("a service in Consul can't be used")[0]!["because"]), expected);
    }
  });

  it("is ignored if any field of a genuine one was replaced, or its id", () => {
    const genuine = entryOf(TOKEN, 2);
    const changed = [
      withMeta(genuine, { kv_address: "10.6.6.6:1" }),
      withMeta(genuine, { grpc_address: "10.6.6.6:1" }),
      withMeta(genuine, { more: "x" }),
      { ...genuine, Service: { ...genuine.Service, ID: "decode-2" } },
    ];
    for (const entry of changed) {
      const one = directory(TOKEN);
      one.learn("decode", [entry], false);
      assert.deepEqual(one.listed(), []);
      // A later genuine entry counts again.
      one.learn("decode", [entryOf(TOKEN, 3)], false);
      assert.deepEqual(one.listed(), ["decode-1@10.0.0.7:21001"]);
      assert.deepEqual(one.reasons(), []);
    }
  });

  it("can't crowd out the report, and is believed where no token is set", () => {
    const many = Array.from({ length: 100 }, (_, index) => ({
      ...entryOf(""),
      Service: { ...entryOf("").Service, ID: `fake-${index}` },
    }));
    const one = directory(TOKEN);
    one.learn("decode", [...many, entryOf(TOKEN)], false);
    assert.equal(one.unproven().length, 16);
    assert.deepEqual(one.listed(), ["decode-1@10.0.0.7:21001"]);
    const open = directory("");
    open.learn("decode", [entryOf("")], false);
    assert.equal(open.listed().length, 1);
  });
});
