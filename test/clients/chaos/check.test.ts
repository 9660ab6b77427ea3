import assert from "node:assert/strict";
import { POISONED } from "../../../clients/chaos/asks.ts";
import { check, CONTROL_GAP_MS, judge, type CheckInput } from "../../../clients/chaos/check.ts";
import type { Fault } from "../../../clients/chaos/injector.ts";
import { quantile } from "../../../clients/chaos/report.ts";
import type { RequestRecord } from "../../../clients/chaos/load.ts";
import type { SeenReceipt } from "../../../clients/chaos/watch.ts";

const RIGHT = { text: "one two three", tokens: 3, finishReason: "stop" };
const LEG = "0123456789abcdef0123456789abcdef";

const record = (o: Partial<RequestRecord> = {}): RequestRecord => ({
  number: 1,
  router: "router-1",
  ask: 0,
  stream: true,
  id: "cmpl-1",
  sentMs: 1_000,
  firstMs: 1_100,
  lastMs: 1_500,
  endMs: 1_510,
  ending: "completed",
  status: 200,
  message: "",
  text: RIGHT.text,
  chunks: 3,
  tokens: 3,
  finishReason: "stop",
  gapsMs: [10],
  slow: false,
  ...o,
});
const failed = (o: Partial<RequestRecord> = {}): RequestRecord =>
  record({ ending: "error", text: "one", message: "lost", ...o });
const fault = (o: Partial<Fault> = {}): Fault => ({
  index: 0,
  atMs: 0,
  kind: "kill-engine",
  target: "decode-1",
  durationMs: 0,
  beganMs: 1_400,
  healedMs: 3_000,
  skipped: undefined,
  ...o,
});
const receipt: SeenReceipt = {
  router: "router-1",
  errorCode: "engine_failed",
  fallbacks: [],
  legs: [{ legId: LEG, prefill: "prefill-1", decode: "decode-1", error: "" }],
};
const rules = (o: Partial<CheckInput>): string[] =>
  check({
    records: [],
    faults: [],
    receipts: new Map([["cmpl-1", receipt]]),
    answers: [RIGHT, RIGHT],
    kv: [],
    connector: "p2p-zmq",
    attached: false,
    slackMs: 0,
    ...o,
  }).violations.map(({ rule }) => rule);

