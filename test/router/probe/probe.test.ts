// Probes through real instances over sims: a pair that moves KV, one that decodes from KV of other weights, one that fails.
import assert from "node:assert/strict";
import type { ProbeOptions, ProbeResult } from "../../../services/router/probe/probe.ts";
import { simDecode, simPrefill, type SimInstance } from "../../instance/legs.ts";
import { within } from "../../support/waits.ts";
import { deploy, type Deployment } from "../support/deployment.ts";
import { type DecodeLeg, startDecode, startPrefill } from "../support/fake-instance.ts";

async function deployed(...sims: SimInstance[]): Promise<Deployment> {
  return deploy(sims.map(({ instance }) => ({ info: instance.info() })));
}

function probe({ pool, relay }: Deployment, o: Partial<ProbeOptions> = {}): Promise<ProbeResult> {
  const { prefill, decode } = pool.view;
  return relay.prober.probe(prefill[0]!.instance, decode[0]!.instance, { prompts: 3, timeoutMs: 10_000, ...o });
}

describe("a probe through a pair", function () {
  this.timeout(20_000);
  for (const connector of ["p2p-zmq", "nixl"] as const) {
    it(`finds that decode answers as prefill would alone (${connector})`, async () => {
      await using prefill = await simPrefill(connector);
      await using decode = await simDecode(connector);
      await using tandem = await deployed(prefill, decode);
      const result = await probe(tandem);
      assert.equal(result.kind, "right", JSON.stringify(result));
      assert.equal(decode.instance.load().kvOrphans, 0);
      assert.deepEqual(
        [...tandem.pool.view.prefill, ...tandem.pool.view.decode].map(({ instance }) => instance.legsTotal),
        [3n, 3n],
      );
      assert.doesNotMatch(await tandem.metrics.text(), /tandem_legs_total\{/, "users' figures say nothing of it");
    });
  }

  /** Decode's first token has this log probability. */
  const answers = (logprob: number) => (leg: DecodeLeg) => {
    leg.accept();
    const body = JSON.stringify({ choices: [{ logprobs: { token_logprobs: [logprob] } }] });
    void leg.started.promise.then(() => leg.end({}, body));
  };

  it("finds a decode engine that answers 200 from KV other than the KV it was sent", async () => {
    await using prefill = await startPrefill({}, (leg) => leg.done({ firstLogprob: -0.5 }));
    await using decode = await startDecode({}, answers(-1));
    await using tandem = await deploy([prefill, decode]);
    const result = await probe(tandem);
    assert.ok(result.kind === "failed" && result.failure === "wrong", JSON.stringify(result));
    assert.match(result.text, /off by 0\.500.*does not answer from the KV it was sent/);
  });

  it("can't judge engines that report no log probabilities", async () => {
    await using prefill = await startPrefill({}, (leg) => leg.done());
    await using decode = await startDecode({}, answers(-1));
    await using tandem = await deploy([prefill, decode]);
    assert.equal((await probe(tandem)).kind, "unjudged");
  });

  it("takes the order of users' requests: prefill first where the connector picks decode after it", async () => {
    const order: string[] = [];
    const nixl = { connector: "nixl" };
    await using prefill = await startPrefill(nixl, (leg) => {
      order.push("prefill");
      leg.done({ ticket: "{}" });
    });
    await using decode = await startDecode(nixl, (leg) => {
      order.push("decode");
      answers(-1)(leg);
    });
    await using tandem = await deploy([prefill, decode]);
    await probe(tandem, { prompts: 1 });
    assert.deepEqual(order, ["prefill", "decode"]);
  });

  it("follows the limits in force when it is sent, and not those of the start", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode({}, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode], { limits: { prefillTimeoutMs: 3_600_000 } });
    tandem.limits.current = { ...tandem.limits.current, prefillTimeoutMs: 50 };
    const result = await within(probe(tandem, { timeoutMs: 3_600_000 }), "the end of the probe");
    assert.ok(result.kind === "failed" && result.failure === "late", JSON.stringify(result));
    assert.match(result.text, /Prefill did not end within 50 ms/);
  });

  it("reports whether an engine failed or no answer came in time, and leaves no leg behind", async () => {
    await using prefill = await startPrefill({}, (leg) => leg.fail("engine_failed"));
    await using decode = await startDecode();
    decode.legs
      .next("the reservation")
      .then((leg) => leg.accept())
      .catch(() => {});
    await using tandem = await deploy([prefill, decode]);
    const failed = await probe(tandem);
    assert.ok(failed.kind === "failed" && failed.failure === "refused", JSON.stringify(failed));
    assert.match(failed.text, /Scripted engine_failed/);
    await using mute = await startDecode({ instanceId: "d0" });
    await using stalled = await deploy([prefill, mute]);
    const late = await probe(stalled, { timeoutMs: 50 });
    assert.ok(late.kind === "failed" && late.failure === "late", JSON.stringify(late));
  });

  it("ends at once when its caller leaves", async () => {
    await using prefill = await startPrefill({}, (leg) => leg.done());
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const gone = new AbortController();
    const result = probe(tandem, { signal: gone.signal });
    await decode.legs.next("the reservation");
    gone.abort();
    assert.equal((await result).kind, "failed");
  });
});
