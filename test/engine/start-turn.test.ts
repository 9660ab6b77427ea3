import assert from "node:assert/strict";
import { startTurn } from "../../services/engine/start-turn.ts";
import { deferred, within } from "../support/waits.ts";

describe("engines that start on one device", function () {
  before(function () {
    if (process.platform !== "linux") this.skip();
  });
  const never = new AbortController().signal;

  it("start one after another, and beside those of other devices", async () => {
    const name = `test-${process.pid}`;
    const first = await startTurn([`${name}-0`, `${name}-1`], never);
    const waits = deferred();
    const second = startTurn([`${name}-1`], never, waits.resolve);
    await within(waits.promise, "the second waits");
    (await startTurn([`${name}-2`], never)).end();
    first.end();
    (await within(second, "the second has its turn")).end();
  });

  it("give up when told to, and leave nothing held", async () => {
    const name = `test-${process.pid}-b`;
    const first = await startTurn([`${name}-1`], never);
    const stop = new AbortController();
    const waits = deferred();
    const second = startTurn([`${name}-0`, `${name}-1`], stop.signal, waits.resolve);
    await waits.promise;
    stop.abort(new Error("told to"));
    await assert.rejects(second, /told to/);
    (await within(startTurn([`${name}-0`], never), "what the second had is free")).end();
    first.end();
  });
});