describe("the checker of chaos", () => {
  it("accepts right answers, and clients that left", () => {
    assert.deepEqual(rules({ records: [record(), record({ ending: "left", text: "one t" })] }), []);
  });

  it("finds wrong answers: by text, usage or finish reason, complete or broken off", () => {
    const wrong = [{ text: "one two" }, { tokens: 4 }, { finishReason: "length" }].map((o) => record(o));
    assert.deepEqual(rules({ records: wrong }), ["wrong answer", "wrong answer", "wrong answer"]);
    assert.deepEqual(rules({ records: [failed({ text: "two" })], faults: [fault()] }), ["wrong answer"]);
  });

  it("finds requests that hang, and streams that end without [DONE]", () => {
    assert.deepEqual(
      rules({ records: [record({ ending: "hung", text: "" }), record({ ending: "malformed", text: "" })] }),
      ["hung", "malformed"],
    );
  });

  it("excuses an error by a fault on the request's instances, during the request", () => {
    assert.deepEqual(rules({ records: [failed()], faults: [fault()] }), []);
    assert.deepEqual(rules({ records: [failed()], faults: [fault({ target: "decode-2" })] }), ["untouched"]);
    assert.deepEqual(rules({ records: [failed()], faults: [fault({ beganMs: 2_000 })] }), ["untouched"]);
    assert.deepEqual(rules({ records: [failed()], faults: [fault({ skipped: "not done" })] }), ["untouched"]);
  });

  it("excuses no request that found nothing to run on, except where a dead partner wedges all of a role", () => {
    const nowhere = { ...receipt, errorCode: "no_instance", legs: [] };
    const o = { records: [failed({ text: "" })], faults: [fault()], receipts: new Map([["cmpl-1", nowhere]]) };
    assert.deepEqual(rules(o), ["untouched"]);
    assert.deepEqual(rules({ ...o, connector: "p2p-nccl" }), []);
  });

  it("finds errors that blame the client or are bugs, also where a fault explains that there is an error", () => {
    assert.deepEqual(rules({ records: [failed({ status: 400 })], faults: [fault()] }), ["wrong error"]);
    const bug = new Map([["cmpl-1", { ...receipt, errorCode: "internal" }]]);
    assert.deepEqual(rules({ records: [failed()], faults: [fault()], receipts: bug }), ["wrong error"]);
  });

  it("excuses the refusal of a body that failed on two engines of a role, and on no fewer", () => {
    const held = new Map([["cmpl-1", { ...receipt, errorCode: "query_of_death", legs: [] }]]);
    const early = { beganMs: -9_000, healedMs: -5_000 };
    const one = fault({ kind: "engine-fault", target: "decode-2", ...early });
    const other = fault({ kind: "engine-fault", target: "decode-3", ...early });
    const o = { records: [failed({ text: "", status: 500 })], receipts: held };
    assert.deepEqual(rules({ ...o, faults: [one, other] }), []);
    assert.deepEqual(rules({ ...o, faults: [one] }), ["untouched"]);
  });

  it("expects an error, and nothing but an error, for the poisoned request", () => {
    assert.deepEqual(rules({ records: [failed({ ask: 1, status: 500, text: "" })] }), []);
    assert.deepEqual(rules({ records: [record({ ask: 1 })] }), ["poison"]);
  });

  it("does not judge what a starved machine does, but wrong answers all the same", () => {
    const found = [
      { rule: "late" as const, what: "" },
      { rule: "wrong answer" as const, what: "" },
    ];
    assert.deepEqual(judge(found, 20), { broken: found, unjudged: [] });
    const starved = judge(found, CONTROL_GAP_MS + 1);
    assert.deepEqual(
      [starved.broken.map(({ rule }) => rule), starved.unjudged.map(({ rule }) => rule)],
      [["wrong answer"], ["late"]],
    );
  });

  it("gives a replayed stream more time, and finds a replay that wrote different text", () => {
    const again = (...fallbacks: string[]): Partial<CheckInput> => ({
      faults: [fault()],
      receipts: new Map([["cmpl-1", { ...receipt, fallbacks }]]),
    });
    assert.deepEqual(rules({ records: [failed({ endMs: 9_000 })], faults: [fault()] }), ["late"]);
    assert.deepEqual(
      rules({ records: [failed({ endMs: 9_000 })], ...again("replay:decode:instance_lost", "replay:failed") }),
      [],
    );
    assert.deepEqual(rules({ records: [failed()], ...again("replay:decode:instance_lost", "replay:diverged") }), [
      "wrong answer",
    ]);
  });

  it("accepts neither a drain nor a restart as an excuse", () => {
    assert.deepEqual(rules({ records: [failed()], faults: [fault({ kind: "drain" })] }), ["untouched"]);
    assert.deepEqual(rules({ records: [failed()], faults: [fault({ kind: "restart" })] }), ["untouched"]);
  });

  it("excuses a broken connection only by the death of its router", () => {
    const cut = failed({ ending: "cut" });
    assert.deepEqual(rules({ records: [cut], faults: [fault()] }), ["cut"]);
    const killed = (o: Partial<Fault> = {}) => fault({ kind: "kill-router", target: "router-1", ...o });
    assert.deepEqual(rules({ records: [cut], faults: [killed()] }), []);
    // The request was sent when its router had started again, and waited until that was killed once more.
    const waited = failed({ ending: "cut", text: "", sentMs: 1_300, lastMs: undefined, endMs: 3_000 });
    const twice = [killed({ beganMs: 500, healedMs: 1_400 }), killed({ beganMs: 2_950, healedMs: 4_000 })];
    assert.deepEqual(rules({ records: [waited], faults: twice }), []);
    assert.deepEqual(rules({ records: [waited], faults: twice.slice(0, 1) }), ["late"]);
  });

  it("finds requests that end later than their fault allows", () => {
    const late = failed({ lastMs: 1_400, endMs: 2_500 });
    assert.deepEqual(rules({ records: [late], faults: [fault()] }), ["late"]);
    assert.deepEqual(rules({ records: [late], faults: [fault()], slackMs: 1_000 }), []);
    assert.deepEqual(rules({ records: [late], faults: [fault({ kind: "freeze-engine" })] }), []);
  });

  it("finds KV that is unclaimed for too long, unless a fault hit the process that settles it", () => {
    const one = {
      instance: "decode-1",
      id: `cmpl-___${LEG}-0`,
      stage: "ready",
      bytes: 1,
      sinceMs: 1_000,
      lastSeenMs: 4_000,
    };
    const kv = [one];
    assert.deepEqual(rules({ kv }), ["orphan"]);
    assert.deepEqual(rules({ kv: [{ ...one, stage: "filling" }] }), ["orphan"], "also before it is complete");
    assert.deepEqual(rules({ kv: [{ ...one, lastSeenMs: 2_900 }] }), []);
    assert.deepEqual(rules({ kv, faults: [fault({ target: "router-1", kind: "kill-router" })] }), []);
    assert.deepEqual(rules({ kv, faults: [fault({ target: "decode-2" })] }), ["orphan"]);
    const killed = { kv: [{ ...one, lastSeenMs: 31_000 }], faults: [fault({ kind: "kill-wrapper" })] };
    assert.deepEqual(rules(killed), ["orphan"]);
    assert.deepEqual(rules({ ...killed, attached: true }), [], "the engine lives on, and has a lease");
    // Prefill took its time, and decode took the KV.
    const answered = (o: Partial<SeenReceipt>): CheckInput["receipts"] =>
      new Map([["cmpl-1", { ...receipt, errorCode: "", ...o }]]);
    assert.deepEqual(rules({ kv, receipts: answered({}) }), []);
    const legs = [
      { ...receipt.legs[0]!, error: "cancelled" },
      { ...receipt.legs[0]!, legId: "f" },
    ];
    assert.deepEqual(rules({ kv, receipts: answered({ fallbacks: ["hedge:transfer"], legs }) }), ["orphan"]);
  });

  it("excuses what P2P NCCL does to all that a prefill engine serves, for as long as that may take to be found", () => {
    const elsewhere = [fault({ target: "decode-2", kind: "halve-kv-link" })];
    const hung = failed({ text: "", endMs: 15_000 });
    assert.deepEqual(rules({ records: [hung], faults: elsewhere }), ["untouched"]);
    const code = (errorCode: string): Partial<CheckInput> => ({
      connector: "p2p-nccl",
      receipts: new Map([["cmpl-1", { ...receipt, errorCode }]]),
    });
    assert.deepEqual(rules({ records: [hung], faults: elsewhere, ...code("leg_stalled") }), []);
    assert.deepEqual(rules({ records: [hung], faults: elsewhere, ...code("engine_failed") }), ["untouched"]);
    const later = failed({ text: "", sentMs: 30_000, firstMs: undefined, lastMs: undefined, endMs: 31_000 });
    assert.deepEqual(rules({ records: [later], faults: elsewhere, ...code("leg_stalled") }), ["untouched"]);
    const onPrefill = [fault({ target: "prefill-2", kind: "kill-engine" })];
    assert.deepEqual(rules({ records: [hung], faults: onPrefill, ...code("leg_stalled") }), ["untouched"]);
  });

  it("excuses a poisonous body that a stopping router turned away, and no other that got no error", () => {
    const poison = record({ ask: 1, ending: "cut", status: 0, text: "" });
    const answers = [RIGHT, ...Array.from({ length: POISONED }, () => RIGHT)];
    assert.deepEqual(rules({ records: [poison], answers }), ["poison"]);
    const stopping = [fault({ kind: "restart-router", target: "router-1" })];
    assert.deepEqual(rules({ records: [poison], answers, faults: stopping }), []);
  });
});

describe("a quantile of a histogram", () => {
  it("lies inside its bucket", () => {
    const counts = new Map([
      [0.01, 50],
      [0.02, 100],
      [Infinity, 100],
    ]);
    assert.equal(quantile(counts, 0.5), 0.01);
    assert.equal(quantile(counts, 0.75), 0.015);
    assert.ok(Number.isNaN(quantile(new Map(), 0.5)));
  });
});
