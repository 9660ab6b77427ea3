// Every call of every process from grpcurl, with no file at hand: names, comments and text come by reflection.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { skip } from "../support/skip.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { grpcurl } from "../support/tools.ts";

const SERVICES = {
  router: [
    "tandem.inference.v1.InferenceService",
    "tandem.registry.v1.RegistryService",
    "tandem.router.v1.RouterService",
  ],
  prefill: ["tandem.instance.v1.InstanceService", "tandem.prefill.v1.PrefillService"],
  decode: ["tandem.decode.v1.DecodeService", "tandem.instance.v1.InstanceService"],
} as const;

describe("grpcurl", function () {
  this.timeout(5 * 60_000);
  let tandem: Tandem;
  let program: string;
  const addresses: Record<string, string> = {};

  /** Runs grpcurl on a verb or a method. `data` is the request, or "@" where `stdin` holds the messages of a stream. */
  async function call(address: string, what: readonly string[], data?: string, stdin = ""): Promise<string> {
    const flags = [
      "-plaintext",
      "-H",
      `authorization: Bearer ${tandem.token}`,
      ...(data === undefined ? [] : ["-d", data]),
    ];
    const running = promisify(execFile)(program, [...flags, address, ...what]);
    running.child.stdin!.end(stdin);
    return (await running).stdout;
  }
  const rpc = async (address: string, method: string, request: object = {}): Promise<any> =>
    JSON.parse(await call(address, [method], JSON.stringify(request)));

  before(async function () {
    const found = await grpcurl();
    if ("missing" in found) skip(this, found.missing);
    program = found.path;
    tandem = await startTandem([]);
    addresses["router"] = tandem.grpcAddress;
    const { instances } = await rpc(tandem.grpcAddress, "tandem.router.v1.RouterService/ListInstances");
    for (const { info } of instances) addresses[info.role === "ROLE_PREFILL" ? "prefill" : "decode"] = info.grpcAddress;
  });
  after(() => tandem?.[Symbol.asyncDispose]());

  for (const [process, services] of Object.entries(SERVICES)) {
    it(`lists and describes what the ${process} process serves, with comments`, async () => {
      const listed = (await call(addresses[process]!, ["list"])).trim().split("\n");
      for (const service of [...services, "grpc.health.v1.Health"]) {
        assert.ok(listed.includes(service), `${service} is not in ${listed.join(", ")}`);
        assert.match(
          await call(addresses[process]!, ["describe", service]),
          /^\s*\/\/ /m,
          `${service} has no comments`,
        );
      }
    });
    it(`finds the ${process} process healthy`, async () => {
      assert.deepEqual(await rpc(addresses[process]!, "grpc.health.v1.Health/Check"), { status: "SERVING" });
    });
  }

  it("asks an instance who it is and how busy", async () => {
    const { info, load } = await rpc(addresses["decode"]!, "tandem.instance.v1.InstanceService/GetInfo");
    assert.equal(info.role, "ROLE_DECODE");
    assert.equal(load.state, "STATE_SERVING");
  });

  it("watches how busy it is, and need not say anything itself", async () => {
    const watch = ["-max-time", "4", addresses["decode"]!, "tandem.instance.v1.InstanceService/WatchLoad"];
    const loads = await promisify(execFile)(program, [
      "-plaintext",
      "-H",
      `authorization: Bearer ${tandem.token}`,
      "-d",
      "{}",
      ...watch,
    ]).then(
      () => assert.fail("it ended by itself"),
      ({ stdout, stderr }: { stdout: string; stderr: string }) => {
        assert.match(stderr, /DeadlineExceeded/);
        return stdout.match(/STATE_SERVING/g)!.length;
      },
    );
    // For longer than a router may be silent, and still one each second.
    assert.ok(loads >= 3, `${loads} loads in 4 s`);
  });

  it("generates text through the router", async () => {
    const out = await call(
      tandem.grpcAddress,
      ["tandem.inference.v1.InferenceService/Generate"],
      '{"prompt":"Prefill and decode","max_tokens":5}',
    );
    assert.match(out, /"text": /);
    assert.match(out, /"completionTokens": 5/);
  });

  it("runs both legs by hand: prefill, then reserve and start", async () => {
    const { info: prefill } = await rpc(addresses["prefill"]!, "tandem.instance.v1.InstanceService/GetInfo");
    const { info: decode } = await rpc(addresses["decode"]!, "tandem.instance.v1.InstanceService/GetInfo");
    const leg = {
      leg_id: "00000000000000000000000000000001",
      path: "/v1/completions",
      body: `{"model":"${prefill.model}","prompt":"hello there","max_tokens":4,"temperature":0,"stream":true}`,
    };
    const done = await rpc(addresses["prefill"]!, "tandem.prefill.v1.PrefillService/Prefill", {
      ...leg,
      decode_kv_address: decode.kvAddress,
    });
    assert.ok(done.promptTokens > 0);
    const steps = [
      {
        reserve: {
          ...leg,
          prefill_kv_address: prefill.kvAddress,
          prefill_grpc_address: prefill.grpcAddress,
          identity: { id: "cmpl-by-hand", created: 1 },
        },
      },
      { start: {} },
    ];
    const out = await call(
      addresses["decode"]!,
      ["tandem.decode.v1.DecodeService/Decode"],
      "@",
      steps.map((step) => JSON.stringify(step)).join("\n"),
    );
    assert.match(out, /"reserved": /);
    assert.match(out, /data: \{.*cmpl-by-hand/);
    assert.match(out, /"completionTokens": 4/);
    assert.doesNotMatch(out, /___/, "the engine's id shows");
  });

  it("gets errors that say what to do", async () => {
    await assert.rejects(
      rpc(tandem.grpcAddress, "tandem.inference.v1.InferenceService/Generate", { model: "nope", prompt: "x" }),
      /NotFound[\s\S]*nope/,
    );
    await assert.rejects(
      rpc(tandem.grpcAddress, "tandem.router.v1.RouterService/GetReceipt", { request_id: "nope" }),
      /NotFound/,
    );
  });

  it("drains an instance and takes it back", async () => {
    const [{ info }] = (await rpc(tandem.grpcAddress, "tandem.router.v1.RouterService/ListInstances")).instances;
    await rpc(tandem.grpcAddress, "tandem.router.v1.RouterService/DrainInstance", {
      instance_id: info.instanceId,
      reason: "test",
    });
    assert.equal(
      (await rpc(info.grpcAddress, "tandem.instance.v1.InstanceService/GetInfo")).load.state,
      "STATE_DRAINING",
    );
    await rpc(tandem.grpcAddress, "tandem.router.v1.RouterService/DrainInstance", {
      instance_id: info.instanceId,
      undrain: true,
    });
    assert.equal(
      (await rpc(info.grpcAddress, "tandem.instance.v1.InstanceService/GetInfo")).load.state,
      "STATE_SERVING",
    );
  });

  it("is refused what needs the join token without it", async () => {
    await assert.rejects(
      promisify(execFile)(program, [
        "-plaintext",
        "-d",
        "{}",
        tandem.grpcAddress,
        "tandem.router.v1.RouterService/ListInstances",
      ]),
      /Unauthenticated/,
    );
  });
});
