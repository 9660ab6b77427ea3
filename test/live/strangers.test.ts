// What callers without credentials do to a deployment of real processes while others stream from it.
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { QUESTION, REFLECT, rawCaller } from "../../clients/common/raw-caller.ts";
import { STRANGERS } from "../../clients/common/strangers.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually, within } from "../support/waits.ts";

const COMPLETIONS = "/v1/completions";
const JSON_TYPE = { "content-type": "application/json" };

/** Each resolves with what ends it. */
const ATTACKS: Record<string, (tandem: Tandem) => Promise<() => void>> = {
  ...Object.fromEntries(
    Object.entries(STRANGERS).map(([name, prepare]) => [
      name,
      async ({ grpcAddress }: Tandem) => {
        const { strike, leave } = await prepare(grpcAddress);
        strike();
        return leave;
      },
    ]),
  ),
  async "twelve bodies of ten megabytes"({ url }) {
    // Not in the prompt, which is the engine's work: this is about the way there.
    const body = JSON.stringify({ model: "tandem-sim", prompt: "x", note: "x ".repeat(5_100_000), max_tokens: 1 });
    const answers = Array.from({ length: 12 }, () =>
      fetch(`${url}${COMPLETIONS}`, { method: "POST", headers: JSON_TYPE, body }),
    );
    for (const answer of await Promise.all(answers)) assert.equal(answer.status, 200, await answer.text());
    return () => {};
  },
  async "50,000 requests on one connection, none of whose answers is read"({ url }) {
    const { hostname, port } = new URL(url);
    const socket = connect(Number(port), hostname).on("error", () => {});
    socket.write("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(50_000));
    return () => socket.destroy();
  },
};

/** How many of the streams completed, until `over` settles. */
async function streamDuring(tandem: Tandem, lanes: number, over: Promise<unknown>): Promise<number> {
  let [isOver, completed] = [false, 0];
  void over.finally(() => (isOver = true)).catch(() => {});
  const body = JSON.stringify({ model: "tandem-sim", prompt: "hello", max_tokens: 20, stream: true });
  const lane = async (): Promise<void> => {
    do {
      const answer = await fetch(`${tandem.url}${COMPLETIONS}`, { method: "POST", headers: JSON_TYPE, body });
      const text = await answer.text();
      assert.deepEqual([answer.status, text.endsWith("data: [DONE]\n\n")], [200, true], text);
      completed++;
    } while (!isOver);
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  return completed;
}

describe("strangers beside sixteen streams", function () {
  this.timeout(120_000);
  let tandem: Tandem;
  before(async () => {
    tandem = await startTandem([]);
  });
  after(() => tandem[Symbol.asyncDispose]());

  for (const [name, attack] of Object.entries(ATTACKS)) {
    it(`${name}: no stream fails`, async () => {
      const attacked = attack(tandem);
      // A while longer: what follows from an attack comes after it.
      const over = attacked.then(() => new Promise((resolve) => setTimeout(resolve, 3_000)));
      assert.ok((await streamDuring(tandem, 16, over)) > 0);
      (await attacked)();
    });
  }
});

describe("a router whose caller reads nothing", function () {
  this.timeout(60_000);
  const cli = fileURLToPath(new URL("../../dist/clients/cli/main.js", import.meta.url));

  it("is gone within its grace and two seconds", async () => {
    const flags = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--drain.grace_ms=1000"];
    const router: ChildProcess = spawn(process.execPath, [cli, "router", ...flags], {
      stdio: ["ignore", "ignore", "pipe"],
      env: { ...process.env, TANDEM_LOG_FORMAT: "json" },
    });
    let log = "";
    router.stderr!.on("data", (piece) => (log += piece));
    const [, address] = await eventually("it listens", () => /"grpc":"([^"]+)","routerId/.exec(log) ?? undefined);
    const caller = await rawCaller(address!);
    for (let index = 0; index < 2_400; index++) caller.call(index, REFLECT, QUESTION);
    const exit = once(router, "exit");
    router.kill("SIGTERM");
    const sinceMs = performance.now();
    assert.deepEqual(await within(exit, "the router's end", 20_000), [0, null]);
    assert.ok(performance.now() - sinceMs < 3_000);
    caller.socket.destroy();
  });
});
