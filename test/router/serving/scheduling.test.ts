// How clients say how their requests are to be served, over REST, and what becomes of it.
import assert from "node:assert/strict";
import { systemClock } from "../../../services/common/clock.ts";
import { errorOf, startRest } from "../rest/support/rest.ts";
import { answer } from "../rest/support/relay.ts";
import { deferred, eventually } from "../../support/waits.ts";

const BODY = { model: "tiny", prompt: "hi", stream: true };

describe("a request's priority, tenant and time", () => {
  it("come from the headers, then from the body, and are on the receipt", async () => {
    await using rest = await startRest();
    const headers = { "x-tandem-priority": "-5", "x-tandem-tenant": "team-a", "x-tandem-strict": "true" };
    await (await rest.post("/v1/completions", { ...BODY, user: "u", priority: 3 }, { headers })).text();
    await (await rest.post("/v1/completions", { ...BODY, user: "u", priority: 3000 })).text();
    const [second, first] = rest.receipts.list(2);
    assert.deepEqual([first!.priority, first!.tenant], [-5, "team-a"]);
    assert.deepEqual([second!.priority, second!.tenant], [100, "u"]);
    assert.deepEqual(
      rest.relay.runs.map(({ request }) => request.strict),
      [true, false],
    );
  });

  it("bound the request by x-tandem-timeout-ms", async () => {
    await using rest = await startRest();
    const before = systemClock.nowMs();
    await (await rest.post("/v1/completions", BODY, { headers: { "x-tandem-timeout-ms": "1500" } })).text();
    const { deadlineMs } = rest.relay.runs[0]!.request;
    assert.ok(deadlineMs! - before >= 1_500 && deadlineMs! - systemClock.nowMs() <= 1_500);
  });

  for (const [name, value] of [
    ["x-tandem-priority", "high"],
    ["x-tandem-priority", "101"],
    ["x-tandem-timeout-ms", "0"],
    ["x-tandem-strict", "1"],
  ] as const) {
    it(`are refused if they make no sense: ${name}: ${value}`, async () => {
      await using rest = await startRest();
      const response = await rest.post("/v1/completions", BODY, { headers: { [name]: value } });
      assert.equal(response.status, 400);
      assert.equal((await errorOf(response)).param, name);
    });
  }

  it("decide who is next when all slots are taken", async () => {
    const gate = deferred();
    const order: string[] = [];
    await using rest = await startRest({
      script: async (run) => {
        order.push(run.draft.tenant);
        if (run.draft.tenant === "first") await gate.promise;
        return answer(run);
      },
    });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const send = (tenant: string, priority: number) =>
      rest
        .post("/v1/completions", BODY, { headers: { "x-tandem-tenant": tenant, "x-tandem-priority": `${priority}` } })
        .then((response) => response.text());
    const all = [send("first", 0)];
    await eventually("the first to run", () => order.length === 1);
    const crowd: [string, number][] = [
      ["batch", 10],
      ["a", 0],
      ["a", 0],
      ["b", 0],
      ["urgent", -10],
    ];
    for (const [index, [tenant, priority]] of crowd.entries()) {
      all.push(send(tenant, priority));
      await eventually(`${tenant} to wait`, () => rest.serving.count === index + 2);
    }
    gate.resolve();
    await Promise.all(all);
    assert.deepEqual(order, ["first", "urgent", "a", "b", "a", "batch"]);
  });
});
