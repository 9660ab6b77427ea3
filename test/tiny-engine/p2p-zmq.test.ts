import assert from "node:assert/strict";
import { Dealer } from "zeromq";
import { startSimEngine, type RunningEngine } from "../../services/tiny-engine/server.ts";
import { startProxy } from "../../clients/chaos/proxy.ts";
import { deferred, eventually, freePort, within } from "../support/waits.ts";
import { manualClock } from "../support/manual-clock.ts";
import { complete, events, pairedHeaders, post, startFast, startPair, streamedText, textOf } from "./client.ts";

const PROMPT = "Tell me a long story about the captain and the island. ".repeat(20);

/** A sender that asks the decode engine for a slot of 20 tokens, and that engine's answer. */
async function reserve(decode: RunningEngine, id = "x"): Promise<{ sender: Dealer; answer: string }> {
  const sender = new Dealer({ linger: 0 });
  sender.connect(`tcp://${decode.kvAddress!}`);
  const shape = { block_size: 16, bytes_per_token: 256, token_count: 20, layout: "rows", prompt_hash: "" };
  await sender.send(["RESERVE", id, JSON.stringify({ model_hash: decode.state().model_hash, ...shape })]);
  const [type, , rest] = await sender.receive();
  const reason = rest === undefined ? "" : ` ${(JSON.parse(rest.toString()) as { reason: string }).reason}`;
  return { sender, answer: `${type!.toString()}${reason}` };
}

describe("p2p-zmq: a prompt prefilled on one engine and answered by another", () => {
  it("gives the text of one engine that does both, from KV that was really sent", async () => {
    await using pair = await startPair();
    await using alone = await startFast();
    const headers = pairedHeaders(pair);
    const first = await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    assert.equal(first.json.choices[0].text, "(simulated)");
    assert.equal(pair.decode.state().kv_received_bytes, first.json.usage.prompt_tokens * 256);
    assert.equal(pair.decode.state().kv_orphans, 1);
    assert.equal(await textOf(complete(pair.decode, PROMPT, {}, headers)), await textOf(complete(alone, PROMPT)));
    assert.deepEqual(
      [pair.decode.state().kv_held, pair.decode.state().kv_tokens, pair.prefill.state().kv_tokens],
      [[], 0, 0],
    );
  });

  it("gives it for chat too, streamed and seeded", async () => {
    await using pair = await startPair();
    await using alone = await startFast();
    const body = {
      messages: [{ role: "user", content: "How deep is the sea?" }],
      temperature: 1,
      seed: 5,
      max_tokens: 30,
    };
    const headers = pairedHeaders(pair);
    await post(pair.prefill, "/v1/chat/completions", { ...body, max_tokens: 1 }, headers);
    const streamed = await events(pair.decode, "/v1/chat/completions", body, headers);
    assert.equal(streamedText(streamed.events), await textOf(post(alone, "/v1/chat/completions", body)));
  });

  it("pairs the choices of n > 1 one by one when both sides are given the same n", async () => {
    await using pair = await startPair();
    const body = { temperature: 1, seed: 5, n: 3, max_tokens: 20 };
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { ...body, max_tokens: 1 }, headers);
    assert.deepEqual(
      pair.decode
        .state()
        .kv_held.map((held) => held.id.slice(0, 7))
        .sort(),
      ["0_cmpl-", "1_cmpl-", "2_cmpl-"],
    );
    const { json } = await complete(pair.decode, PROMPT, body, headers);
    assert.equal(new Set(json.choices.map((choice: { text: string }) => choice.text)).size, 3);
  });

  it("answers from the rows it was sent, so other rows under the same header give another text", async () => {
    await using pair = await startPair({}, { faults: ["upstream"] });
    await using alone = await startFast();
    const { prefill, decode } = pair;
    const headers = pairedHeaders(pair);
    const other = PROMPT.replace("captain", "painter");
    await complete(prefill, other, { max_tokens: 1 }, headers);
    // "upstream" compares nothing, as vLLM does.
    const text = await textOf(complete(decode, PROMPT, {}, headers));
    assert.equal(text, await textOf(complete(alone, other)));
    assert.notEqual(text, await textOf(complete(alone, PROMPT)));
  });
});

