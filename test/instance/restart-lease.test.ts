import assert from "node:assert/strict";
import type { LiveEngine } from "../../services/engine/engine.ts";
import { RestartLease, type LeaseWatcher } from "../../services/instance/restart-lease.ts";
import { InstanceStatus } from "../../services/instance/status.ts";
import { silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";

const ENGINE = {} as LiveEngine;

function lab(canRestart = true) {
  const clock = manualClock();
  const status = new InstanceStatus(8);
  status.set({ engine: { reason: "" } });
  const restarted: string[] = [];
  const supervisor = {
    live: ENGINE as LiveEngine | undefined,
    canRestart,
    restart: (_: LiveEngine, reason: string) => void restarted.push(reason),
  };
  const lease = new RestartLease({ status, supervisor, log: silentLog, clock });
  const router = (granted: boolean | undefined): LeaseWatcher => {
    const watcher = lease.watch();
    watcher.heard(granted);
    return watcher;
  };
  return { clock, status, supervisor, restarted, lease, router };
}

describe("a restart that an instance asks for", () => {
  it("is shown to the routers, and begins when all of them that watch grant it", () => {
    const { status, restarted, lease, router } = lab();
    const [one, other] = [router(false), router(false)];
    lease.want(ENGINE, "debt");
    assert.equal(status.load().restartWanted, "debt");
    one.heard(true);
    assert.deepEqual(restarted, []);
    other.heard(true);
    assert.deepEqual(restarted, ["debt"]);
    assert.equal(status.load().restartWanted, "");
    one.heard(true);
    assert.equal(restarted.length, 1, "once");
  });

  it("waits when a grant is taken back before the last one comes", () => {
    const { restarted, lease, router } = lab();
    const [one, other] = [router(true), router(false)];
    lease.want(ENGINE, "debt");
    one.heard(false);
    other.heard(true);
    assert.deepEqual(restarted, []);
  });

  it("begins when the router that did not grant it leaves", () => {
    const { restarted, lease, router } = lab();
    router(true);
    const other = router(false);
    lease.want(ENGINE, "debt");
    other.left();
    assert.deepEqual(restarted, ["debt"]);
  });

  it("does not wait for callers that are not routers, and is not granted by them", () => {
    const { clock, restarted, lease, router } = lab();
    router(undefined);
    const one = router(false);
    lease.want(ENGINE, "debt");
    clock.advance(3_600_000);
    assert.deepEqual(restarted, []);
    one.heard(true);
    assert.deepEqual(restarted, ["debt"]);
  });

  it("begins without routers only when none has watched for half a minute and no leg runs", () => {
    const { clock, status, restarted, lease, router } = lab();
    const one = router(false);
    lease.want(ENGINE, "debt");
    clock.advance(60_000);
    one.left();
    clock.advance(29_999);
    status.count({ running: 1 });
    clock.advance(60_000);
    assert.deepEqual(restarted, [], "a leg runs");
    status.count({ running: -1 });
    assert.deepEqual(restarted, ["debt"]);
  });

  it("is not begun when it is no longer asked for", () => {
    const { status, restarted, lease, router } = lab();
    const one = router(false);
    lease.want(ENGINE, "debt");
    lease.want(ENGINE, undefined);
    assert.equal(status.load().restartWanted, "");
    one.heard(true);
    assert.deepEqual(restarted, []);
  });

  it("is forgotten when the engine is replaced or the instance stops meanwhile", () => {
    for (const how of ["replaced", "stopping"] as const) {
      const { clock, status, supervisor, restarted, lease, router } = lab();
      const one = router(false);
      lease.want(ENGINE, "debt");
      if (how === "replaced") supervisor.live = {} as LiveEngine;
      status.set(how === "stopping" ? { ending: "stopping" } : { engine: { reason: "" } });
      one.heard(true);
      one.left();
      clock.advance(3_600_000);
      assert.deepEqual(restarted, []);
      assert.equal(clock.pending, 0);
    }
  });

  it("is never asked for an engine that only an operator can restart", () => {
    const { status, restarted, lease, router } = lab(false);
    router(true);
    lease.want(ENGINE, "debt");
    assert.deepEqual([restarted, status.load().restartWanted], [[], ""]);
  });
});
