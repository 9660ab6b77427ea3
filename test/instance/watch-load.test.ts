// WatchLoad by itself, on a clock of the test's.
import assert from "node:assert/strict";
import type { WatchLoadResponse } from "#gen/tandem/instance/v1/instance_pb.js";
import { instanceService } from "../../services/instance/instance-service.ts";
import { InstanceStatus } from "../../services/instance/status.ts";
import { silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";

function watch() {
  const clock = manualClock();
  const status = new InstanceStatus(8);
  const restarts = { watch: () => ({ heard() {}, left() {} }) };
  const service = instanceService({
    status,
    restarts,
    info: () => assert.fail(),
    findings: () => [],
    log: silentLog,
    clock,
  });
  const requests: (() => void)[] = [];
  const gone = new AbortController();
  async function* said(): AsyncGenerator<object> {
    yield {};
    for (;;) {
      await new Promise<void>((resolve) => requests.push(resolve));
      yield {};
    }
  }
  const context = { signal: gone.signal, closing: new AbortController().signal };
  const answers = service.typed["watchLoad"]!(said(), context as never) as AsyncGenerator<WatchLoadResponse>;
  const loads: number[] = [];
  const ended = (async () => {
    for await (const { load } of answers) loads.push(load!.running);
  })();
  return { clock, status, loads, ended, gone, say: () => requests.splice(0).forEach((resolve) => resolve()) };
}

describe("a load that is watched", () => {
  it("is reported at once, on change at most every 200 ms, and each second", async () => {
    const { clock, status, loads, gone, ended } = watch();
    await clock.pass(0);
    assert.deepEqual(loads, [0]);
    status.count({ running: 1 });
    status.count({ running: 1 });
    await clock.pass(199);
    assert.deepEqual(loads, [0]);
    await clock.pass(1);
    await clock.pass(0);
    assert.deepEqual(loads, [0, 2]);
    await clock.pass(500);
    status.count({ running: 1 });
    await clock.pass(0);
    assert.deepEqual(loads, [0, 2, 3]);
    await clock.pass(999);
    assert.equal(loads.length, 3);
    await clock.pass(1);
    await clock.pass(0);
    assert.deepEqual(loads, [0, 2, 3, 3]);
    gone.abort();
    await ended;
    assert.equal(clock.pending, 0);
  });

  it("answers each message after the first at once", async () => {
    const { clock, loads, say, gone, ended } = watch();
    await clock.pass(0);
    for (let count = 2; count < 5; count++) {
      say();
      await clock.pass(0);
      assert.equal(loads.length, count);
    }
    gone.abort();
    await ended;
  });
});
