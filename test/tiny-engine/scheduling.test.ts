import assert from "node:assert/strict";
import { connect } from "node:net";
import { once } from "node:events";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { RunningEngine } from "../../services/tiny-engine/server.ts";
import { manualClock, type ManualClock } from "../support/manual-clock.ts";
import { within } from "../support/waits.ts";
import { complete, post, startFast } from "./client.ts";

/** Until `count` sequences are there: requests travel over real sockets, whatever the clock shows. */
async function arrived(engine: RunningEngine, count: number): Promise<void> {
  await within(
    (async () => {
      while (engine.state().running + engine.state().waiting < count) await new Promise(setImmediate);
    })(),
    `${count} requests to arrive`,
  );
}

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/** Bytes that this process holds on to, garbage left out. */
function liveBytes(): number {
  collect();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

/** The tokens generated after each of `steps` moves of the clock. */
async function progress(engine: RunningEngine, clock: ManualClock, stepMs: number, steps: number): Promise<number[]> {
  const tokens: number[] = [];
  for (let step = 0; step < steps; step++) {
    await clock.pass(stepMs);
    tokens.push(engine.state().generation_tokens);
  }
  return tokens;
}

describe("the sim's clock", () => {
  it("takes the prompt's time, then gives a token each decode step", async () => {
    const clock = manualClock();
    await using engine = await startFast({ clock, prefillMsPerToken: 1, decodeMsPerToken: 10, requestMs: 5 });
    const answer = complete(engine, [1, 10, 11, 12, 13], { max_tokens: 4, ignore_eos: true });
    await arrived(engine, 1);
    await clock.pass(9);
    assert.equal(engine.state().generation_tokens, 0);
    assert.deepEqual(await progress(engine, clock, 1, 1), [1]);
    assert.deepEqual(await progress(engine, clock, 5, 6), [1, 2, 2, 3, 3, 4]);
    assert.equal((await answer).json.usage.completion_tokens, 4);
  });

  it("gives every running sequence its token in the same step, with one timer for all", async () => {
    const clock = manualClock();
    await using engine = await startFast({ clock, decodeMsPerToken: 10 });
    const answers = Array.from({ length: 30 }, (_, index) =>
      complete(engine, `prompt ${index}`, { max_tokens: 5, ignore_eos: true }),
    );
    await arrived(engine, 30);
    await clock.pass(0);
    assert.equal(engine.state().generation_tokens, 30);
    assert.equal(clock.pending, 1);
    assert.deepEqual(await progress(engine, clock, 10, 4), [60, 90, 120, 150]);
    await Promise.all(answers);
  });

  it("slows running answers down while a long prompt is computed over several steps", async () => {
    const clock = manualClock();
    await using engine = await startFast({ clock, prefillMsPerToken: 1, decodeMsPerToken: 10, stepTokenLimit: 20 });
    const answer = complete(engine, [1, 10], { max_tokens: 50, ignore_eos: true });
    await arrived(engine, 1);
    await clock.pass(2);
    const long = complete(
      engine,
      Array.from({ length: 60 }, (_, index) => 10 + index),
      { max_tokens: 1 },
    );
    await arrived(engine, 2);
    await clock.pass(10);
    const before = engine.state().generation_tokens;
    // Three steps of 20 prompt tokens and one decode each: 30 ms a token instead of 10.
    assert.deepEqual(
      (await progress(engine, clock, 30, 3)).map((tokens) => tokens - before),
      [1, 2, 4],
    );
    await long;
    await clock.pass(1000);
    await answer;
  });

  it("sleeps when there is nothing to do", async () => {
    const clock = manualClock();
    await using engine = await startFast({ clock, decodeMsPerToken: 10 });
    const answer = complete(engine, "a", { max_tokens: 2, ignore_eos: true });
    await arrived(engine, 1);
    await clock.pass(20);
    await answer;
    assert.equal(clock.pending, 0);
  });
});

describe("the sim's limits", () => {
  it("makes requests without a free slot wait", async () => {
    const clock = manualClock();
    await using engine = await startFast({ clock, decodeMsPerToken: 10, kvSlots: 2 });
    const answers = ["a", "b", "c"].map((prompt) => complete(engine, prompt, { max_tokens: 3, ignore_eos: true }));
    await arrived(engine, 3);
    await clock.pass(0);
    assert.deepEqual([engine.state().running, engine.state().waiting], [2, 1]);
    await clock.pass(20);
    assert.deepEqual([engine.state().running, engine.state().waiting], [1, 0]);
    await clock.pass(30);
    assert.deepEqual(
      (await Promise.all(answers)).map(({ status }) => status),
      [200, 200, 200],
    );
  });

  it("tells that a chat of half a million tokens is too long", async () => {
    await using engine = await startFast();
    const content = "word ".repeat(500_000);
    const { status, json } = await post(engine, "/v1/chat/completions", { messages: [{ role: "user", content }] });
    assert.equal(status, 400);
    assert.match(json.error.message, /context length/);
  });

  it("preempts the newest sequence when the KV cache is full, and finishes it later", async () => {
    await using engine = await startFast({ kvTokenLimit: 64, kvSlots: 4 });
    await using roomy = await startFast();
    const options = { max_tokens: 40, ignore_eos: true };
    const answers = await Promise.all(
      ["the sea", "the sun", "the sky"].map((prompt) => complete(engine, prompt, options)),
    );
    for (const [index, prompt] of ["the sea", "the sun", "the sky"].entries()) {
      assert.equal(answers[index]!.json.choices[0].text, (await complete(roomy, prompt, options)).json.choices[0].text);
    }
    const metrics = await (await fetch(`${engine.url}/metrics`)).text();
    assert.ok(Number(/vllm:num_preemptions_total\{[^}]*\} (\S+)/.exec(metrics)![1]) > 0);
    assert.equal(engine.state().kv_tokens, 0);
  });

  it("frees the slot and the KV of a client that leaves, streamed or not", async () => {
    for (const stream of [true, false]) {
      await using engine = await startFast({ decodeMsPerToken: 1 });
      const outcome = engine.nextOutcome();
      const leave = new AbortController();
      const asked = fetch(`${engine.url}/v1/completions`, {
        method: "POST",
        signal: leave.signal,
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ prompt: "a", max_tokens: 8000, ignore_eos: true, stream }),
      }).catch(() => {});
      while (engine.state().generation_tokens === 0) await new Promise(setImmediate);
      leave.abort();
      await asked;
      assert.equal(await within(outcome, "the outcome"), "aborted");
      assert.deepEqual([engine.state().running, engine.state().kv_tokens], [0, 0]);
    }
  });

  it("buffers little for a client that does not read, and sends everything once it reads", async () => {
    await using engine = await startFast({ maxLength: 200_000 });
    const whole = await complete(engine, "a", { max_tokens: 50_000, ignore_eos: true });
    const outcome = engine.nextOutcome();
    const { hostname, port } = new URL(engine.url);
    const socket = connect(Number(port), hostname);
    const body = JSON.stringify({ prompt: "a", temperature: 0, max_tokens: 50_000, ignore_eos: true, stream: true });
    socket.pause();
    socket.write(
      `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    const beforeBytes = liveBytes();
    await within(
      (async () => {
        while (engine.state().generation_tokens < 100_000) await new Promise((resolve) => setTimeout(resolve, 5));
      })(),
      "the answer to be generated",
      15_000,
    );
    // As events they are 12 MB, of which the sockets take 4.
    const keptBytes = liveBytes() - beforeBytes;
    assert.ok(keptBytes < 5_000_000, String(keptBytes));
    let received = "";
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => {
      received += text;
    });
    socket.resume();
    await once(socket, "end");
    assert.equal(await outcome, "finished");
    assert.equal(received.endsWith("data: [DONE]\n\n\r\n0\r\n\r\n"), true);
    const text = [...received.matchAll(/"text":("(?:[^"\\]|\\.)*")/g)]
      .map((match) => JSON.parse(match[1]!) as string)
      .join("");
    assert.equal(text, whole.json.choices[0].text);
  });
});
