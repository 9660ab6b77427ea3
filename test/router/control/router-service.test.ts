// RouterService over gRPC: instances, receipts, draining and settings.
import assert from "node:assert/strict";
import type { GenerateResponse } from "#gen/tandem/inference/v1/inference_pb.js";
import { Outcome } from "#gen/tandem/router/v1/router_pb.js";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../../services/common/version.ts";
import { eventually } from "../../support/waits.ts";
import { answer } from "../rest/support/relay.ts";
import { code, collect, REGISTRY, startControl, type Control } from "./support/control.ts";

describe("RouterService", () => {
  let control: Control;
  beforeEach(async () => {
    control = await startControl();
  });
  afterEach(() => control[Symbol.asyncDispose]());

  const generate = (): Promise<GenerateResponse[]> =>
    collect(control.inference.generate({ input: { case: "prompt", value: "hi" } }));

  it("lists the instances, whether each serves, and why not", async () => {
    control.pool.set([
      { id: "d1", role: "decode", draining: "It drains." },
      { id: "p1", role: "prefill" },
    ]);
    const { instances, routerId } = await control.router.listInstances({});
    assert.equal(routerId, "router-1");
    assert.deepEqual(
      instances.map(({ info, eligible, reason }) => [info!.instanceId, eligible, reason]),
      [
        ["p1", true, ""],
        ["d1", false, "It drains."],
      ],
    );
    assert.equal(instances[0]!.legsTotal, 7n);
  });

  it("reports changes at once, and at most five times a second", async () => {
    const seen: number[] = [];
    const stop = new AbortController();
    for await (const { instances } of control.router.watchInstances({}, { signal: stop.signal })) {
      seen.push(instances.length);
      if (seen.length === 1) {
        control.pool.set([{ id: "p1", role: "prefill" }]);
        control.pool.set([
          { id: "p1", role: "prefill" },
          { id: "d1", role: "decode" },
          { id: "d2", role: "decode" },
        ]);
        await control.clock.untilPending();
        control.clock.advance(199);
        assert.equal(control.clock.pending, 1, "it still waits");
        control.clock.advance(1);
      } else break;
    }
    assert.deepEqual(seen, [2, 3], "changes in quick succession are reported as one");
    stop.abort();
  });

  it("refuses one watcher too many, and accepts one again after another has left", async () => {
    const stop = new AbortController();
    const first = control.router.watchInstances({}, { signal: stop.signal })[Symbol.asyncIterator]();
    await first.next();
    await assert.rejects(collect(control.router.watchInstances({})), code("queue_full"));
    stop.abort();
    await assert.rejects(first.next(), code("cancelled"));
    await eventually("there is room again", async () => {
      for await (const _ of control.router.watchInstances({})) return true;
      return false;
    });
  });

  it("keeps the receipts of the last requests, the newest first", async () => {
    const ids: string[] = [];
    for (let count = 0; count < 4; count += 1) ids.push((await generate())[0]!.requestId);
    const { receipts } = await control.router.listRequests({});
    assert.deepEqual(
      receipts.map(({ requestId }) => requestId),
      ids.slice(1).reverse(),
      "the oldest of four is gone: the limit is three",
    );
    const { receipt } = await control.router.getReceipt({ requestId: ids[3]! });
    assert.equal(receipt!.outcome, Outcome.COMPLETED);
    assert.equal(receipt!.path, "Generate");
    assert.equal(receipt!.legs[0]!.prefillInstanceId, "p1");
    await assert.rejects(control.router.getReceipt({ requestId: ids[0]! }), code("not_found"));
    assert.equal((await control.router.listRequests({ limit: 1 })).receipts.length, 1);
  });

  it("shows requests that run", async () => {
    let end = (): void => {};
    control.relay.script = async (run) => {
      await new Promise<void>((resolve) => (end = resolve));
      return answer(run);
    };
    const running = generate();
    await eventually("it runs", () => control.relay.runs.length === 1);
    const [receipt] = (await control.router.listRequests({})).receipts;
    assert.deepEqual([receipt!.outcome, receipt!.status], [Outcome.UNSPECIFIED, 0]);
    end();
    await running;
  });

  it("reports requests as they end", async () => {
    const stop = new AbortController();
    const watch = control.router.watchRequests({}, { signal: stop.signal })[Symbol.asyncIterator]();
    const next = watch.next();
    // The call has to have arrived before the request ends; a second watcher is refused only then.
    await eventually("it watches", async () => {
      const other = control.router.watchRequests({}, { timeoutMs: 200 });
      return collect(other).then(() => false, code("queue_full"));
    });
    const [first] = await generate();
    const { value } = await next;
    assert.equal(value!.receipt!.requestId, first!.requestId);
    assert.equal(value!.missed, 0);
    stop.abort();
  });

  it("drains an instance, and undrains it", async () => {
    assert.equal((await control.router.drainInstance({ instanceId: "d1", reason: "upgrade" })).remaining, 3);
    await control.router.drainInstance({ instanceId: "d1", undrain: true });
    assert.deepEqual(control.pool.drained, [
      { instanceId: "d1", undrain: false, reason: "upgrade" },
      { instanceId: "d1", undrain: true, reason: "" },
    ]);
    await assert.rejects(control.router.drainInstance({ instanceId: "nope" }), code("not_found"));
  });

  it("shows its settings in order, without secrets, and the status of the registry", async () => {
    const { settings, tandemVersion, tandemCommit, registry } = await control.router.getConfig({});
    assert.deepEqual(
      settings.map(({ key, value }) => [key, value]),
      [
        ["queue.limit", "4 requests"],
        ["token", "set"],
      ],
    );
    assert.deepEqual([registry!.kind, registry!.up, registry!.error], [REGISTRY.kind, false, REGISTRY.error]);
    assert.deepEqual([tandemVersion, tandemCommit], [TANDEM_VERSION, TANDEM_COMMIT]);
  });

  it("requires the join token", async () => {
    await assert.rejects(control.stranger.router.listInstances({}), code("unauthenticated"));
  });
});
