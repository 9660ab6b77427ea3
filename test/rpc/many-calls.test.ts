// One connection carries a router's calls to an instance for days.
import assert from "node:assert/strict";
import { ServiceError } from "../../services/common/errors.ts";
import { dial, record, serveRaw } from "./fixture.ts";

describe("a connection of the thin client", () => {
  it("carries call after call that the server ends first", async function () {
    this.timeout(60_000);
    // nghttp2 allows 1,000 resets in a row and 33 a second after that; beyond, it breaks the connection.
    await using server = await serveRaw((call) => {
      call.onMessage = () => call.end();
    });
    await using channel = dial(server.address);
    for (let round = 0; round < 30; round++) {
      const calls = Array.from({ length: 100 }, () => {
        const { call, ended } = record(channel);
        call.write(Buffer.from("hello"));
        return ended;
      });
      for (const error of await Promise.all(calls)) assert.equal(error, undefined);
    }
  });

  it("carries call after call that the server refuses", async function () {
    this.timeout(60_000);
    await using server = await serveRaw((call) => {
      call.onMessage = () => call.fail(new ServiceError("instance_busy", "No slot is free."));
    });
    await using channel = dial(server.address);
    for (let round = 0; round < 30; round++) {
      const calls = Array.from({ length: 100 }, () => {
        const { call, ended } = record(channel);
        call.write(Buffer.from("hello"));
        return ended;
      });
      for (const error of await Promise.all(calls)) assert.equal(error?.code, "instance_busy");
    }
  });
});
