import assert from "node:assert/strict";
import type { Child } from "../../../clients/common/child.ts";
import { createReadiness, type UpReadiness } from "../../../clients/cli/up/readiness.ts";
import { create } from "@bufbuild/protobuf";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { InstanceSchema, type Instance } from "#gen/tandem/router/v1/router_pb.js";

interface FakeChild {
  name: string;
  role: Child["role"];
  pid: number | undefined;
}

function setUp(
  children: FakeChild[] = [
    { name: "router", role: "router", pid: 1 },
    { name: "prefill-1", role: "prefill", pid: 2 },
    { name: "decode-1", role: "decode", pid: 3 },
  ],
): { readiness: UpReadiness; children: FakeChild[]; said: string[] } {
  const said: string[] = [];
  const readiness = createReadiness(() => children as unknown as Child[], {
    ready: (child) => said.push(child.name),
    allReady: (instances) => said.push(`all with ${instances.map(({ info }) => info!.model).join()}`),
  });
  return { readiness, children, said };
}

const instance = (pid: number, eligible: boolean, reason = ""): Instance =>
  create(InstanceSchema, { info: { pid }, eligible, reason });

describe("readiness of a run", () => {
  it("is announced once for each process and once for all of them", () => {
    const { readiness, said } = setUp();
    readiness.seen([]);
    readiness.seen([instance(2, true)]);
    readiness.seen([instance(2, true), instance(3, false, "starting")]);
    assert.equal(readiness.missing().length, 1);
    readiness.seen([instance(2, true), instance(3, true)]);
    readiness.seen([instance(2, false), instance(3, true)]);
    assert.deepEqual(said, ["router", "prefill-1", "decode-1", "all with ,"]);
  });

  it("ignores the instances of another run", () => {
    const { readiness, said } = setUp();
    readiness.seen([instance(77, true)]);
    assert.deepEqual(said, ["router"]);
  });

  it("of adopted engines is announced when a pair of them serves, with their model", () => {
    const { readiness, said } = setUp([
      { name: "router", role: "router", pid: 1 },
      { name: "discover", role: "discover", pid: 2 },
    ]);
    const adopted = (role: Role, eligible = true): Instance =>
      create(InstanceSchema, { info: { pid: 70 + role, role, model: "m" }, eligible });
    readiness.seen([]);
    assert.deepEqual(readiness.missing(), [
      "prefill: no engine that pings serves yet",
      "decode: no engine that pings serves yet",
    ]);
    readiness.seen([adopted(Role.PREFILL), adopted(Role.DECODE, false)]);
    assert.deepEqual(readiness.missing(), ["decode: no engine that pings serves yet"]);
    readiness.seen([adopted(Role.PREFILL), adopted(Role.DECODE)]);
    assert.deepEqual(said, ["router", "discover", "all with m,m"]);
  });

  it("says why each missing process is not ready", () => {
    const { readiness, children } = setUp();
    assert.deepEqual(readiness.missing(), [
      "router: does not answer yet",
      "prefill-1: has not registered with the router yet",
      "decode-1: has not registered with the router yet",
    ]);
    readiness.seen([instance(2, false, "The engine is loading.")]);
    children[2]!.pid = undefined;
    assert.deepEqual(readiness.missing(), [
      "prefill-1: The engine is loading.",
      "decode-1: not running, waiting for its restart",
    ]);
  });

  it("is announced again for a restarted process", () => {
    const { readiness, children, said } = setUp();
    readiness.seen([instance(2, true), instance(3, true)]);
    children[2]!.pid = 4;
    assert.equal(readiness.missing().length, 1);
    readiness.seen([instance(2, true), instance(4, true)]);
    assert.deepEqual(said, ["router", "prefill-1", "decode-1", "all with ,", "decode-1"]);
  });
});
