// Which bodies are condemned, and which are not: courses of failures and successes on two prefill and three decode
// instances, written as the words in which one would tell them.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import type { LegRun } from "../../../services/router/leg/run.ts";
import { Quarantine, type QuarantineLimits } from "../../../services/router/relay/quarantine.ts";
import { watchQueries } from "../../../services/router/relay/query-of-death.ts";
import type { RelayRequest } from "../../../services/router/request/request.ts";
import { silentLog } from "../../support/log-sink.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { viewOf } from "../support/fleet.ts";

const HOLD_MS = 300_000;

/**
 * "A p1 500", "A p1 dies" (a body fails there), "B p1 ok" (it is served there), "+60 s".
 * Each body has a size of its own, but a and A share one.
 */
function tell(story: string, limits: Partial<QuarantineLimits> = {}, alone = false) {
  const quarantine = new Quarantine<string>({
    current: { quarantineLimit: 4, quarantineHoldMs: HOLD_MS, ...limits },
  });
  let nowMs = 1_000_000;
  const condemned: string[] = [];
  const forgiven: string[] = [];
  let released = 0;
  for (const sentence of story.split(",").map((one) => one.trim())) {
    const [digest, where, how] = sentence.split(" ") as [string, string, string];
    const size = digest.toUpperCase().charCodeAt(0);
    if (digest.startsWith("+")) nowMs += Number(digest.slice(1)) * 1_000;
    else if (how === "ok") {
      if (quarantine.succeeded([where], size, quarantine.isWatching(nowMs) ? digest : undefined, nowMs)) released += 1;
    } else {
      const side = where.startsWith("p") ? "prefill" : "decode";
      const kind = how === "500" ? "answered" : "died";
      const failure = { digest, size, side, instanceId: where, how: kind, alone, leg: sentence } as const;
      const answer = quarantine.failed(failure, nowMs);
      released += answer.released.length;
      if (answer.decision.kind === "unknown") continue;
      condemned.push(sentence);
      forgiven.push(...answer.decision.forgiven);
    }
  }
  const holdMs = (digest: string): number => (quarantine.holdOn(digest, nowMs)?.untilMs ?? nowMs) - nowMs;
  return { condemned, forgiven, released, holdMs, held: quarantine.heldCount(nowMs), quarantine, nowMs };
}

const SERVED = "X p1 ok, X p2 ok, X d1 ok, X d2 ok, X d3 ok";

describe("a body is condemned", () => {
  for (const [what, story, forgiven] of [
    ["when it failed on two instances that serve others", "A p1 500, A p2 500", "A p1 500, A p2 500"],
    ["on the decode side as well", "A d1 500, A d3 500", "A d1 500, A d3 500"],
    ["by the attempts of several requests", "A p1 500, +30 s, A p2 500", "A p1 500, A p2 500"],
    ["when two engines died of it alone", "A d1 dies, A d2 dies", "A d1 dies, A d2 dies"],
    ["when others were aboard only one of them", "A d1 dies, B d1 dies, A d2 dies", "A d1 dies, A d2 dies"],
    ["in spite of another that failed there before the last success", "B p1 500, X p1 ok, A p1 500, A p2 500", ""],
    ["and so are its attempts that were under way", "A p1 500, A p2 500, A p1 500", "A p1 500, A p2 500, A p1 500"],
    [
      "also on the instances that another one was condemned on",
      "A p1 500, A p2 500, X p1 ok, X p2 ok, B p1 500, B p2 500",
      "",
    ],
  ] as const) {
    it(what, () => {
      const told = tell(`${SERVED}, ${story}`);
      assert.equal(told.condemned.at(-1), story.split(", ").at(-1));
      if (forgiven !== "") assert.equal(told.forgiven.join(", "), forgiven);
      assert.equal(told.released, 0);
      assert.ok(told.holdMs("A") > 0);
    });
  }

  it("on the only instance of a side, when it failed twice", () => {
    assert.deepEqual(tell(`${SERVED}, A p1 500, A p1 500`, {}, true).condemned, ["A p1 500"]);
    assert.deepEqual(tell(`${SERVED}, A p1 500, A p1 500`).condemned, []);
    assert.deepEqual(tell(`${SERVED}, A d1 dies, +9 s, A d1 dies`, {}, true).condemned, ["A d1 dies"]);
    assert.deepEqual(tell(`${SERVED}, A d1 dies, A d1 dies`, {}, true).condemned, [], "two of its legs, one death");
  });
});

