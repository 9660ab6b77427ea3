// Real vLLM as a user runs it: `tandem up --engine vllm`, one prefill and two decode instances, the KV moved by NIXL. The
// answers are those of one plain vLLM, and what is killed, frozen or smuggled in ends as promised, without a hand on it.
import assert from "node:assert/strict";
import { FindingLevel, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { tandemClient } from "../../clients/client/index.ts";
import type { Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";
import { aftermath, ending, say, seconds, type Ended } from "./support/aftermath.ts";
import { ask, assertSame, post } from "./support/answers.ts";
import { metricOf, STALL_MS, startLaunched, type Launched } from "./support/launched.ts";
import { engineOf } from "./support/processes.ts";
import { eachOf, long, QUESTIONS, WORDS } from "./support/questions.ts";
import { MODEL, type Vllm } from "./support/vllm.ts";

describe("vLLM started by Tandem", function () {
  this.timeout(15 * 60_000);
  let vllm: Launched;
  let plain: Vllm;
  let tandem: Tandem;

  before(async () => {
    vllm = await startLaunched();
    ({ plain, tandem } = vllm);
    await vllm.whole();
  });
  after(() => vllm?.[Symbol.asyncDispose]());

  it("shows how the engines load, and no secret", () => {
    const output = tandem.output();
    assert.match(output, /prefill-1 \| loading vLLM 0\.32\.0/);
    assert.match(output, /decode-2 \| .*loading weights/);
    assert.match(output, /engine ready after [\d.]+ s: loading vLLM/);
    assert.doesNotMatch(output, /hf_not_to_be_seen/);
  });

  it("knows the facts of its engines", async () => {
    for (const { info } of [...(await vllm.instances(Role.PREFILL)), ...(await vllm.instances(Role.DECODE))]) {
      const { model, connector, engine, engineVersion, dtype, tpSize, blockSize, maxModelLen } = info!;
      assert.deepEqual(
        { model, connector, engine, engineVersion, dtype, tpSize, blockSize, maxModelLen },
        {
          model: MODEL,
          connector: "nixl",
          engine: "vllm",
          engineVersion: "0.32.0",
          dtype: "float32",
          tpSize: 1,
          blockSize: 32,
          maxModelLen: 512,
        },
      );
    }
  });

  it("was checked by probes through each pair, and the doctor has nothing against it", async () => {
    // A decode instance serves alone before its pair is proven.
    const diagnoses = await eventually(
      "the doctor finds nothing",
      async () => {
        const all = (await tandemClient(tandem).router.diagnose({})).diagnoses;
        return all.every(({ finding }) => finding?.level === FindingLevel.OK) && all;
      },
      60_000,
    );
    const probes = diagnoses.filter(({ finding }) => finding?.check === "probe");
    assert.equal(probes.length, 2);
    for (const { finding } of probes) assert.match(finding!.message, /first token matched prefill's own/);
  });

  it("answers 100 prompts, 8 at once, as a plain vLLM does", async () => {
    vllm.expected.push(...(await eachOf(QUESTIONS, 8, (one) => ask(plain.url, one))));
    const answers = await eachOf(QUESTIONS, 8, (one) => ask(tandem.url, one));
    for (const [index, answer] of answers.entries()) assertSame(answer, vllm.expected[index]!);
    const decodes = await vllm.instances(Role.DECODE);
    for (const { info } of decodes) {
      const { url } = engineOf(info!.pid);
      assert.ok((await metricOf(url, "vllm:nixl_bytes_transferred_sum")) > 0, "each decode engine fetched KV");
      assert.equal(await metricOf(url, "vllm:nixl_num_failed_transfers_total"), 0);
    }
  });

  it("serves after vLLM has closed its kept connections", async () => {
    // vLLM closes after 5 s of silence, Tandem before that; each pause meets another moment of it.
    for (const pauseMs of [3_900, 4_100, 4_950, 5_000, 5_050]) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      const answers = await Promise.all([0, 1, 2, 3].map((index) => ask(tandem.url, QUESTIONS[index]!)));
      for (const [index, answer] of answers.entries()) assertSame(answer, vllm.expected[index]!);
    }
  });

  it("frees everything when clients leave between the legs and mid-stream", async () => {
    await Promise.all(
      Array.from({ length: 24 }, async (_, index) => {
        const gone = new AbortController();
        // From before the prefill leg to well into the answer.
        setTimeout(() => gone.abort(), index * 25);
        const response = await post(tandem.url, "/v1/completions", long(index).body, gone.signal).catch(
          () => undefined,
        );
        await response?.text().catch(() => undefined);
      }),
    );
    const goneMs = performance.now();
    for (const { info } of await vllm.all()) {
      const { url } = engineOf(info!.pid);
      await eventually("nothing runs", async () => (await metricOf(url, "vllm:num_requests_running")) === 0, 20_000);
    }
    const idleMs = performance.now() - goneMs;
    await vllm.kvFree();
    say(
      `24 clients gone: no engine computes for them after ${seconds(idleMs)}, no KV left after ${seconds(performance.now() - goneMs)} (a lease is 30 s)`,
    );
  });

  it("refuses smuggled KV parameters, ids and addresses", async () => {
    const base = { model: MODEL, prompt: "hi", max_tokens: 2 };
    for (const extra of [
      { kv_transfer_params: { do_remote_prefill: true } },
      { request_id: "x" },
      { vllm_xargs: { kv_transfer_params: "{}" } },
      { ec_transfer_params: {} },
    ]) {
      const response = await post(tandem.url, "/v1/completions", { ...base, ...extra });
      assert.equal(response.status, 400, await response.text());
    }
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST",
      body: JSON.stringify(base),
      headers: {
        "content-type": "application/json",
        "x-request-id": "___prefill_addr_10.0.0.1:1___decode_addr_10.0.0.2:2_x",
      },
    });
    assert.equal(response.status, 200);
    await vllm.servesAgain();
  });

  it("outlives KV parameters that don't fit the prompt, which end a vLLM", async () => {
    await using legs = await vllm.openLegs();
    const { prefillLeg, decodeLeg, bodyOf, legOf } = legs;
    await assert.rejects(decodeLeg(legOf("a"), bodyOf("hi"), '{"do_remote_prefill":true}'), {
      code: "invalid_request",
    });
    await assert.rejects(decodeLeg(legOf("b"), bodyOf("hi"), "nonsense"), { code: "invalid_request" });
    // Of an engine that is none, and of one that was there: each ends as an error, and no engine with it.
    const before = (await vllm.all()).map(({ info }) => engineOf(info!.pid).pids.at(-1));
    const other = await prefillLeg(legOf("d"), bodyOf("short"));
    const engineId = (JSON.parse(other) as { remote_engine_id: string }).remote_engine_id;
    await assert.rejects(
      decodeLeg(legOf("d"), bodyOf("short"), other.replace(engineId, "11111111-2222-3333-4444-555555555555")),
    );
    await decodeLeg(legOf("d"), bodyOf("short"), other);
    await vllm.servesAgain();
    assert.deepEqual(
      (await vllm.all()).map(({ info }) => engineOf(info!.pid).pids.at(-1)),
      before,
    );
    const ticket = await prefillLeg(legOf("c"), bodyOf("short"));
    await assert.rejects(decodeLeg(legOf("c"), bodyOf(`far longer ${WORDS.join(" ").repeat(3)}`), ticket));
    await vllm.wholeAgain();
  });

  it("ends every request when prefill's engine is killed, and starts another", async () => {
    const [{ info }] = (await vllm.instances(Role.PREFILL)) as [Instance];
    await using legs = await vllm.openLegs();
    const { prefillLeg, decodeLeg, bodyOf, legOf } = legs;
    const stale = await prefillLeg(legOf("e"), bodyOf("short"));
    // The engine core, not its API server: what dies on a bug or for want of memory. Stopped first, so that all are on it.
    const core = engineOf(info!.pid).pids.at(-1)!;
    process.kill(core, "SIGSTOP");
    let killedMs = Infinity;
    const running = QUESTIONS.slice(0, 16).map(async (one): Promise<Ended> => {
      const how = await ending(await post(tandem.url, one.path, one.body), one.body["stream"] === true);
      return { how, ms: performance.now() - killedMs };
    });
    await eventually("all are on prefill", async () => (await vllm.instances(Role.PREFILL))[0]!.legs === 16);
    const retriedBefore = await vllm.retries();
    killedMs = performance.now();
    process.kill(core, "SIGKILL");
    const ends = await Promise.all(running);
    await aftermath(vllm, "prefill's engine killed", killedMs, retriedBefore, ends);
    // KV of an engine that is gone.
    await assert.rejects(decodeLeg(legOf("e"), bodyOf("short"), stale));
    await vllm.wholeAgain();
  });

  /** Streams that run, and a decode instance in the middle of some of them: its engine was stopped, so they can't end before it is hurt. */
  const caughtInTheMiddle = async (): Promise<{
    victim: number;
    engine: readonly number[];
    open: readonly Response[];
  }> => {
    for (;;) {
      const open = await Promise.all(
        [1, 2, 3, 4].map((index) => post(tandem.url, "/v1/completions", long(index).body)),
      );
      for (const { info } of await vllm.instances(Role.DECODE)) {
        const { pids } = engineOf(info!.pid);
        for (const pid of pids) process.kill(pid, "SIGSTOP");
        // What its engine had written before has reached the client by the second look.
        await vllm.instances(Role.DECODE);
        const now = (await vllm.instances(Role.DECODE)).find((one) => one.info!.instanceId === info!.instanceId);
        if ((now?.legs ?? 0) > 0) return { victim: info!.pid, engine: pids, open };
        for (const pid of pids) process.kill(pid, "SIGCONT");
      }
      await Promise.all(open.map((response) => response.text()));
    }
  };

  it("ends every stream when a decode instance is killed, and serves on with the other", async () => {
    const retriedBefore = await vllm.retries();
    let killedMs = 0;
    let ended: Ended[] = [];
    // On a busy machine a stream may have been written to its end before, and still be under way at the second look.
    for (;;) {
      const { victim, open } = await caughtInTheMiddle();
      process.kill(victim, "SIGKILL");
      killedMs = performance.now();
      const ends = open.map(async (response) => ({
        how: await ending(response, true),
        ms: performance.now() - killedMs,
      }));
      const other = await ask(tandem.url, QUESTIONS[1]!);
      assertSame(other, vllm.expected[1]!);
      const otherMs = performance.now() - killedMs;
      say(`decode instance killed: the other one answered a request that came after it in ${seconds(otherMs)}`);
      ended = await Promise.all(ends);
      if (ended.some(({ how }) => how === "error")) break;
      await vllm.wholeAgain();
    }
    for (const { how, ms } of ended) if (how === "error") assert.ok(ms < 5_000, `a broken stream ended after ${ms} ms`);
    await aftermath(vllm, "decode instance killed", killedMs, retriedBefore, ended);
  });

  it("finds a frozen decode engine, ends its streams and starts it again", async () => {
    const retriedBefore = await vllm.retries();
    let frozenMs = 0;
    let engine: readonly number[] = [];
    let ended: Ended[] = [];
    // On a busy machine a stream may have been written to its end before, and still be under way at the second look.
    while (!ended.some(({ how }) => how === "error")) {
      for (const pid of engine) process.kill(pid, "SIGCONT");
      const caught = await caughtInTheMiddle();
      ({ engine } = caught);
      frozenMs = performance.now();
      ended = await Promise.all(
        caught.open.map(async (response) => ({ how: await ending(response, true), ms: performance.now() - frozenMs })),
      );
    }
    for (const { how, ms } of ended)
      if (how === "error") assert.ok(ms < STALL_MS + 4_000, `a frozen stream ended after ${ms} ms`);
    await aftermath(vllm, "decode engine frozen", frozenMs, retriedBefore, ended);
    for (const pid of engine) assert.throws(() => process.kill(pid, 0), "the frozen one is gone");
  });
});
