import assert from "node:assert/strict";
import type { RunningEngine, SimEngineOptions } from "../../services/tiny-engine/server.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, freePort, within } from "../support/waits.ts";
import { complete, startFast, textOf } from "./client.ts";
import { exchange, type RawRequest, type RawResponse } from "./raw-http.ts";
import { essence, recordedRequest, recordedResponse } from "./transcripts.ts";

const LIKE_RECORDED = { connector: "nixl", maxLength: 512, kvBlockSize: 32 } as const;
const OFFER = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};
const PROMPT = "Tell me a long story about the captain and the island. ".repeat(8);

type Params = Record<string, unknown>;

function startPrefill(more: SimEngineOptions = {}): Promise<RunningEngine> {
  return startFast({ ...LIKE_RECORDED, role: "prefill", ...more });
}
function startDecode(more: SimEngineOptions = {}): Promise<RunningEngine> {
  return startFast({ ...LIKE_RECORDED, role: "decode", handshakeTimeoutMs: 100, ...more });
}

async function prefillFor(prefill: RunningEngine, prompt: string): Promise<Params> {
  const { json } = await complete(prefill, prompt, { max_tokens: 1, kv_transfer_params: OFFER });
  return json.kv_transfer_params as Params;
}

/** Sends a recorded request, with `params` in place of the recorded ones. */
function replay(engine: RunningEngine, name: string, params?: Params): Promise<RawResponse> {
  const { json, ...request }: RawRequest & { json: Record<string, unknown> } = recordedRequest(name);
  const body = params === undefined ? json : { ...json, kv_transfer_params: params };
  return exchange(engine.url, { ...request, body: JSON.stringify(body) });
}

function paramsOf(response: RawResponse): Params {
  return JSON.parse(response.chunks[0]!).kv_transfer_params as Params;
}

describe("nixl: the recorded flows between a prefill and a decode engine", () => {
  for (const flow of ["completions-pd", "chat-pd", "completions-pd-token-ids", "completions-pd-used-twice"]) {
    it(`${flow}: prefill, then decode with what it returned`, async () => {
      await using prefill = await startPrefill();
      await using decode = await startDecode();
      const steps = flow.endsWith("-pd")
        ? ["1-prefill", "2-decode", "3-prefill", "4-decode-stream"]
        : flow.endsWith("used-twice")
          ? ["1-prefill", "2-decode", "3-decode-again"]
          : ["1-prefill", "2-decode"];
      let params: Params = {};
      for (const step of steps) {
        const name = `${flow}-${step}`;
        const answered = step.includes("prefill") ? await replay(prefill, name) : await replay(decode, name, params);
        assert.deepEqual(essence(answered), essence(recordedResponse(name)), name);
        if (step.includes("prefill")) params = paramsOf(answered);
      }
    });
  }

  for (const name of [
    "prefill-stream",
    "prefill-finish-stop-no-kv",
    "prefill-max-tokens-4",
    "prefill-only-do-remote-decode",
    "prefill-n2",
    "prefill-short-prompt",
  ]) {
    it(`completions-pd-${name}`, async () => {
      await using prefill = await startPrefill();
      assert.deepEqual(
        essence(await replay(prefill, `completions-pd-${name}`)),
        essence(recordedResponse(`completions-pd-${name}`)),
      );
    });
  }

  it("completions-pd-decode-without-kv-params: an ordinary request", async () => {
    await using decode = await startDecode();
    const name = "completions-pd-decode-without-kv-params";
    assert.deepEqual(essence(await replay(decode, name)), essence(recordedResponse(name)));
  });

  it("completions-pd-same-length-other-prompt: 200, and the text of the other prompt's KV", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    const params = await prefillFor(prefill, "a".repeat(80));
    const wrong = await complete(decode, "b".repeat(80), { kv_transfer_params: params });
    const right = await complete(decode, "a".repeat(80), {
      kv_transfer_params: await prefillFor(prefill, "a".repeat(80)),
    });
    assert.equal(wrong.json.choices[0].text, right.json.choices[0].text);
    assert.notEqual(wrong.json.choices[0].text, await textOf(complete(decode, "b".repeat(80))));
  });

  it("completions-pd-bad-engine-id: fails at once", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode({ handshakeTimeoutMs: 60_000 });
    const params = { ...(await prefillFor(prefill, PROMPT)), remote_engine_id: "00000000-0000-0000-0000-000000000000" };
    const name = "completions-pd-bad-engine-id-2-decode";
    assert.deepEqual(essence(await replay(decode, name, params)), essence(recordedResponse(name)));
  });

  it("completions-pd-dead-prefill: 500 at once for a known engine, after the handshake's time for an unknown one, and 200 with an error event when streamed", async () => {
    await using decode = await startDecode();
    const prefill = await startPrefill();
    await complete(decode, PROMPT, { kv_transfer_params: await prefillFor(prefill, PROMPT) });
    const params = await prefillFor(prefill, PROMPT);
    await prefill[Symbol.asyncDispose]();
    assert.deepEqual(
      essence(await replay(decode, "completions-pd-dead-prefill-known-engine", params)),
      essence(recordedResponse("completions-pd-dead-prefill-known-engine")),
    );
    const unknown = { ...params, remote_engine_id: "1", remote_port: await freePort() };
    for (const name of ["completions-pd-dead-prefill-new-engine", "completions-pd-dead-prefill-new-engine-stream"]) {
      assert.deepEqual(essence(await replay(decode, name, unknown)), essence(recordedResponse(name)), name);
    }
    assert.deepEqual(
      essence(await replay(decode, "completions-pd-dead-decode-still-serves")),
      essence(recordedResponse("completions-pd-dead-decode-still-serves")),
    );
  });

  for (const [flow, change] of [
    ["crash-other-prompt", (params: Params): Params => params],
    [
      "crash-missing-keys",
      ({ do_remote_prefill, remote_engine_id }: Params): Params => ({ do_remote_prefill, remote_engine_id }),
    ],
  ] as const) {
    it(`completions-pd-${flow}: kills the decode engine`, async () => {
      await using prefill = await startPrefill();
      const death = deferred();
      // The prompt that needs more blocks was measured with another tokenizer; a shorter offer does the same here.
      const offered = await prefillFor(prefill, flow === "crash-other-prompt" ? "hi" : PROMPT);
      await using decode = await startDecode({ deathMs: 100, onDeath: death.resolve });
      const name = `completions-pd-${flow}-2-decode`;
      assert.deepEqual(essence(await replay(decode, name, change(offered))), essence(recordedResponse(name)));
      assert.equal((await fetch(`${decode.url}/health`)).status, 503);
      assert.equal((await complete(decode, "hi")).status, 500);
      await within(death.promise, "the engine to die");
      await assert.rejects(fetch(`${decode.url}/health`));
    });
  }
});