describe("p2p-zmq refuses with a reason", () => {
  const refused = async (answer: ReturnType<typeof complete>, status: number, reason: RegExp): Promise<void> => {
    const { status: got, json } = await answer;
    assert.equal(got, status, JSON.stringify(json));
    assert.match(json.error.message, reason);
  };

  it("a request without the paired id, on either side", async () => {
    await using pair = await startPair();
    await refused(complete(pair.prefill, PROMPT, { max_tokens: 1 }), 400, /^kv_unpaired/);
    await refused(complete(pair.decode, PROMPT, {}, { "x-request-id": "plain" }), 400, /^kv_unpaired/);
  });

  it("a decode request whose KV never came", async () => {
    await using pair = await startPair();
    await refused(complete(pair.decode, PROMPT, {}, pairedHeaders(pair)), 500, /^kv_missing/);
  });

  it("a decode request with another prompt than the prefilled one, and frees its KV", async () => {
    await using pair = await startPair();
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    await refused(
      complete(pair.decode, PROMPT.replace("captain", "painter"), {}, headers),
      500,
      /^kv_mismatch: the KV belongs to another prompt/,
    );
    assert.equal(pair.decode.state().kv_tokens, 0);
  });

  it("a prefill for a decode engine with other weights, other blocks or no free slot", async () => {
    for (const [decode, status, reason] of [
      [{ hashSalt: "other" }, 500, /wrong_model/],
      [{ kvBlockSize: 32 }, 500, /wrong_shape/],
      [{ kvBytesPerToken: 64 }, 500, /wrong_shape/],
    ] as const) {
      await using pair = await startPair({}, decode);
      await refused(complete(pair.prefill, PROMPT, { max_tokens: 1 }, pairedHeaders(pair)), status, reason);
    }
    await using pair = await startPair({}, { kvSlots: 1 });
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, pairedHeaders(pair));
    await refused(complete(pair.prefill, PROMPT, { max_tokens: 1 }, pairedHeaders(pair)), 503, /no_slots/);
  });

  it("a push to an address without an engine, and one to an engine that dies meanwhile", async () => {
    await using pair = await startPair();
    const unknown = `___prefill_addr_${pair.prefill.kvAddress!}___decode_addr_127.0.0.1:${await freePort()}_${"0".repeat(32)}`;
    await refused(
      complete(pair.prefill, PROMPT, { max_tokens: 1 }, { "x-request-id": unknown }),
      503,
      /^kv_push_failed: nothing listens/,
    );
    pair.decode.setFault("silent-kv");
    const pending = complete(pair.prefill, PROMPT, { max_tokens: 1 }, pairedHeaders(pair));
    while (pair.decode.state().faults.length > 0 && pair.prefill.state().kv_tokens === 0)
      await new Promise(setImmediate);
    pair.decode.kill();
    await refused(within(pending, "the prefill to fail"), 503, /^kv_push_failed/);
  });

  it("a block that arrived damaged", async () => {
    await using pair = await startPair({ faults: ["corrupt-kv"] });
    await refused(complete(pair.prefill, PROMPT, { max_tokens: 1 }, pairedHeaders(pair)), 500, /bad_checksum/);
    assert.equal(pair.decode.state().kv_tokens, 0);
  });

  it("an answer of more than one token on the prefill side", async () => {
    await using pair = await startPair();
    await refused(complete(pair.prefill, PROMPT, { max_tokens: 2 }, pairedHeaders(pair)), 400, /max_tokens must be 1/);
  });
});

describe("p2p-zmq: engines that share a key", () => {
  const KEYED = { kvKey: "of this deployment" };

  it("give the text of one engine that does both", async () => {
    await using pair = await startPair(KEYED, KEYED);
    await using alone = await startFast();
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    assert.equal(await textOf(complete(pair.decode, PROMPT, {}, headers)), await textOf(complete(alone, PROMPT)));
  });

  it("take nothing from an engine with another key or none, and say what may be wrong", async () => {
    for (const prefill of [{ kvKey: "of another one" }, {}]) {
      await using pair = await startPair(prefill, KEYED);
      const { status, json } = await complete(pair.prefill, PROMPT, { max_tokens: 1 }, pairedHeaders(pair));
      assert.equal(status, 503);
      assert.match(json.error.message, /closed the connection at once: does it have the same kv\.key\?/);
      assert.deepEqual(pair.decode.state().kv_stages, { filling: 0, ready: 0, claimed: 0 });
    }
  });
});

describe("p2p-zmq: a message that is longer than any block", () => {
  it("ends its connection, and harms no other", async () => {
    await using pair = await startPair();
    const sender = new Dealer({ linger: 0 });
    const ended = deferred();
    sender.events.on("disconnect", () => ended.resolve());
    sender.connect(`tcp://${pair.decode.kvAddress!}`);
    await sender.send(["BLOCK", "x", Buffer.alloc(8), Buffer.alloc(2 * 1024 * 1024)]);
    await within(ended.promise, "the end of the connection");
    sender.close();
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    assert.equal((await complete(pair.decode, PROMPT, {}, headers)).status, 200);
  });
});

