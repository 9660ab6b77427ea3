import assert from "node:assert/strict";
import { ADDRESS, joinAddress, splitAddress } from "../../services/common/address.ts";

describe("an address", () => {
  it("is split, and put together again, with the brackets that IPv6 needs", () => {
    for (const [address, host, port] of [
      ["127.0.0.1:3000", "127.0.0.1", 3000],
      ["[::1]:1", "::1", 1],
      ["db-1.local:65535", "db-1.local", 65535],
    ] as const) {
      assert.match(address, ADDRESS);
      assert.deepEqual(splitAddress(address), { host, port });
      assert.equal(joinAddress(host, port), address);
    }
  });

  it("is nothing else", () => {
    for (const text of ["", "localhost", "::1:3000", "a b:1", "host:", "host:123456", "host:1/x", "http://host:1"])
      assert.doesNotMatch(text, ADDRESS);
  });
});
