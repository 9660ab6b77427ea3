// Real vLLM as a user runs it: `tandem up --engine vllm`, one prefill and two decode instances, the KV moved by NIXL. The
// answers are those of one plain vLLM, and what is killed, frozen or smuggled in ends as promised, without a hand on it.
import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { DecodeRequestSchema, DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { FindingLevel, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { tandemClient } from "../../clients/client/index.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";
import { ask, assertSame, post, readAnswer, type Answer, type Question } from "./support/answers.ts";
import { vllmOf } from "./support/processes.ts";
import {
  CPU_ENV,
  CPU_FLAGS,
  MODEL,
  MODEL_DIR,
  prepareVllm,
  startVllm,
  VLLM_PROGRAM,
  type Vllm,
} from "./support/vllm.ts";
import { dialRpc } from "../../services/rpc/channel.ts";

const STALL_MS = 5_000;
/** A vLLM loads for 20 to 40 s on two cores, two minutes beside much else. */
const BACK_MS = 300_000;
/** The figures of docs/faults.md. */
const say = (text: string): void => console.log(`      ${text}`);
const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;
const WORDS =
  "the sea a story about prefill and decode tells of tokens that travel from one engine to another while nobody waits".split(
    " ",
  );

// 100 prompts of one word to most of the context, over block borders (32 tokens a block), in all four shapes.
const QUESTIONS: readonly Question[] = Array.from({ length: 100 }, (_, index) => {
  const count = 1 + ((index * 37) % 60);
  const text = `${index} ${Array.from({ length: count }, (_, at) => WORDS[(index * 7 + at * 5) % WORDS.length]).join(" ")}`;
  return question(`question ${index}`, text, index % 2 === 0, index % 4 < 2);
});

function question(
  name: string,
  text: string,
  isChat: boolean,
  stream: boolean,
  extra: Record<string, unknown> = {},
): Question {
  const common = {
    model: MODEL,
    max_tokens: 8,
    temperature: 0,
    ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}),
    ...extra,
  };
  return isChat
    ? {
        name,
        path: "/v1/chat/completions",
        body: { ...common, messages: [{ role: "user", content: text }], logprobs: true },
      }
    : { name, path: "/v1/completions", body: { ...common, prompt: text, logprobs: 1 } };
}

