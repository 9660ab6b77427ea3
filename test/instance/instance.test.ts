import assert from "node:assert/strict";
import { InstanceService, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { ConfigError, loadConfig } from "../../services/common/config.ts";
import { registryHub } from "../../services/discovery/embedded.ts";
import { InstanceStatus } from "../../services/instance/status.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../services/common/version.ts";
import { decodeConfig } from "../../services/decode/config.ts";
import { startDecode } from "../../services/decode/main.ts";
import { serveRpc } from "../../services/rpc/server.ts";
import { leg, openDecode, prefillLeg, quiet, simDecode, simPrefill } from "./legs.ts";
import { eventually, within } from "../support/waits.ts";

const refusal = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

describe("an instance", () => {
  it("reports its identity", async () => {
    await using decode = await simDecode();
    const { info, load } = await decode.channel.client(InstanceService).getInfo({});
    assert.deepEqual(
      [
        info!.role,
        info!.model,
        info!.connector,
        info!.engine,
        info!.grpcAddress,
        info!.kvAddress,
        info!.slotLimit,
        info!.tpSize,
        info!.pid,
      ],
      [
        Role.DECODE,
        "tandem-sim",
        "p2p-zmq",
        "sim",
        decode.instance.address,
        decode.engine.kvAddress,
        256,
        1,
        process.pid,
      ],
    );
    assert.match(info!.instanceId, /^decode-[0-9a-f-]{36}$/);
    assert.ok(info!.maxModelLen > 0 && info!.engineVersion !== "" && info!.startedUnixMs > 0n);
    assert.deepEqual([info!.tandemVersion, info!.tandemCommit], [TANDEM_VERSION, TANDEM_COMMIT]);
    assert.deepEqual([load!.state, load!.freeSlots, load!.reason], [State.SERVING, 256, ""]);
  });

  it("gives no KV address where the connector needs none", async () => {
    await using prefill = await simPrefill("nixl");
    assert.equal(prefill.instance.info().kvAddress, "");
  });

  it("pushes its load: at once, on change, and every second as a heartbeat", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const watch = decode.channel.client(InstanceService).watchLoad([{}])[Symbol.asyncIterator]();
    const next = async () => (await within(watch.next(), "the next load")).value!.load!;
    assert.equal((await next()).state, State.SERVING);
    const call = openDecode(decode);
    call.reserve(leg(), prefill);
    await call.next();
    const changedMs = performance.now();
    while ((await next()).reserved !== 1);
    // Sooner than the heartbeat would tell it.
    assert.ok(performance.now() - changedMs < 900);
    call.abandon(true);
    while ((await next()).reserved !== 0);
    await next();
    await watch.return!();
  });

  it("bounds its watchers, and takes another when one leaves", async () => {
    await using decode = await simDecode();
    const control = decode.channel.client(InstanceService);
    const watches = Array.from({ length: 64 }, () => control.watchLoad([{}])[Symbol.asyncIterator]());
    await Promise.all(watches.map((watch) => watch.next()));
    await assert.rejects(control.watchLoad([{}])[Symbol.asyncIterator]().next(), refusal("instance_busy"));
    await watches[0]!.return!();
    await eventually(
      "its slot is free",
      async () => (await control.watchLoad([{}])[Symbol.asyncIterator]().next()).done === false,
    );
  });

  it("finishes running legs when it is closed, and takes no new ones meanwhile", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg({ max_tokens: 60, ignore_eos: true });
    const call = openDecode(decode);
    call.reserve(pair, prefill);
    await call.next();
    call.start((await prefillLeg(prefill, decode, pair)).ticket);
    await call.next();
    const closed = decode.instance.close(10_000);
    assert.equal(decode.instance.load().state, State.DRAINING);
    const late = openDecode(decode);
    late.reserve(leg(), prefill);
    await assert.rejects(late.next(), refusal("instance_unavailable"));
    await assert.rejects(decode.channel.client(InstanceService).undrain({}), refusal("failed_precondition"));
    assert.equal((await call.rest()).end!.completionTokens, 60);
    await within(closed, "the end of the drain");
    assert.equal(decode.instance.load().state, State.STOPPED);
  });

  it("ends legs that still run when its grace period is over", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["stall:after_tokens=2"] });
    const pair = leg();
    const call = openDecode(decode);
    call.reserve(pair, prefill);
    await call.next();
    call.start((await prefillLeg(prefill, decode, pair)).ticket);
    await call.next();
    const outcome = decode.engine.nextOutcome();
    const closed = decode.instance.close(50);
    await assert.rejects(call.rest(), refusal("instance_lost"));
    await within(closed, "the end");
    assert.equal(await outcome, "aborted");
  });

  it("is in the router's registry while it lives, under its new KV address after a restart of its engine", async () => {
    const hub = registryHub({ limit: 10 });
    await using router = await serveRpc({ listen: "127.0.0.1:0", services: [hub.service], log: quiet });
    let entries: readonly { kvAddress: string }[] = [];
    hub.watch((now) => (entries = now));
    const decode = await simDecode("p2p-zmq", { "registry.address": router.address });
    await eventually("it is registered", () => entries[0]?.kvAddress === decode.engine.kvAddress);
    await decode[Symbol.asyncDispose]();
    await eventually("it is gone", () => entries.length === 0);
  });

  it("is refused with settings that can't work", async () => {
    const start = (...argv: string[]) =>
      startDecode(loadConfig(decodeConfig, { argv: ["--listen=127.0.0.1:0", "--router=", ...argv], env: {} }), {
        log: quiet,
      });
    await assert.rejects(start("--attach", "http://127.0.0.1:1", "--connector", "p2p-zmq"), ConfigError);
    await assert.rejects(start("--attach", "ftp://x"), ConfigError);
    await assert.rejects(start("--engine", "vllm"), ConfigError);
    await assert.rejects(start("--connector", "nixl"), /needs --engine vllm with a --model, or --engine sim/);
    await assert.rejects(start("--engine", "sim", "--engine.restart_command", "true"), /is for an attached engine/);
    await assert.rejects(
      start("--engine=sim", "--kv.listen=0.0.0.0:20001"),
      /Set --token \(TANDEM_TOKEN\), or listen on/,
    );
    await assert.rejects(
      start("--model", "meta-llama/Llama-3.1-8B-Instruct"),
      /With --engine vllm, vLLM runs the model/,
    );
  });
});

