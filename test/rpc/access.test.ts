import assert from "node:assert/strict";
import { createGate } from "../../services/rpc/access.ts";

describe("a gate", () => {
  const gate = createGate({ token: "join", apiKey: "a key" });

  it("takes the bearer token of each kind of service, in any case of the scheme and with blanks around it", () => {
    for (const header of ["Bearer join", "bearer join", "BEARER   join  "])
      assert.equal(gate("token", header), undefined);
    assert.equal(gate("key", "Bearer a key"), undefined);
    assert.equal(gate("open", undefined), undefined);
  });

  it("distinguishes a wrong token from a missing one", () => {
    for (const header of [undefined, "", "join", "Basic am9pbg==", "Bearer", "Bearer  "]) {
      assert.match(gate("token", header)!.message, /^No bearer token was sent\. Pass `authorization: Bearer <token>`/);
    }
    for (const header of ["Bearer joi", "Bearer join x", "Bearer a key"]) {
      assert.match(gate("token", header)!.message, /^The credentials are wrong\. .*TANDEM_TOKEN/);
    }
    assert.match(gate("key", "Bearer join")!.message, /API key/);
  });

  it("is open if no secret is configured", () => {
    const open = createGate({ token: "", apiKey: undefined });
    for (const access of ["token", "key", "open"] as const) assert.equal(open(access, undefined), undefined);
  });
});
