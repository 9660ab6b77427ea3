// Several legs of one request, over real gRPC: n > 1 and prompt lists become one answer, or one error.
import assert from "node:assert/strict";
import { FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { within } from "../../support/waits.ts";
import { deploy, untilNoLegs } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens } from "../support/fake-instance.ts";
import type { DecodeLeg, PrefillLeg } from "../support/fake-instance.ts";

const done = (leg: PrefillLeg): void => leg.done();

const usage = (prompt: number, completion: number): string =>
  `{"prompt_tokens":${prompt},"total_tokens":${prompt + completion},"completion_tokens":${completion}}`;
const usageEvent = (prompt: number, completion: number): string =>
  `data: {"created":7,"choices":[],"usage":${usage(prompt, completion)}}\n\n`;
const token = (index: number, text: string): string =>
  `data: {"created":7,"choices":[{"index":${index},"text":"${text}"}]}\n\n`;

/** Answers as an engine whose prompt `i` has 10 + i tokens and whose choice `i` has 1 + i. */
function counted(streams: boolean): (leg: DecodeLeg) => void {
  return (leg) => {
    leg.accept();
    void leg.started.promise.then(() => {
      const { choiceIndex } = leg.reserve.identity!;
      const promptTokens = 10 + (leg.reserve.promptIndex ?? 0);
      const completionTokens = 1 + choiceIndex;
      const end = { promptTokens, completionTokens, cachedTokens: 2, finishReason: FinishReason.LENGTH };
      if (streams) {
        leg.events(token(choiceIndex, "a"));
        leg.end(end, token(choiceIndex, "b") + usageEvent(promptTokens, completionTokens));
      } else {
        leg.end(
          end,
          `{"created":7,"choices":[{"index":${choiceIndex}}],"usage":${usage(promptTokens, completionTokens)}}`,
        );
      }
    });
  };
}

describe("a request for several choices", () => {
  it("runs one pair of legs for each choice, and merges their bodies in order", async () => {
    await using prefill = await startPrefill({}, done);
    await using one = await startDecode({ instanceId: "d1" }, counted(false));
    await using two = await startDecode({ instanceId: "d2" }, counted(false));
    await using tandem = await deploy([prefill, one, two]);
    const { client, ending, receipt } = tandem.start({ stream: false, choices: 2, prompts: 2, promptIsList: true });
    assert.deepEqual(await ending, {
      finishReasons: ["length", "length", "length", "length"],
      promptTokens: 21,
      completionTokens: 10,
      cachedTokens: 4,
    });
    assert.deepEqual(client.chunks, [
      `{"created":7,"choices":[{"index":0},{"index":1},{"index":2},{"index":3}],"usage":${usage(21, 10)}}`,
    ]);
    const legs = [...one.legs.all, ...two.legs.all].map(({ reserve: { identity, promptIndex } }) => [
      identity!.choiceIndex,
      promptIndex,
      identity!.sampleIndex,
    ]);
    assert.deepEqual(legs.sort(), [
      [0, 0, 0],
      [1, 0, 1],
      [2, 1, 0],
      [3, 1, 1],
    ]);
    assert.deepEqual(prefill.legs.all.map(({ request }) => request.promptIndex).sort(), [0, 0, 1, 1]);
    assert.equal(new Set(prefill.legs.all.map(({ request }) => request.legId)).size, 4);
    assert.equal(receipt.legs.length, 4);
    // One each for the two of a burst: the figures of the instances are the same old ones all the while.
    assert.equal(one.legs.all.length, 2);
  });

  it("streams each choice at once, and one usage chunk at the end", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({}, counted(true));
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start({ choices: 3, includeUsage: true });
    await ending;
    assert.equal(client.started, 1);
    assert.equal(client.chunks.at(-1), usageEvent(10, 6));
    assert.equal(client.text.split("usage").length, 2);
    for (const index of [0, 1, 2]) {
      assert.ok(client.text.indexOf(token(index, "a")) < client.text.indexOf(token(index, "b")), `choice ${index}`);
    }
  });

  it("names the prompt even of a list of one", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({}, twoTokens);
    await using tandem = await deploy([prefill, decode]);
    await tandem.start({ promptIsList: true }).ending;
    assert.equal(decode.legs.all[0]!.reserve.promptIndex, 0);
  });

  it("fails as a whole when one leg fails: running legs and reservations are abandoned", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode], { limits: { retryLimit: 0 } });
    const { client, ending } = tandem.start({ choices: 3 });
    const [a, b, c] = [await decode.legs.next("a"), await decode.legs.next("b"), await decode.legs.next("c")];
    a.accept();
    (await prefill.legs.next("prefill of a")).done();
    await a.started.promise;
    a.events(token(0, "a"));
    await client.got(1);
    b.accept();
    const running = await prefill.legs.next("prefill of b");
    c.fail("engine_failed");
    await assert.rejects(ending, { code: "engine_failed" });
    await within(a.abandoned.promise, "the abandon of the running leg");
    running.done();
    await within(b.abandoned.promise, "the abandon of the reserved leg");
    b.close();
    await untilNoLegs(tandem);
    assert.equal(client.chunks.length, 1);
  });

  it("tries one choice again while another streams", async () => {
    await using prefill = await startPrefill({}, done);
    let failures = 1;
    await using decode = await startDecode({}, (leg) => {
      if (leg.reserve.identity!.choiceIndex === 1 && failures-- > 0) leg.fail("reservation_expired");
      else twoTokens(leg);
    });
    await using tandem = await deploy([prefill, decode]);
    const { ending, client, receipt } = tandem.start({ choices: 2 });
    await ending;
    assert.equal(client.text.split("\n\n").length - 1, 4);
    assert.deepEqual(receipt.fallbacks, ["retry:reserve:reservation_expired"]);
  });

  it("paces itself if there are fewer slots than choices", async () => {
    await using prefill = await startPrefill({}, done);
    let free = 2;
    let most = 0;
    await using decode = await startDecode({}, (leg) => {
      if (free === 0) return leg.fail("instance_busy");
      free -= 1;
      most = Math.max(most, 2 - free);
      leg.accept();
      void leg.started.promise.then(() => {
        free += 1;
        leg.end({}, token(leg.reserve.identity!.choiceIndex, "a"));
      });
    });
    await using tandem = await deploy([prefill, decode], { limits: { retryLimit: 0 } });
    const { ending, client } = tandem.start({ choices: 9 });
    await ending;
    assert.equal(client.chunks.length, 9);
    assert.equal(most, 2);
  });

  it("holds back all its legs for a slow client, and resumes them together", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start({ choices: 2 });
    const legs = [await decode.legs.next("a"), await decode.legs.next("b")];
    for (const leg of legs) {
      leg.accept();
      await leg.started.promise;
    }
    client.reading = false;
    for (const leg of legs) leg.events(token(leg.reserve.identity!.choiceIndex, "a"));
    await client.got(2);
    client.read();
    for (const leg of legs) leg.end({}, token(leg.reserve.identity!.choiceIndex, "b"));
    await ending;
    assert.equal(client.chunks.length, 4);
  });
});