describe("the status of an instance", () => {
  it("reports the state that matters most", () => {
    const status = new InstanceStatus(2);
    assert.deepEqual([status.load().state, status.load().reason], [State.STARTING, "the engine is starting"]);
    status.set({ engine: { reason: "" } });
    status.admit();
    status.set({ drained: "because" });
    assert.throws(() => status.admit(), refusal("instance_unavailable"));
    status.set({ engine: { reason: "the engine exited" } });
    assert.deepEqual([status.load().state, status.load().reason], [State.STARTING, "the engine exited"]);
    status.set({ engine: { reason: "" } });
    assert.deepEqual([status.load().state, status.load().reason], [State.DRAINING, "because"]);
    status.set({ drained: "" });
    assert.deepEqual([status.load().state, status.load().reason], [State.SERVING, ""]);
    status.set({ ending: "stopping" });
    status.set({ drained: "" });
    assert.equal(status.load().state, State.DRAINING);
    status.set({ ending: "stopped" });
    assert.equal(status.load().state, State.STOPPED);
  });

  it("counts orphaned KV against the slots, and not as work that is left", () => {
    const status = new InstanceStatus(2);
    status.set({ engine: { reason: "" } });
    status.count({ orphans: 1, running: 1 });
    assert.throws(() => status.admit(), refusal("instance_busy"));
    assert.deepEqual([status.remaining, status.load().freeSlots, status.load().kvOrphans], [1, 0, 1]);
  });
});
