import assert from "node:assert/strict";
import { FAULT_KINDS, parseFault } from "../../services/tiny-engine/faults.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, within } from "../support/waits.ts";
import { complete, events, pairedHeaders, post, startFast, startPair, streamedText } from "./client.ts";

const BODY = { prompt: "the sea", temperature: 0, max_tokens: 12, ignore_eos: true };
const PATH = "/v1/completions";

describe("faults", () => {
  it("are read from text and from JSON alike, and refused with what is known", () => {
    assert.deepEqual(parseFault("stall:after_tokens=3:count=2"), { kind: "stall", afterTokens: 3, count: 2 });
    assert.deepEqual(parseFault({ kind: "slow", extra_ms: 20 }), parseFault("slow:extra_ms=20"));
    assert.throws(() => parseFault("slew"), new RegExp(FAULT_KINDS.join(", ")));
    assert.throws(() => parseFault("slow:extra=1"), /extra_ms/);
    assert.throws(() => parseFault("slow:extra_ms=soon"), /must be a number/);
  });

  it("are set, shown and cleared over HTTP where asked for, and used up by their count", async () => {
    await using engine = await startFast({ inject: true });
    await post(engine, "/sim/fault", { kind: "refuse", status: 429, count: 2 });
    assert.equal((await complete(engine, "a")).status, 429);
    assert.deepEqual(((await (await fetch(`${engine.url}/sim/state`)).json()) as { faults: unknown }).faults, [
      { kind: "refuse", status: 429, count: 1 },
    ]);
    assert.equal((await complete(engine, "a")).status, 429);
    assert.equal((await complete(engine, "a")).status, 200);
    await post(engine, "/sim/fault", "refuse");
    await fetch(`${engine.url}/sim/fault`, { method: "DELETE" });
    assert.equal((await complete(engine, "a")).status, 200);
    assert.equal((await post(engine, "/sim/fault", { kind: "nonsense" })).status, 400);
  });

  it("are taken from nobody, and no state is shown, unless asked for", async () => {
    await using engine = await startFast();
    assert.equal((await post(engine, "/sim/fault", "hang")).status, 404);
    assert.equal((await fetch(`${engine.url}/sim/state`)).status, 404);
    assert.deepEqual(engine.state().faults, []);
  });

  it("refuse with the status asked for, in vLLM's error body", async () => {
    await using engine = await startFast({ faults: ["refuse:status=500"] });
    const { status, json } = await complete(engine, "a");
    assert.deepEqual(
      [status, json.error.code, Object.keys(json.error)],
      [500, 500, ["message", "type", "param", "code"]],
    );
  });

  it("stall a stream after a number of tokens, holding its slot until the client leaves", async () => {
    await using engine = await startFast({ faults: ["stall:after_tokens=3:count=1"], kvSlots: 1 });
    const leave = new AbortController();
    const response = await fetch(engine.url + PATH, {
      method: "POST",
      signal: leave.signal,
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...BODY, stream: true }),
    });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let seen = "";
    while (seen.split("data: ").length <= 3) seen += (await reader.read()).value ?? "";
    assert.equal(seen.split("data: ").length - 1, 3);
    const next = complete(engine, "another");
    while (engine.state().waiting === 0) await new Promise(setImmediate);
    assert.equal(engine.state().running, 1);
    leave.abort();
    assert.equal((await next).status, 200);
    await reader.cancel().catch(() => {});
  });

  it("stall a request so that it says nothing at all", async () => {
    await using engine = await startFast({ faults: ["stall"] });
    const leave = new AbortController();
    const outcome = engine.nextOutcome();
    const asked = post(engine, PATH, BODY, {}, leave.signal).catch(() => "gone");
    while (engine.state().running === 0) await new Promise(setImmediate);
    assert.equal(engine.state().generation_tokens, 0);
    leave.abort();
    assert.deepEqual([await asked, await outcome], ["gone", "aborted"]);
  });

  it("slow a request down without slowing the others", async () => {
    const clock = manualClock();
    await using engine = await startFast({ clock, decodeMsPerToken: 10, faults: ["slow:extra_ms=90:count=1"] });
    const slow = complete(engine, "slow", { max_tokens: 5, ignore_eos: true });
    while (engine.state().waiting + engine.state().running < 1) await new Promise(setImmediate);
    const plain = complete(engine, "plain", { max_tokens: 5, ignore_eos: true });
    while (engine.state().waiting + engine.state().running < 2) await new Promise(setImmediate);
    const generated: number[] = [];
    for (let ms = 0; ms < 60; ms += 10) {
      await clock.pass(10);
      generated.push(engine.state().generation_tokens);
    }
    assert.equal((await plain).json.usage.completion_tokens, 5);
    assert.ok(generated.at(-1)! < 8, String(generated));
    await clock.pass(1000);
    assert.equal((await slow).json.usage.completion_tokens, 5);
  });

  it("end a stream with an error event and [DONE]", async () => {
    await using engine = await startFast({ faults: ["error-event:after_tokens=4"] });
    const { status, events: list } = await events(engine, PATH, BODY);
    assert.equal(status, 200);
    assert.equal(list.length, 6);
    assert.equal(
      list.at(-2),
      '{"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}',
    );
    assert.equal(list.at(-1), "[DONE]");
    assert.equal((await complete(engine, "not streamed")).status, 500);
  });

  it("break a stream off in the middle of an event", async () => {
    await using engine = await startFast({ faults: ["half-event:after_tokens=4"] });
    const { events: list, complete: whole } = await events(engine, PATH, BODY);
    assert.equal(whole, false);
    assert.throws(() => JSON.parse(list.at(-1)!));
    assert.ok(streamedText(list.slice(0, -1)).startsWith("(simulated)"));
    await assert.rejects(complete(engine, "not streamed"));
  });

  it("close every socket of the instance that dies, and of no other", async () => {
    const death = deferred();
    await using engine = await startFast({ faults: ["die:after_tokens=3"], onDeath: death.resolve });
    await using other = await startFast();
    const { complete: whole } = await events(engine, PATH, BODY);
    await within(death.promise, "the death");
    assert.equal(whole, false);
    await assert.rejects(fetch(`${engine.url}/health`));
    assert.equal((await complete(other, "a")).status, 200);
  });

  it("hang the whole engine, whose health stays good, until they are cleared", async () => {
    await using engine = await startFast({ faults: ["hang"] });
    const pending = complete(engine, "a");
    while (engine.state().waiting === 0) await new Promise(setImmediate);
    assert.equal((await fetch(`${engine.url}/health`)).status, 200);
    engine.clearFaults();
    assert.equal((await pending).status, 200);
  });

  it("lose KV that was acknowledged, and lie about the model", async () => {
    await using pair = await startPair({}, { faults: ["drop-kv:count=1"] });
    const { prefill, decode } = pair;
    const headers = pairedHeaders(pair);
    assert.equal((await complete(prefill, "the sea", { max_tokens: 1 }, headers)).status, 200);
    assert.match((await complete(decode, "the sea", {}, headers)).json.error.message, /^kv_missing/);
    prefill.setFault({ kind: "wrong-model", count: 1 });
    const refused = await complete(prefill, "the sea", { max_tokens: 1 }, pairedHeaders(pair));
    assert.match(refused.json.error.message, /wrong_model/);
  });
});
