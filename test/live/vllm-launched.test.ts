// Real vLLM as a user runs it: `tandem up --engine vllm`, one prefill and two decode instances, the KV moved by NIXL. The
// answers are those of one plain vLLM, and what is killed, frozen or smuggled in ends as promised, without a hand on it.
import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { DecodeRequestSchema, DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { FindingLevel, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { routerOverRest } from "../../clients/control/client.ts";
import { dialRpc } from "../../services/rpc/client.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";
import { ask, assertSame, post, readAnswer, type Answer, type Question } from "./support/answers.ts";
import { vllmOf } from "./support/processes.ts";
import { CPU_ENV, CPU_FLAGS, MODEL, MODEL_DIR, prepareVllm, startVllm, VLLM_PROGRAM, type Vllm } from "./support/vllm.ts";

const STALL_MS = 5_000;
/** A vLLM loads for 20 to 40 s on two cores, two minutes beside much else. */
const BACK_MS = 300_000;
const WORDS = "the sea a story about prefill and decode tells of tokens that travel from one engine to another while nobody waits".split(" ");

// 100 prompts of one word to most of the context, over block borders (32 tokens a block), in all four shapes.
const QUESTIONS: readonly Question[] = Array.from({ length: 100 }, (_, index) => {
  const count = 1 + ((index * 37) % 60);
  const text = `${index} ${Array.from({ length: count }, (_, at) => WORDS[(index * 7 + at * 5) % WORDS.length]).join(" ")}`;
  return question(`question ${index}`, text, index % 2 === 0, index % 4 < 2);
});

function question(name: string, text: string, isChat: boolean, stream: boolean, extra: Record<string, unknown> = {}): Question {
  const common = {
    model: MODEL, max_tokens: 8, temperature: 0, ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}), ...extra,
  };
  return isChat
    ? { name, path: "/v1/chat/completions", body: { ...common, messages: [{ role: "user", content: text }], logprobs: true } }
    : { name, path: "/v1/completions", body: { ...common, prompt: text, logprobs: 1 } };
}

