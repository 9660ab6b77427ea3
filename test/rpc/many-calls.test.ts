// One connection carries a router's calls to an instance for days.
import assert from "node:assert/strict";
import { ServiceError } from "../../services/common/errors.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { dial, record, serveRaw } from "./fixture.ts";

/** What each of 3,000 calls ended with, 100 at a time on one connection. nghttp2 allows 1,000 resets and 33 a second after that; beyond, it breaks the connection. */
async function endsOfMany(answer: (call: RawCall) => void): Promise<(ServiceError | undefined)[]> {
  await using server = await serveRaw((call) => {
    call.onMessage = () => answer(call);
  });
  await using channel = dial(server.address);
  const ends: (ServiceError | undefined)[] = [];
  for (let round = 0; round < 30; round++) {
    const calls = Array.from({ length: 100 }, () => {
      const { call, ended } = record(channel);
      call.write(Buffer.from("hello"));
      return ended;
    });
    ends.push(...(await Promise.all(calls)));
  }
  return ends;
}

describe("a connection of the thin client", () => {
  it("carries call after call that the server ends first", async function () {
    this.timeout(60_000);
    for (const error of await endsOfMany((call) => call.end())) assert.equal(error, undefined);
  });

  it("carries call after call that the server refuses", async function () {
    this.timeout(60_000);
    const refusal = new ServiceError("instance_busy", "No slot is free.");
    for (const error of await endsOfMany((call) => call.fail(refusal))) assert.equal(error?.code, "instance_busy");
  });
});
