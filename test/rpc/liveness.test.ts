import assert from "node:assert/strict";
import { deferred, within } from "../support/waits.ts";
import { dial, eachEndedOnce, record, startChild } from "./fixture.ts";

const HELLO = Buffer.from("hello");

describe("a server that is not heard", () => {
  afterEach(eachEndedOnce);

  it("is doubted, which ends only what it has not answered, and trusted again when it is heard", async () => {
    await using child = await startChild("rpc");
    let changed = deferred();
    await using channel = dial(child.address, {
      pingIntervalMs: 50,
      doubtMs: 200,
      silenceMs: 10_000,
      onDoubt: () => changed.resolve(),
    });
    const running = record(channel);
    running.call.write(HELLO);
    await running.received(1);
    assert.equal(channel.doubted, false);
    child.signal("SIGSTOP");
    const fresh = record(channel);
    fresh.call.write(HELLO);
    await within(changed.promise, "the doubt");
    assert.equal(channel.doubted, true);
    assert.equal(channel.up, true);
    channel.dropUnanswered();
    assert.equal((await fresh.ended)?.code, "instance_lost");
    changed = deferred();
    child.signal("SIGCONT");
    await within(changed.promise, "the trust");
    assert.equal(channel.doubted, false);
    channel.dropUnanswered(); // Nothing is doubted now.
    running.call.write(HELLO);
    await running.received(2);
    running.call.halfClose();
    assert.equal(await running.ended, undefined);
  });

  it("is not doubted for a pause of the whole machine", async () => {
    await using child = await startChild("rpc");
    let doubts = 0;
    await using channel = dial(child.address, {
      pingIntervalMs: 100,
      doubtMs: 300,
      silenceMs: 400,
      onDoubt: () => doubts++,
    });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    child.signal("SIGSTOP");
    // A PING goes out that the stopped server can't answer.
    await new Promise((resolve) => setTimeout(resolve, 120));
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_000);
    child.signal("SIGCONT");
    call.write(HELLO);
    await received(2);
    call.halfClose();
    assert.equal(await ended, undefined);
    assert.equal(doubts, 0);
  });
});
