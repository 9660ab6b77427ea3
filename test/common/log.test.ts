import assert from "node:assert/strict";
import { Writable } from "node:stream";
import { createLog, type LogOptions } from "../../services/common/log.ts";

function capture(o: Partial<LogOptions> & { isTTY?: boolean } = {}) {
  let text = "";
  const out = Object.assign(new Writable({ write: (chunk, _encoding, done) => ((text += String(chunk)), done()) }), {
    isTTY: o.isTTY,
  });
  return {
    log: createLog({ name: "router", out, ...o }),
    text: () => text,
    json: () => JSON.parse(text) as Record<string, unknown>,
  };
}

describe("a log line", () => {
  it("is one JSON object away from a terminal", () => {
    const { log, text, json } = capture();
    log.info("request ended", { requestId: "r1", ttftMs: 12.5, count: 3n, gone: undefined });
    assert.match(text(), /^\{.*\}\n$/);
    const { time, ...rest } = json();
    assert.ok(!Number.isNaN(Date.parse(String(time))));
    assert.deepEqual(rest, {
      level: "info",
      name: "router",
      msg: "request ended",
      requestId: "r1",
      ttftMs: 12.5,
      count: "3",
    });
  });

  it("carries the fields of its child log and can't have its own four replaced", () => {
    const { log, json } = capture();
    log.child({ legId: "l1", name: "x" }).child({ side: "prefill" }).warn("late", { time: 5 });
    const { legId, side, name, time_, level, name_ } = json();
    assert.deepEqual(
      { legId, side, name, time_, level, name_ },
      { legId: "l1", side: "prefill", name: "router", time_: 5, level: "warn", name_: "x" },
    );
  });

  it("is not written below its level", () => {
    const { log, text } = capture({ level: "warn" });
    log.debug("a");
    log.info("b");
    log.child({}).info("c");
    assert.equal(text(), "");
    log.error("d");
    assert.notEqual(text(), "");
  });

  it("never holds a secret, at any depth", () => {
    const { log, text, json } = capture();
    log.info("x", {
      token: "hush",
      joinToken: "hush",
      api_key: "hush",
      headers: { authorization: "hush", list: [{ apiKey: "hush" }] },
      secret: "hush",
    });
    assert.doesNotMatch(text(), /hush/);
    assert.equal(json()["token"], "[redacted]");
    const counts = capture();
    counts.log.info("x", { queuedTokens: 5, token_count: 6, key: "queue.limit", token: "", hasFirstToken: true });
    const { queuedTokens, token_count, key, token, hasFirstToken } = counts.json();
    assert.deepEqual([queuedTokens, token_count, key, token, hasFirstToken], [5, 6, "queue.limit", "", true]);
  });

  it("shows an error with its stack, code and causes", () => {
    const { log, json } = capture();
    log.error("failed", {
      error: new Error("outer", { cause: Object.assign(new Error("inner"), { code: "ECONNRESET" }) }),
    });
    const error = json()["error"] as { message: string; stack: string; cause: { message: string; code: string } };
    assert.deepEqual([error.message, error.cause.message, error.cause.code], ["outer", "inner", "ECONNRESET"]);
    assert.match(error.stack, /log\.test/);
  });

  it("survives any value", () => {
    const { log, json } = capture();
    const circle: Record<string, unknown> = {};
    circle["self"] = circle;
    log.info("odd", { circle, bytes: Buffer.from("abc"), date: new Date(0), nothing: null, fn: () => {}, list: [1n] });
    assert.deepEqual(
      [json()["bytes"], json()["date"], json()["nothing"], json()["list"]],
      ["[3 bytes]", "1970-01-01T00:00:00.000Z", null, ["1"]],
    );
  });

  it("is text on a terminal, with an error's stack below", () => {
    const { log, text } = capture({ isTTY: true });
    log.warn("request late", { requestId: "r 1", ms: 5, error: new Error("why") });
    const plain = text().replaceAll(/\x1b\[\d+m/g, "");
    assert.match(
      plain,
      /^\d\d:\d\d:\d\d\.\d{3} warn {2}router {2}request late {2}requestId="r 1" {2}ms=5 {2}error=why\n {4}Error: why\n {8}at /,
    );
    assert.match(text(), /\x1b\[33m/);
    const uncoloured = capture({ format: "text" });
    uncoloured.log.info("x");
    assert.doesNotMatch(uncoloured.text(), /\x1b/);
  });
});
