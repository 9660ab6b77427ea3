// A stranger that got its address into the deployment: as an instance in the router's list, as the router at which an
// instance registers, and as the prefill instance that a decode instance should ask. It records all that reaches it.
import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter } from "../../services/router/main.ts";
import { simDecode, simPrefill } from "../instance/legs.ts";
import { startRogue } from "../rpc/fixture.ts";
import { logSink } from "../support/log-sink.ts";
import { eventually } from "../support/waits.ts";

const TOKEN = "the-join-token";

/** Takes every call, and answers it without a message. */
async function startStranger() {
  const heard: string[] = [];
  const rogue = await startRogue((stream) => {
    stream.on("data", (chunk: Buffer) => heard.push(chunk.toString("latin1")));
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.end();
  });
  rogue.server.on("stream", (_stream, headers) => heard.push(JSON.stringify(headers)));
  const calls = (): number => heard.filter((one) => one.includes('":path"')).length;
  return { address: rogue.address, heard, calls, [Symbol.asyncDispose]: () => rogue[Symbol.asyncDispose]() };
}

describe("a stranger whose address is in the deployment", () => {
  it("hears neither token nor prompt, and the others serve", async () => {
    await using stranger = await startStranger();
    const { log, events } = logSink();
    const flags = { "rest.listen": "127.0.0.1:0", "grpc.listen": "127.0.0.1:0", instances: stranger.address };
    const argv = Object.entries(flags).map(([key, value]) => `--${key}=${value}`);
    await using router = await startRouter(loadConfig(routerConfig, { argv, env: { TANDEM_TOKEN: TOKEN } }), { log });
    const registry = { "registry.address": `${router.grpcAddress},${stranger.address}`, token: TOKEN };
    await using _prefill = await simPrefill("p2p-zmq", registry);
    await using _decode = await simDecode("p2p-zmq", registry);
    await eventually("it is ready", async () => (await fetch(`${router.restUrl}/readyz`)).ok);
    const answers = await Promise.all(
      Array.from({ length: 6 }, async (_, index) => {
        const body = JSON.stringify({ prompt: `my secret prompt ${index}`, max_tokens: 3 });
        const headers = { "content-type": "application/json" };
        return (await fetch(`${router.restUrl}/v1/completions`, { method: "POST", headers, body })).status;
      }),
    );
    assert.deepEqual(answers, [200, 200, 200, 200, 200, 200]);
    // The router, and both instances.
    await eventually("all have called the stranger", () => stranger.calls() >= 3);
    for (const one of stranger.heard) {
      assert.doesNotMatch(one, /the-join-token|secret prompt|authorization|tandem-session/i);
      if (one.includes('":path"')) assert.match(one, /IdentityService\/Prove"/);
    }
    const [fault] = events("a listed instance can't be used");
    assert.match(String(fault!["because"]), /ended the proof of identity early/);
  });
});