describe("nothing is condemned", () => {
  for (const [what, story] of [
    ["after one failure", `${SERVED}, A p1 500`],
    ["by failures of both sides", `${SERVED}, A p1 500, A d1 500`],
    ["by failures that are far apart", `${SERVED}, A p1 500, +61 s, A p2 500`],
    ["where nothing else was served", "A p1 500, A p2 500"],
    ["where nothing else was served lately", `${SERVED}, +301 s, A p1 500, A p2 500`],
    ["where only bodies of the same size were served", "a p1 ok, a p2 ok, A p1 500, A p2 500"],
    [
      "where one of its size was served a moment ago, which may have been the same",
      `${SERVED}, a p1 ok, X p1 ok, A p1 500, A p2 500`,
    ],
    ["where one of the two serves no other", "X p1 ok, A p1 500, A p2 500"],
    ["on a sick instance: two bodies failed in a row", `${SERVED}, B p1 500, A p1 500, A p2 500`],
    ["when the body was served elsewhere", `${SERVED}, A p1 500, A d1 ok, A p2 500`],
    ["when another was aboard both engines that died", `${SERVED}, A d1 dies, B d1 dies, B d2 dies, A d2 dies`],
    ["while engines also die without it", `${SERVED}, B d3 dies, A d1 dies, A d2 dies`],
  ] as const) {
    it(what, () => {
      const told = tell(story);
      assert.deepEqual(
        told.condemned.filter((one) => one.startsWith("A")),
        [],
      );
      assert.equal(told.holdMs("A"), 0);
    });
  }

  it("with a limit of 0", () => {
    assert.deepEqual(tell(`${SERVED}, A p1 500, A p2 500`, { quarantineLimit: 0 }).condemned, []);
  });
});

describe("a condemned body", () => {
  const CONDEMNED = `${SERVED}, A p1 500, A p2 500`;

  it("is held for a tenth of the limit, then twice as long each time, at its first failure", () => {
    assert.equal(tell(CONDEMNED).holdMs("A"), HOLD_MS / 10);
    assert.equal(tell(`${CONDEMNED}, +29 s`).holdMs("A"), 1_000);
    assert.equal(tell(`${CONDEMNED}, +30 s`).holdMs("A"), 0);
    const again = tell(`${CONDEMNED}, +30 s, X p1 ok, A p1 500`);
    assert.equal(again.holdMs("A"), HOLD_MS / 5);
    assert.equal(again.condemned.length, 2);
    const often = Array.from({ length: 8 }, () => "+301 s, X p1 ok, A p1 500").join(", ");
    assert.equal(tell(`${CONDEMNED}, ${often}`).holdMs("A"), HOLD_MS);
  });

  for (const [what, story] of [
    ["when another body fails on one of its instances", "B p1 500"],
    ["when it is served after all", "A p2 ok"],
  ] as const) {
    it(`is released ${what}`, () => {
      const told = tell(`${CONDEMNED}, ${story}`);
      assert.equal(told.released, 1);
      assert.equal(told.holdMs("A"), 0);
      assert.equal(told.held, 0);
    });
  }

  it("for deaths is released when an engine dies without it, but not by those that were lost with it", () => {
    const fatal = `${SERVED}, A d1 dies, A d2 dies`;
    assert.ok(tell(`${fatal}, B d2 dies`).holdMs("A") > 0);
    assert.equal(tell(`${fatal}, B d3 dies`).released, 1);
    assert.equal(tell(`${fatal}, +6 s, B d2 dies`).released, 1);
    const both = tell(`${SERVED}, A d1 dies, B d1 dies, A d2 dies, B d2 dies`);
    assert.deepEqual([both.condemned, both.released], [["A d2 dies"], 1], "another was aboard both of them");
  });

  it("makes room for a newer one at the limit", () => {
    const fresh = ["A", "B", "C", "D", "E"].map((one) => `X p1 ok, X p2 ok, ${one} p1 500, ${one} p2 500`).join(", ");
    const told = tell(fresh);
    assert.equal(told.held, 4);
    assert.equal(told.holdMs("A"), 0);
    assert.ok(told.holdMs("E") > 0);
  });

  it("costs other requests no digest once all is forgotten", () => {
    const { quarantine, nowMs } = tell(CONDEMNED);
    assert.ok(quarantine.isWatching(nowMs));
    assert.ok(!quarantine.isWatching(nowMs + HOLD_MS * 2));
  });
});

describe("a body that fails on one instance", () => {
  /** The answer to its second failure there, while the instance is out because of it. */
  function second(others: readonly string[]): string | undefined {
    const view = viewOf([{ id: "p1" }], [{ id: "d1", failing: true }, ...others.map((id) => ({ id }))]);
    const clock = manualClock();
    const limits = { current: { quarantineLimit: 4, quarantineHoldMs: HOLD_MS } };
    const pool = { view, pardon() {} } as unknown as Parameters<typeof watchQueries>[0]["pool"];
    const queries = watchQueries({ pool, limits, metrics: createMetrics(), log: silentLog, clock });
    const [prefill] = view.prefill.map(({ instance }) => instance);
    const [decode] = view.decode.map(({ instance }) => instance);
    const body = (text: string): RelayRequest =>
      ({ path: "/v1/completions", model: "tiny", body: Buffer.from(JSON.stringify({ prompt: text })) }) as RelayRequest;
    queries.succeeded(prefill, decode, body("another one, which is longer"));
    const engineAnswer = { status: 500, body: '{"error":{"message":"no","type":"InternalServerError"}}' };
    const error = new ServiceError("engine_failed", "It failed.", { engineAnswer });
    const leg = { task: { prefill }, decode } as unknown as LegRun;
    const fail = (): ServiceError | undefined =>
      queries.failed(body("bad"), leg, { kind: "failed", error, side: "decode", phase: "transfer" });
    assert.equal(fail(), undefined);
    return fail()?.code;
  }

  it("is to blame if no other could have been tried, and not if another serves, though this one is out by now", () => {
    assert.equal(second([]), "query_of_death");
    assert.equal(second(["d2"]), undefined);
  });
});
