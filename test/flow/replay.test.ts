// A decode instance of the model that ships dies while it writes, and the clients get their whole answers all the same.
import assert from "node:assert/strict";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { tandemClient } from "../../clients/client/index.ts";
import { shippedModel } from "../../services/common/package-file.ts";
import { skip } from "../support/skip.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";

const BODIES: readonly (readonly [path: string, body: object])[] = [
  [
    "/v1/chat/completions",
    { messages: [{ role: "user", content: "What is Tandem?" }], temperature: 0, logprobs: true, top_logprobs: 2 },
  ],
  ["/v1/chat/completions", { messages: [{ role: "user", content: "What is NIXL?" }], temperature: 1, seed: 7 }],
  ["/v1/completions", { prompt: "The prefill instance", temperature: 0, presence_penalty: 0.5 }],
  ["/v1/completions", { prompt: "A decode instance", temperature: 0.9, seed: -3, n: 2 }],
];

/** What two runs of one request have in common: all but its id and time. */
const same = (text: string): string => text.replaceAll(/"id":"[^"]*"|"created":\d+/g, "");

describe("a decode instance that is killed while it writes", function () {
  this.timeout(60_000);
  let tandem: Tandem;
  before(async function () {
    if (shippedModel() === undefined) skip(this, "models/tandem-tiny has no GGUF file");
    // Slow enough to be met in the middle.
    tandem = await startTandem(["--engine", "embedded", "--decode", "2", "--", "--fault=slow:extra_ms=20"]);
  });
  after(() => tandem?.[Symbol.asyncDispose]());

  const open = ([path, body]: (typeof BODIES)[number]): Promise<Response> =>
    fetch(`${tandem.url}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        ...body,
        max_tokens: 60,
        ignore_eos: true,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
  const instances = async (role: Role) =>
    (await tandemClient(tandem).router.listInstances({})).instances.filter(({ info }) => info!.role === role);

  it("costs no stream a byte", async () => {
    const undisturbed = await Promise.all(BODIES.map(async (body) => (await open(body)).text()));
    const streams = await Promise.all(BODIES.map(open));
    const [victim] = (await instances(Role.DECODE)).sort((a, b) => b.legs - a.legs);
    assert.ok(victim!.legs > 0);
    process.kill(victim!.info!.pid, "SIGKILL");
    const texts = await Promise.all(streams.map((response) => response.text()));
    for (const [index, text] of texts.entries()) {
      // Choices of one request come in the order in which they are written.
      const sorted = (whole: string): string[] => same(whole).split("\n\n").sort();
      assert.deepEqual(sorted(text), sorted(undisturbed[index]!));
    }
    const metrics = await (await fetch(`${tandem.url}/metrics`)).text();
    const exact = Number(/^tandem_replays_total\{outcome="exact"\} (\d+)$/m.exec(metrics)?.[1]);
    assert.ok(exact >= victim!.legs, `${exact} of ${victim!.legs}`);
    assert.doesNotMatch(metrics, /tandem_replays_total\{outcome="(diverged|failed)"\}/);
    const { receipt } = await tandemClient(tandem).router.getReceipt({
      requestId: streams[0]!.headers.get("x-request-id")!,
    });
    if (receipt!.legs.length > 1) assert.deepEqual(receipt!.fallbacks, ["replay:decode:instance_lost"]);
    await eventually(
      "both decode instances serve again",
      async () => (await instances(Role.DECODE)).filter(({ eligible }) => eligible).length === 2,
      20_000,
    );
  });
});