describe("nixl: transfers", () => {
  it("give the text of one engine that does both, and free the blocks once they were read", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using alone = await startFast({ maxLength: 512 });
    const params = await prefillFor(prefill, PROMPT);
    assert.equal(prefill.state().kv_held.length, 1);
    assert.equal(
      await textOf(complete(decode, PROMPT, { kv_transfer_params: params })),
      await textOf(complete(alone, PROMPT)),
    );
    await within(
      (async () => {
        while (prefill.state().kv_held.length > 0) await new Promise(setImmediate);
      })(),
      "the prefill engine to hear of it",
    );
    assert.deepEqual([prefill.state().kv_tokens, decode.state().kv_tokens], [0, 0]);
    assert.match(
      await (await fetch(`${decode.url}/metrics`)).text(),
      /vllm:nixl_bytes_transferred_count\{[^}]*\} 1\.0/,
    );
  });

  it("still work after the lease until another request needs the blocks; the end of the lease is counted", async () => {
    const clock = manualClock();
    await using decode = await startDecode();
    await using alone = await startFast({ maxLength: 512 });
    // Only the lease needs the clock: the engine itself is stepped by it as well.
    await using prefill = await startPrefill({ clock, kvLeaseMs: 1000 });
    const pending = prefillFor(prefill, PROMPT);
    while (prefill.state().kv_held.length === 0) {
      await new Promise(setImmediate);
      await clock.pass(0);
    }
    const params = await pending;
    await clock.pass(1000);
    assert.deepEqual([prefill.state().leases_expired, prefill.state().kv_held], [1, []]);
    assert.equal(
      await textOf(complete(decode, PROMPT, { kv_transfer_params: params })),
      await textOf(complete(alone, PROMPT)),
    );
    assert.match(
      await (await fetch(`${prefill.url}/metrics`)).text(),
      /vllm:nixl_num_kv_expired_reqs_total\{[^}]*\} 1\.0/,
    );
  });

  it("are between engines with the same key, and no others", async () => {
    const kvKey = "of this deployment";
    await using prefill = await startPrefill({ kvKey });
    const params = await prefillFor(prefill, PROMPT);
    for (const [more, status] of [
      [{}, 500],
      [{ kvKey: "of another one" }, 500],
      [{ kvKey }, 200],
    ] as const) {
      await using decode = await startDecode(more);
      assert.equal((await complete(decode, PROMPT, { kv_transfer_params: params })).status, status);
    }
  });

  it("fail when the two run different weights", async () => {
    await using prefill = await startPrefill({ hashSalt: "other" });
    await using decode = await startDecode();
    assert.equal(
      (await complete(decode, PROMPT, { kv_transfer_params: await prefillFor(prefill, PROMPT) })).status,
      500,
    );
  });

  it("answer 400 instead of dying with the fault tame", async () => {
    await using decode = await startDecode({ faults: ["tame"] });
    const { status, json } = await complete(decode, PROMPT, { kv_transfer_params: { do_remote_prefill: true } });
    assert.equal(status, 400);
    assert.match(json.error.message, /remote_block_ids/);
    assert.equal((await fetch(`${decode.url}/health`)).status, 200);
  });

  it("are stopped when the client leaves", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode({ handshakeTimeoutMs: 60_000 });
    prefill.setFault("silent-kv");
    const outcome = decode.nextOutcome();
    const leave = new AbortController();
    const asked = fetch(`${decode.url}/v1/completions`, {
      method: "POST",
      signal: leave.signal,
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: PROMPT, kv_transfer_params: await prefillFor(prefill, PROMPT) }),
    }).catch(() => {});
    while (decode.state().waiting === 0) await new Promise(setImmediate);
    leave.abort();
    await asked;
    assert.equal(await within(outcome, "the outcome"), "aborted");
  });
});