/** How a request that met a fault ended: as a whole answer, or as a typed error; anything else throws. */
async function ending(response: Response, streamed: boolean): Promise<"answer" | "error"> {
  const text = await response.text();
  if (response.status !== 200) {
    const { error } = JSON.parse(text) as { error: { code: unknown; type: unknown; message: unknown } };
    assert.ok(response.status >= 500 && error.code === response.status && typeof error.type === "string" && typeof error.message === "string", text);
    return "error";
  }
  if (streamed && /"error":\{/.test(text)) {
    assert.match(text, /data: \[DONE\]\n\n$|data: \{"error":.*\}\n\n$/s);
    return "error";
  }
  readAnswer(text, streamed);
  return "answer";
}

describe("vLLM started by Tandem", function () {
  this.timeout(15 * 60_000);
  let plain: Vllm;
  let tandem: Tandem;
  let expected: readonly Answer[];

  const instances = async (role: Role): Promise<Instance[]> =>
    (await routerOverRest(tandem.url, { token: tandem.token }).listInstances({})).instances.filter(({ info }) => info?.role === role);
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
  const long = (index: number): Question => question(`long ${index}`, `${index} ${WORDS.join(" ")}`, false, true, { max_tokens: 300, ignore_eos: true });
  const servesAgain = (): Promise<unknown> => eventually("a question is answered again", async () => {
    const answer = await ask(tandem.url, QUESTIONS[1]!);
    assertSame(answer, expected[1]!);
    return true;
  }, BACK_MS);
  const wholeAgain = async (): Promise<void> => {
    await eventually("one prefill and two decode instances serve", async () => (await serving(Role.PREFILL, 1)) && (await serving(Role.DECODE, 2)), BACK_MS);
    await servesAgain();
  };

  before(async () => {
    await prepareVllm();
    [plain, tandem] = await Promise.all([
      startVllm("plain"),
      startTandem(
        ["--engine", "vllm", "--prefill", "1", "--decode", "2", "--vllm.command", VLLM_PROGRAM, "--model", MODEL_DIR, "--served_name", MODEL, "--", ...CPU_FLAGS],
        { ...CPU_ENV, TANDEM_STALL_MS: String(STALL_MS), HF_TOKEN: "hf_not_to_be_seen" },
      ),
    ]);
    await eventually("all instances serve", async () => (await serving(Role.PREFILL, 1)) && (await serving(Role.DECODE, 2)), BACK_MS);
  });
  after(async () => {
    await tandem?.[Symbol.asyncDispose]();
    await plain?.[Symbol.asyncDispose]();
  });

  it("shows how the engines load, and no secret", () => {
    const output = tandem.output();
    assert.match(output, /prefill-1 \| loading vLLM 0\.32\.0/);
    assert.match(output, /decode-2 \| .*loading weights/);
    assert.match(output, /engine works after [\d.]+ s: loading vLLM/);
    assert.doesNotMatch(output, /hf_not_to_be_seen/);
  });

  it("knows the facts of its engines", async () => {
    for (const { info } of [...(await instances(Role.PREFILL)), ...(await instances(Role.DECODE))]) {
      const { model, connector, engine, engineVersion, dtype, tpSize, blockSize, maxModelLen } = info!;
      assert.deepEqual(
        { model, connector, engine, engineVersion, dtype, tpSize, blockSize, maxModelLen },
        { model: MODEL, connector: "nixl", engine: "vllm", engineVersion: "0.32.0", dtype: "float32", tpSize: 1, blockSize: 32, maxModelLen: 512 },
      );
    }
  });

  it("was checked by canaries through each pair, and the doctor has nothing against it", async () => {
    const { diagnoses } = await routerOverRest(tandem.url, { token: tandem.token }).diagnose({});
    const bad = diagnoses.filter(({ finding }) => finding?.level !== FindingLevel.OK);
    assert.deepEqual(bad.map(({ finding }) => finding), []);
    const canaries = diagnoses.filter(({ finding }) => finding?.check === "canary");
    assert.equal(canaries.length, 2);
    for (const { finding } of canaries) assert.match(finding!.message, /first token was that of prefill alone/);
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
    const [prefill] = await instances(Role.PREFILL);
    await Promise.all(Array.from({ length: 24 }, async (_, index) => {
      const gone = new AbortController();
      // From before the prefill leg to well into the answer.
      setTimeout(() => gone.abort(), index * 25);
      const response = await post(tandem.url, "/v1/completions", long(index).body, gone.signal).catch(() => undefined);
      await response?.text().catch(() => undefined);
    }));
    for (const { info } of [prefill!, ...(await instances(Role.DECODE))]) {
      const { url } = vllmOf(info!.pid);
      await eventually("nothing runs", async () => (await metricOf(url, "vllm:num_requests_running")) === 0, 20_000);
    }
    const all = async (): Promise<Instance[]> => [...(await instances(Role.PREFILL)), ...(await instances(Role.DECODE))];
    await eventually("no leg and no orphan is left", async () => (await all()).every(({ legs, load }) => legs === 0 && load?.kvOrphans === 0 && load.running === 0));
    // The lease on KV that nobody fetched runs out by itself; a question makes the engine look.
    await eventually("prefill holds no KV", async () => {
      await ask(tandem.url, QUESTIONS[1]!);
      return (await metricOf(vllmOf(prefill!.info!.pid).url, "vllm:kv_cache_usage_perc")) < 0.01;
    }, 60_000);
  });

  it("refuses smuggled KV parameters, ids and addresses", async () => {
    const base = { model: MODEL, prompt: "hi", max_tokens: 2 };
    for (const extra of [{ kv_transfer_params: { do_remote_prefill: true } }, { request_id: "x" }, { vllm_xargs: { kv_transfer_params: "{}" } }, { ec_transfer_params: {} }]) {
      const response = await post(tandem.url, "/v1/completions", { ...base, ...extra });
      assert.equal(response.status, 400, await response.text());
    }
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST", body: JSON.stringify(base),
      headers: { "content-type": "application/json", "x-request-id": "___prefill_addr_10.0.0.1:1___decode_addr_10.0.0.2:2_x" },
    });
    assert.equal(response.status, 200);
    await servesAgain();
  });

  it("outlives KV parameters that don't fit the prompt, which end a vLLM", async () => {
    const [prefill] = (await instances(Role.PREFILL)).map(({ info }) => info!);
    const [decode] = (await instances(Role.DECODE)).map(({ info }) => info!);
    await using prefillChannel = dialRpc(prefill!.grpcAddress, { token: tandem.token });
    await using decodeChannel = dialRpc(decode!.grpcAddress, { token: tandem.token });
    const path = "/v1/completions";
    const bodyOf = (prompt: string): string => JSON.stringify({ model: MODEL, prompt, max_tokens: 4, temperature: 0 });
    const legOf = (digit: string) => digit.repeat(32);
    const decodeLeg = async (legId: string, body: string, ticket: string): Promise<void> => {
      async function* steps() {
        yield create(DecodeRequestSchema, { step: { case: "reserve", value: { legId, path, body, face: { id: "x", created: 1, choiceIndex: 0 } } } });
        yield create(DecodeRequestSchema, { step: { case: "start", value: { ticket } } });
      }
      for await (const _ of decodeChannel.client(DecodeService).decode(steps(), { timeoutMs: 60_000 }));
    };
    await assert.rejects(decodeLeg(legOf("a"), bodyOf("hi"), '{"do_remote_prefill":true}'), { code: "invalid_request" });
    await assert.rejects(decodeLeg(legOf("b"), bodyOf("hi"), "nonsense"), { code: "invalid_request" });
    const { ticket } = await prefillChannel.client(PrefillService).prefill({ legId: legOf("c"), path, body: bodyOf("short") });
    await assert.rejects(decodeLeg(legOf("c"), bodyOf(`far longer ${WORDS.join(" ").repeat(3)}`), ticket));
    await wholeAgain();
  });

  it("ends every request when prefill's engine is killed, and starts another", async () => {
    const [{ info }] = (await instances(Role.PREFILL)) as [Instance];
    const running = QUESTIONS.slice(0, 16).map(async (one) => ending(await post(tandem.url, one.path, one.body), one.body["stream"] === true));
    // The engine core, not its API server: what dies on a bug or for want of memory.
    process.kill(vllmOf(info!.pid).pids.at(-1)!, "SIGKILL");
    await Promise.all(running);
    await wholeAgain();
  });

  /** Streams that run, and a decode instance in the middle of some of them: its engine was stopped, so they can't end before it is hurt. */
  const caughtInTheMiddle = async (): Promise<{ victim: number; engine: readonly number[]; open: readonly Response[] }> => {
    for (;;) {
      const open = await Promise.all([1, 2, 3, 4].map((index) => post(tandem.url, "/v1/completions", long(index).body)));
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
    const { victim, open } = await caughtInTheMiddle();
    process.kill(victim, "SIGKILL");
    const killedMs = performance.now();
    const ends = open.map(async (response) => ({ how: await ending(response, true), ms: performance.now() - killedMs }));
    const other = await ask(tandem.url, QUESTIONS[1]!);
    assertSame(other, expected[1]!);
    const ended = await Promise.all(ends);
    assert.ok(ended.some(({ how }) => how === "error"), "one of the streams ran on it");
    for (const { how, ms } of ended) if (how === "error") assert.ok(ms < 5_000, `a broken stream ended after ${ms} ms`);
    await wholeAgain();
  });

  it("finds a frozen decode engine, ends its streams and starts it again", async () => {
    const { engine, open } = await caughtInTheMiddle();
    const frozenMs = performance.now();
    const ended = await Promise.all(open.map(async (response) => ({ how: await ending(response, true), ms: performance.now() - frozenMs })));
    assert.ok(ended.some(({ how }) => how === "error"), "one of the streams ran on it");
    for (const { how, ms } of ended) if (how === "error") assert.ok(ms < STALL_MS + 4_000, `a frozen stream ended after ${ms} ms`);
    await servesAgain();
    await wholeAgain();
    for (const pid of engine) assert.throws(() => process.kill(pid, 0), "the frozen one is gone");
  });
});

/** `work` on every item, `count` at once; results in the items' order. */
async function eachOf<T, R>(items: readonly T[], count: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  await Promise.all(Array.from({ length: count }, async () => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!);
    }
  }));
  return results;
}