/** How a request that met a fault ended: as a whole answer, or as a typed error; anything else throws. */
async function ending(response: Response, streamed: boolean): Promise<"answer" | "error"> {
  const text = await response.text();
  if (response.status !== 200) {
    const { error } = JSON.parse(text) as { error: { code: unknown; type: unknown; message: unknown } };
    assert.ok(
      response.status >= 500 &&
        error.code === response.status &&
        typeof error.type === "string" &&
        typeof error.message === "string",
      text,
    );
    return "error";
  }
  if (streamed && /"error":\{/.test(text)) {
    assert.match(text, /data: \[DONE\]\n\n$|data: \{"error":.*\}\n\n$/s);
    return "error";
  }
  readAnswer(text, streamed);
  return "answer";
}

interface Ended {
  readonly how: "answer" | "error";
  /** After the fault. */
  readonly ms: number;
}

describe("vLLM started by Tandem", function () {
  this.timeout(15 * 60_000);
  let plain: Vllm;
  let tandem: Tandem;
  let expected: readonly Answer[];

  const instances = async (role: Role): Promise<Instance[]> =>
    (await tandemClient(tandem).router.listInstances({})).instances.filter(({ info }) => info?.role === role);
  const serving = async (role: Role, count: number): Promise<Instance[] | false> => {
    const found = (await instances(role)).filter(({ eligible }) => eligible);
    return found.length === count && found;
  };
  const metricOf = async (url: string, name: string): Promise<number> => {
    const text = await (await fetch(`${url}/metrics`)).text();
    const values = text.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    return values.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  };
  /** Long enough to be met in the middle. */
  const long = (index: number): Question =>
    question(`long ${index}`, `${index} ${WORDS.join(" ")}`, false, true, { max_tokens: 300, ignore_eos: true });
  const servesAgain = (): Promise<unknown> =>
    eventually(
      "a question is answered again",
      async () => {
        const answer = await ask(tandem.url, QUESTIONS[1]!);
        assertSame(answer, expected[1]!);
        return true;
      },
      BACK_MS,
    );
  const all = async (): Promise<Instance[]> => [...(await instances(Role.PREFILL)), ...(await instances(Role.DECODE))];
  const whole = (): Promise<unknown> =>
    eventually(
      "one prefill and two decode instances serve",
      async () => (await serving(Role.PREFILL, 1)) && (await serving(Role.DECODE, 2)),
      BACK_MS,
    );
  const wholeAgain = async (): Promise<void> => {
    await whole();
    await servesAgain();
  };
  const retries = (): Promise<number> => metricOf(tandem.url, "tandem_retries_total");
  /** Engines free what nobody fetches when a lease ends, and look for that when they have something to do. */
  const kvFree = async (): Promise<void> => {
    await eventually(
      "no leg, no orphan and no KV is left",
      async () => {
        await ask(tandem.url, QUESTIONS[1]!);
        const found = await all();
        if (!found.every(({ legs, load }) => legs === 0 && load?.kvOrphans === 0 && load.running === 0)) return false;
        const used = await Promise.all(
          found.map(({ info }) => metricOf(vllmOf(info!.pid).url, "vllm:kv_cache_usage_perc")),
        );
        return used.every((ratio) => ratio < 0.01);
      },
      90_000,
    );
  };
  /** What became of a fault that is `atMs` old: how its requests ended, and until when it was felt. */
  const aftermath = async (
    fault: string,
    atMs: number,
    retriedBefore: number,
    ends: readonly Ended[],
  ): Promise<void> => {
    const broken = ends.filter(({ how }) => how === "error").map(({ ms }) => ms);
    const retried = (await retries()) - retriedBefore;
    const { receipts } = await tandemClient(tandem).router.listRequests({
      limit: 2 * ends.length,
    });
    const fallbacks = new Map<string, number>();
    for (const one of receipts
      .filter(({ startedUnixMs, totalMs }) => Number(startedUnixMs) + totalMs > Date.now() - (performance.now() - atMs))
      .flatMap((receipt) => receipt.fallbacks))
      fallbacks.set(one, (fallbacks.get(one) ?? 0) + 1);
    await servesAgain();
    const servesMs = performance.now() - atMs;
    await whole();
    const wholeMs = performance.now() - atMs;
    await kvFree();
    say(
      `${fault}: ${ends.length} requests, ${ends.length - broken.length} answered, ${broken.length} ended with an error${broken.length === 0 ? "" : ` ${seconds(Math.min(...broken))} to ${seconds(Math.max(...broken))} after it`}, ${retried} retries`,
    );
    if (fallbacks.size > 0) say(`  fallbacks: ${[...fallbacks].map(([name, count]) => `${name} ${count}`).join(", ")}`);
    say(
      `  answers again after ${seconds(servesMs)}, whole after ${seconds(wholeMs)}, no KV left after ${seconds(performance.now() - atMs)}`,
    );
  };

  before(async () => {
    await prepareVllm();
    [plain, tandem] = await Promise.all([
      startVllm("plain"),
      startTandem(
        [
          "--engine",
          "vllm",
          "--prefill",
          "1",
          "--decode",
          "2",
          "--vllm.command",
          VLLM_PROGRAM,
          "--model",
          MODEL_DIR,
          "--served_name",
          MODEL,
          "--",
          ...CPU_FLAGS,
        ],
        { ...CPU_ENV, TANDEM_STALL_MS: String(STALL_MS), HF_TOKEN: "hf_not_to_be_seen" },
      ),
    ]);
    await eventually(
      "all instances serve",
      async () => (await serving(Role.PREFILL, 1)) && (await serving(Role.DECODE, 2)),
      BACK_MS,
    );
  });
  after(async () => {
    await tandem?.[Symbol.asyncDispose]();
    await plain?.[Symbol.asyncDispose]();
  });

  it("shows how the engines load, and no secret", () => {
    const output = tandem.output();
    assert.match(output, /prefill-1 \| loading vLLM 0\.32\.0/);
    assert.match(output, /decode-2 \| .*loading weights/);
    assert.match(output, /engine ready after [\d.]+ s: loading vLLM/);
    assert.doesNotMatch(output, /hf_not_to_be_seen/);
  });

  it("knows the facts of its engines", async () => {
    for (const { info } of [...(await instances(Role.PREFILL)), ...(await instances(Role.DECODE))]) {
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
    const { diagnoses } = await tandemClient(tandem).router.diagnose({});
    const bad = diagnoses.filter(({ finding }) => finding?.level !== FindingLevel.OK);
    assert.deepEqual(
      bad.map(({ finding }) => finding),
      [],
    );
    const probes = diagnoses.filter(({ finding }) => finding?.check === "probe");
    assert.equal(probes.length, 2);
    for (const { finding } of probes) assert.match(finding!.message, /first token matched prefill's own/);
  });

  it("answers 100 prompts, 8 at once, as a plain vLLM does", async () => {
    expected = await eachOf(QUESTIONS, 8, (one) => ask(plain.url, one));
    const answers = await eachOf(QUESTIONS, 8, (one) => ask(tandem.url, one));
    for (const [index, answer] of answers.entries()) assertSame(answer, expected[index]!);
    const decodes = await instances(Role.DECODE);
    for (const { info } of decodes) {
      const { url } = vllmOf(info!.pid);
      assert.ok((await metricOf(url, "vllm:nixl_bytes_transferred_sum")) > 0, "each decode engine fetched KV");
      assert.equal(await metricOf(url, "vllm:nixl_num_failed_transfers_total"), 0);
    }
  });

  it("serves after vLLM has closed its kept connections", async () => {
    // vLLM closes after 5 s of silence, Tandem before that; each pause meets another moment of it.
    for (const pauseMs of [3_900, 4_100, 4_950, 5_000, 5_050]) {
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      const answers = await Promise.all([0, 1, 2, 3].map((index) => ask(tandem.url, QUESTIONS[index]!)));
      for (const [index, answer] of answers.entries()) assertSame(answer, expected[index]!);
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
    for (const { info } of await all()) {
      const { url } = vllmOf(info!.pid);
      await eventually("nothing runs", async () => (await metricOf(url, "vllm:num_requests_running")) === 0, 20_000);
    }
    const idleMs = performance.now() - goneMs;
    await kvFree();
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
    await servesAgain();
  });

  /** The instances' own services, past the router. */
  async function openLegs() {
    const [prefill] = (await instances(Role.PREFILL)).map(({ info }) => info!);
    const [decode] = (await instances(Role.DECODE)).map(({ info }) => info!);
    const prefillChannel = dialRpc(prefill!.grpcAddress, { token: tandem.token });
    const decodeChannel = dialRpc(decode!.grpcAddress, { token: tandem.token });
    const path = "/v1/completions";
    return {
      legOf: (digit: string): string => digit.repeat(32),
      bodyOf: (prompt: string): string => JSON.stringify({ model: MODEL, prompt, max_tokens: 4, temperature: 0 }),
      async prefillLeg(legId: string, body: string): Promise<string> {
        return (await prefillChannel.client(PrefillService).prefill({ legId, path, body })).ticket;
      },
      async decodeLeg(legId: string, body: string, ticket: string): Promise<void> {
        async function* steps() {
          yield create(DecodeRequestSchema, {
            step: { case: "reserve", value: { legId, path, body, face: { id: "x", created: 1, choiceIndex: 0 } } },
          });
          yield create(DecodeRequestSchema, { step: { case: "start", value: { ticket } } });
        }
        for await (const _ of decodeChannel.client(DecodeService).decode(steps(), { timeoutMs: 60_000 }));
      },
      async [Symbol.asyncDispose]() {
        await Promise.all([prefillChannel, decodeChannel].map((channel) => channel[Symbol.asyncDispose]()));
      },
    };
  }

  it("outlives KV parameters that don't fit the prompt, which end a vLLM", async () => {
    await using legs = await openLegs();
    const { prefillLeg, decodeLeg, bodyOf, legOf } = legs;
    await assert.rejects(decodeLeg(legOf("a"), bodyOf("hi"), '{"do_remote_prefill":true}'), {
      code: "invalid_request",
    });
    await assert.rejects(decodeLeg(legOf("b"), bodyOf("hi"), "nonsense"), { code: "invalid_request" });
    // Of an engine that is none, and of one that was there: each ends as an error, and no engine with it.
    const before = (await all()).map(({ info }) => vllmOf(info!.pid).pids.at(-1));
    const other = await prefillLeg(legOf("d"), bodyOf("short"));
    const engineId = (JSON.parse(other) as { remote_engine_id: string }).remote_engine_id;
    await assert.rejects(
      decodeLeg(legOf("d"), bodyOf("short"), other.replace(engineId, "11111111-2222-3333-4444-555555555555")),
    );
    await decodeLeg(legOf("d"), bodyOf("short"), other);
    await servesAgain();
    assert.deepEqual(
      (await all()).map(({ info }) => vllmOf(info!.pid).pids.at(-1)),
      before,
    );
    const ticket = await prefillLeg(legOf("c"), bodyOf("short"));
    await assert.rejects(decodeLeg(legOf("c"), bodyOf(`far longer ${WORDS.join(" ").repeat(3)}`), ticket));
    await wholeAgain();
  });

  it("ends every request when prefill's engine is killed, and starts another", async () => {
    const [{ info }] = (await instances(Role.PREFILL)) as [Instance];
    await using legs = await openLegs();
    const { prefillLeg, decodeLeg, bodyOf, legOf } = legs;
    const stale = await prefillLeg(legOf("e"), bodyOf("short"));
    // The engine core, not its API server: what dies on a bug or for want of memory. Stopped first, so that all are on it.
    const core = vllmOf(info!.pid).pids.at(-1)!;
    process.kill(core, "SIGSTOP");
    let killedMs = Infinity;
    const running = QUESTIONS.slice(0, 16).map(async (one): Promise<Ended> => {
      const how = await ending(await post(tandem.url, one.path, one.body), one.body["stream"] === true);
      return { how, ms: performance.now() - killedMs };
    });
    await eventually("all are on prefill", async () => (await instances(Role.PREFILL))[0]!.legs === 16);
    const retriedBefore = await retries();
    killedMs = performance.now();
    process.kill(core, "SIGKILL");
    const ends = await Promise.all(running);
    await aftermath("prefill's engine killed", killedMs, retriedBefore, ends);
    // KV of an engine that is gone.
    await assert.rejects(decodeLeg(legOf("e"), bodyOf("short"), stale));
    await wholeAgain();
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
      for (const { info } of await instances(Role.DECODE)) {
        const { pids } = vllmOf(info!.pid);
        for (const pid of pids) process.kill(pid, "SIGSTOP");
        // What its engine had written before has reached the client by the second look.
        await instances(Role.DECODE);
        const now = (await instances(Role.DECODE)).find((one) => one.info!.instanceId === info!.instanceId);
        if ((now?.legs ?? 0) > 0) return { victim: info!.pid, engine: pids, open };
        for (const pid of pids) process.kill(pid, "SIGCONT");
      }
      await Promise.all(open.map((response) => response.text()));
    }
  };

  it("ends every stream when a decode instance is killed, and serves on with the other", async () => {
    const retriedBefore = await retries();
    const { victim, open } = await caughtInTheMiddle();
    process.kill(victim, "SIGKILL");
    const killedMs = performance.now();
    const ends = open.map(async (response) => ({
      how: await ending(response, true),
      ms: performance.now() - killedMs,
    }));
    const other = await ask(tandem.url, QUESTIONS[1]!);
    assertSame(other, expected[1]!);
    const otherMs = performance.now() - killedMs;
    const ended = await Promise.all(ends);
    assert.ok(
      ended.some(({ how }) => how === "error"),
      "one of the streams ran on it",
    );
    for (const { how, ms } of ended) if (how === "error") assert.ok(ms < 5_000, `a broken stream ended after ${ms} ms`);
    say(`decode instance killed: the other one answered a request that came after it in ${seconds(otherMs)}`);
    await aftermath("decode instance killed", killedMs, retriedBefore, ended);
  });

  it("finds a frozen decode engine, ends its streams and starts it again", async () => {
    const retriedBefore = await retries();
    const { engine, open } = await caughtInTheMiddle();
    const frozenMs = performance.now();
    const ended = await Promise.all(
      open.map(async (response) => ({ how: await ending(response, true), ms: performance.now() - frozenMs })),
    );
    assert.ok(
      ended.some(({ how }) => how === "error"),
      "one of the streams ran on it",
    );
    for (const { how, ms } of ended)
      if (how === "error") assert.ok(ms < STALL_MS + 4_000, `a frozen stream ended after ${ms} ms`);
    await aftermath("decode engine frozen", frozenMs, retriedBefore, ended);
    for (const pid of engine) assert.throws(() => process.kill(pid, 0), "the frozen one is gone");
  });
});

/** `work` on every item, `count` at once; results in the items' order. */
async function eachOf<T, R>(items: readonly T[], count: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  await Promise.all(
    Array.from({ length: count }, async () => {
      while (next < items.length) {
        const index = next++;
        results[index] = await work(items[index]!);
      }
    }),
  );
  return results;
}