describe("p2p-zmq: unclaimed KV", () => {
  it("is freed at the end of its lease, and counted", async () => {
    const clock = manualClock();
    await using pair = await startPair({}, { clock, kvLeaseMs: 1000 });
    const { prefill, decode } = pair;
    const headers = pairedHeaders(pair);
    await complete(prefill, PROMPT, { max_tokens: 1 }, headers);
    await clock.pass(999);
    assert.equal(decode.state().kv_orphans, 1);
    await clock.pass(1);
    assert.deepEqual([decode.state().kv_orphans, decode.state().leases_expired, decode.state().kv_tokens], [0, 1, 0]);
    assert.equal((await complete(decode, PROMPT, {}, headers)).status, 500);
  });

  it("is freed at once when it is released by the id that both legs had", async () => {
    await using pair = await startPair();
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    const released = await post(pair.decode, "/kv/release", { request_id: headers["x-request-id"] });
    assert.deepEqual(released, { status: 200, json: { released: 1 } });
    assert.equal((await post(pair.decode, "/kv/release", { request_id: headers["x-request-id"] })).json.released, 0);
    assert.equal(pair.decode.state().kv_tokens, 0);
  });

  it("is freed at the end of its lease when its sender is gone half-way", async () => {
    const clock = manualClock();
    await using decode = await startFast({ role: "decode", connector: "p2p-zmq", clock, kvLeaseMs: 1000 });
    const { sender, answer } = await reserve(decode);
    assert.equal(answer, "GRANT");
    sender.close();
    assert.equal(decode.state().kv_held[0]!.stage, "filling");
    await clock.pass(1000);
    assert.deepEqual([decode.state().kv_held, decode.state().kv_tokens, decode.state().leases_expired], [[], 0, 1]);
  });

  it("is not acknowledged before every block is there", async () => {
    await using decode = await startFast({ role: "decode", connector: "p2p-zmq" });
    const { sender } = await reserve(decode);
    await sender.send(["COMMIT", "x"]);
    const [type, , reason] = await sender.receive();
    assert.equal(type!.toString(), "REFUSE");
    assert.match(reason!.toString(), /missing_blocks/);
    sender.close();
  });
});

describe("p2p-zmq: KV that arrives after its request was settled", () => {
  const kvMetrics = async (engine: RunningEngine): Promise<string[]> => {
    const text = await (await fetch(`${engine.url}/metrics`)).text();
    return [...text.matchAll(/^tandem:kv_(?:held|late_total)(?:\{stage="(\w+)"\})? (\d+)/gm)].map(
      ([, stage = "late", count]) => `${stage} ${count!}`,
    );
  };

  it("is turned away and counted, when a silent link delivers it", async () => {
    await using pair = await startPair({ prefillMsPerToken: 0 });
    const { prefill, decode } = pair;
    const [proxyPort, target] = [await freePort(), Number(decode.kvAddress!.split(":")[1])];
    const link = { listen: { host: "127.0.0.1", port: proxyPort }, target: { host: "127.0.0.1", port: target } };
    const proxy = await startProxy([link]);
    try {
      const idOf = (index: number): string =>
        `___prefill_addr_${prefill.kvAddress!}___decode_addr_127.0.0.1:${proxyPort}_${String(index).padStart(32, "0")}`;
      const send = (index: number) => complete(prefill, PROMPT, { max_tokens: 1 }, { "x-request-id": idOf(index) });
      // Connected: bytes under way on the link are then those of the next requests.
      assert.equal((await send(0)).status, 200);
      proxy.setMode({ kind: "drop" });
      const answers = [1, 2, 3, 4].map(send);
      await eventually("they wait for decode", () => prefill.state().generation_tokens === 5);
      for (const index of [0, 1, 2, 3, 4]) await post(decode, "/kv/release", { request_id: idOf(index) });
      proxy.setMode({ kind: "pass" });
      for (const answer of answers) assert.match((await answer).json.error.message, /^kv_refused: settled/);
      const { kv_held: held, kv_tokens: tokens, leases_expired: expired } = decode.state();
      assert.deepEqual({ held, tokens, expired }, { held: [], tokens: 0, expired: 0 });
      assert.deepEqual(await kvMetrics(decode), ["filling 0", "ready 0", "claimed 0", "late 4"]);
    } finally {
      await proxy.close();
    }
  });

  it("has no use after its request was answered, or had found none", async () => {
    await using pair = await startPair();
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    await complete(pair.decode, PROMPT, {}, headers);
    const never = pairedHeaders(pair);
    await complete(pair.decode, PROMPT, {}, never);
    for (const { "x-request-id": id } of [headers, never]) {
      const { sender, answer } = await reserve(pair.decode, `cmpl-${id}-0`);
      sender.close();
      assert.equal(answer, "REFUSE settled");
    }
  });

  it("is counted by its stage until then", async () => {
    const clock = manualClock();
    await using decode = await startFast({ role: "decode", connector: "p2p-zmq", clock });
    await using prefill = await startFast({ role: "prefill", connector: "p2p-zmq" });
    const { sender } = await reserve(decode);
    const headers = pairedHeaders({ prefill, decode } as never);
    await complete(prefill, PROMPT, { max_tokens: 1 }, headers);
    assert.deepEqual(await kvMetrics(decode), ["filling 1", "ready 1", "claimed 0", "late 0"]);
    const leave = new AbortController();
    const running = post(decode, "/v1/completions", { prompt: PROMPT }, headers, leave.signal).catch(() => "left");
    await eventually("it is claimed", () => decode.state().kv_stages.claimed === 1);
    assert.deepEqual(await kvMetrics(decode), ["filling 1", "ready 0", "claimed 1", "late 0"]);
    leave.abort();
    assert.equal(await running, "left");
    sender.close();
  });

  it("is forgotten after a quarter of an hour, which no link survives", async () => {
    const clock = manualClock();
    await using decode = await startFast({ role: "decode", connector: "p2p-zmq", clock });
    await post(decode, "/kv/release", { request_id: "x" });
    await clock.pass(15 * 60_000);
    const { sender, answer } = await reserve(decode);
    sender.close();
    assert.equal(answer, "GRANT");
  });
});

describe("p2p-zmq with the fault upstream: as P2P NCCL of vLLM 0.23 fails", () => {
  it("hangs forever on KV that never came, with all other sequences, and shows it neither in health nor in the gauges", async () => {
    await using pair = await startPair({}, { faults: ["upstream"], decodeMsPerToken: 1 });
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    const leave = new AbortController();
    const response = await fetch(`${pair.decode.url}/v1/completions`, {
      method: "POST",
      signal: leave.signal,
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify({
        prompt: PROMPT,
        temperature: 0,
        max_tokens: 1_696,
        ignore_eos: true,
        stream: true,
      }),
    });
    const reader = response.body!.getReader();
    await reader.read();
    const missing = new AbortController();
    const hung = post(
      pair.decode,
      "/v1/completions",
      { prompt: PROMPT, max_tokens: 4 },
      pairedHeaders(pair),
      missing.signal,
    ).catch(() => "gone");
    while (pair.decode.state().waiting === 0) await new Promise(setImmediate);
    const before = pair.decode.state().generation_tokens;
    assert.equal((await fetch(`${pair.decode.url}/health`)).status, 200);
    const metrics = await (await fetch(`${pair.decode.url}/metrics`)).text();
    assert.match(metrics, /vllm:num_requests_running\{[^}]*\} 1\.0/);
    assert.match(metrics, /vllm:num_requests_waiting\{[^}]*\} 0\.0/);
    assert.equal(pair.decode.state().generation_tokens, before);
    missing.abort();
    leave.abort();
    assert.equal(await hung, "gone");
  });

  it("does not hang on an aborted request that arrives after the release of its KV", async () => {
    await using pair = await startPair({}, { faults: ["upstream"] });
    const headers = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, headers);
    const released = await post(pair.decode, "/kv/release", { request_id: headers["x-request-id"] });
    assert.equal(released.json.released, 1);
    const late = await complete(pair.decode, PROMPT, { max_tokens: 4 }, headers);
    assert.equal(late.status, 500);
    assert.match(late.json.error.message, /kv_released/);
    const next = pairedHeaders(pair);
    await complete(pair.prefill, PROMPT, { max_tokens: 1 }, next);
    assert.equal((await complete(pair.decode, PROMPT, { max_tokens: 4 }, next)).status, 200);
  });

  it("dies of a request without the paired id", async () => {
    const death = deferred();
    await using engine = await startSimEngine({
      role: "prefill",
      connector: "p2p-zmq",
      faults: ["upstream"],
      deathMs: 20,
      onDeath: death.resolve,
    });
    const { status, json } = await complete(engine, PROMPT, { max_tokens: 1 });
    assert.equal(status, 500);
    assert.match(json.error.message, /^EngineCore encountered an issue/);
    await within(death.promise, "the engine to die");
    await assert.rejects(fetch(`${engine.url}/health`));
  });
});
