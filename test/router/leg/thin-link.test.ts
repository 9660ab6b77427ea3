// What a leg may rely on, over real gRPC: each end once, and nothing after it.
import assert from "node:assert/strict";
import { FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import type { ServiceError } from "../../../services/common/errors.ts";
import type { DecodeListener, InstanceLink, Reservation } from "../../../services/router/leg/instance-link.ts";
import { thinLink } from "../../../services/router/leg/thin-link.ts";
import { dialRpc, type RpcChannel } from "../../../services/rpc/channel.ts";
import { silentLog } from "../../support/log-sink.ts";
import { deferred, within } from "../../support/waits.ts";
import { startDecode, startPrefill } from "../support/fake-instance.ts";

const WORDS = {
  legId: "leg",
  path: "/v1/completions",
  body: Buffer.from('{"prompt":"hi"}'),
  promptIndex: undefined,
  prefillKvAddress: "p:1",
  decodeKvAddress: "d:1",
  timeoutMs: undefined,
} as const;
const RESERVATION: Reservation = {
  ...WORDS,
  prefillGrpcAddress: "p:2",
  prefillInstanceId: "prefill-7",
  probe: true,
  identity: { id: "cmpl-1", created: 7, choiceIndex: 3, sampleIndex: 1 },
};

class Heard implements DecodeListener {
  readonly all: string[] = [];
  readonly over = deferred();

  onReserved(reportsTokens: boolean): void {
    this.all.push(reportsTokens ? "reserved, reports tokens" : "reserved");
  }

  onTokens(): void {
    this.all.push("tokens");
  }

  onEvents(events: Buffer): void {
    this.all.push(events.toString());
  }

  onCompleted({ finishReason, promptTokens, completionTokens }: Parameters<DecodeListener["onCompleted"]>[0]): void {
    this.all.push(`completed ${finishReason} ${promptTokens} ${completionTokens}`);
    this.over.resolve();
  }

  onEnded(error: ServiceError | undefined): void {
    this.all.push(`ended ${error?.code ?? "in order"}`);
    this.over.resolve();
  }
}

function link(address: string): { link: InstanceLink; channel: RpcChannel; [Symbol.asyncDispose](): Promise<void> } {
  const channel = dialRpc(address);
  return { link: thinLink(channel, silentLog), channel, [Symbol.asyncDispose]: () => channel[Symbol.asyncDispose]() };
}

describe("a link to a decode instance", () => {
  it("carries a leg from its reservation to its end, and reports nothing after it", async () => {
    await using decode = await startDecode();
    await using to = link(decode.info.grpcAddress);
    const heard = new Heard();
    const remote = to.link.reserve(RESERVATION, heard);
    assert.deepEqual(heard.all, [], "nothing before it has returned");
    const leg = (await decode.legs.next("the reservation")).accept();
    const { body, prefillKvAddress, decodeKvAddress, prefillGrpcAddress, identity } = leg.reserve;
    assert.deepEqual(
      [
        body,
        prefillKvAddress,
        decodeKvAddress,
        prefillGrpcAddress,
        identity!.id,
        identity!.created,
        identity!.choiceIndex,
      ],
      ['{"prompt":"hi"}', "p:1", "d:1", "p:2", "cmpl-1", 7, 3],
    );
    remote.start({ text: "{}", cachedTokens: 2 });
    const start = await within(leg.started.promise, "the start");
    assert.deepEqual([start.ticket, start.cachedTokens, start.unpaired], ["{}", 2, false]);
    leg.events("data: 1\n\n");
    leg.last({ finishReason: FinishReason.TOOL_CALLS }, "data: 2\n\n");
    await within(heard.over.promise, "the end");
    await within(leg.halfClosed.promise, "the last word");
    leg.events("data: too late\n\n");
    leg.close();
    await to.channel[Symbol.asyncDispose]();
    assert.deepEqual(heard.all, ["reserved", "data: 1\n\n", "data: 2\n\n", "completed tool_calls 5 2"]);
  });

  it("carries the tokens of an answer that comes in one piece", async () => {
    await using decode = await startDecode({}, (leg) => {
      leg.accept(true).events("", 2);
      leg.end({}, "{}");
    });
    await using to = link(decode.info.grpcAddress);
    const heard = new Heard();
    to.link.reserve(RESERVATION, heard);
    await within(heard.over.promise, "the end");
    assert.deepEqual(heard.all, ["reserved, reports tokens", "tokens", "{}", "completed stop 5 2"]);
  });

  it("has OpenAI's word for every finish reason, and stop for an unknown one", async () => {
    const words: [number, string][] = [
      [FinishReason.STOP, "stop"],
      [FinishReason.LENGTH, "length"],
      [FinishReason.TOOL_CALLS, "tool_calls"],
      [FinishReason.ABORT, "abort"],
      [FinishReason.UNSPECIFIED, "stop"],
      [99, "stop"],
    ];
    for (const [finishReason, word] of words) {
      await using decode = await startDecode({}, (leg) => leg.accept().end({ finishReason }));
      await using to = link(decode.info.grpcAddress);
      const heard = new Heard();
      to.link.reserve(RESERVATION, heard);
      await within(heard.over.promise, "the end");
      assert.deepEqual(heard.all, ["reserved", `completed ${word} 5 2`]);
    }
  });

  it("is read after an abandon until the instance ends the leg", async () => {
    await using decode = await startDecode();
    await using to = link(decode.info.grpcAddress);
    const heard = new Heard();
    const remote = to.link.reserve(RESERVATION, heard);
    const leg = await decode.legs.next("the reservation");
    remote.pause();
    remote.abandon("cancelled", true);
    const { reason, nothingSent } = await within(leg.abandoned.promise, "the abandon");
    assert.deepEqual([reason, nothingSent], ["cancelled", true]);
    leg.events("data: on its way\n\n");
    leg.close();
    await within(heard.over.promise, "the end");
    assert.deepEqual(heard.all, ["data: on its way\n\n", "ended in order"]);
  });

  it("reports nothing once it is cut, even during a report", async () => {
    await using decode = await startDecode({}, (leg) => leg.accept().last({}, "data: 1\n\n"));
    await using to = link(decode.info.grpcAddress);
    const heard = new Heard();
    const got = deferred();
    heard.onEvents = (events) => {
      heard.all.push(events.toString());
      remote.cut();
      got.resolve();
    };
    const remote = to.link.reserve(RESERVATION, heard);
    await within(got.promise, "the first events");
    await within(decode.legs.all[0]!.cancelled.promise, "the cut at the instance");
    await to.channel[Symbol.asyncDispose]();
    assert.deepEqual(heard.all, ["reserved", "data: 1\n\n"]);
  });

  it("fails if a message can't be read", async () => {
    const endField = 4;
    for (const bytes of [[0x0b], [endField * 8 + 2, 2, 0x08, 0xff]]) {
      await using decode = await startDecode({}, (leg) => leg.accept().raw(Buffer.from(bytes)));
      await using to = link(decode.info.grpcAddress);
      const heard = new Heard();
      to.link.reserve(RESERVATION, heard);
      await within(heard.over.promise, "the end");
      assert.deepEqual(heard.all, ["reserved", "ended engine_failed"]);
    }
  });

  it("ends at once if the instance can't be reached", async () => {
    const decode = await startDecode();
    await decode[Symbol.asyncDispose]();
    await using to = link(decode.info.grpcAddress);
    const heard = new Heard();
    to.link.reserve(RESERVATION, heard);
    await within(heard.over.promise, "the end");
    assert.deepEqual(heard.all, ["ended instance_unavailable"]);
  });
});

describe("a link to a prefill instance", () => {
  it("brings the ticket, or the reason for the failure", async () => {
    await using prefill = await startPrefill();
    await using to = link(prefill.info.grpcAddress);
    const heard: unknown[] = [];
    const answer = async (): Promise<void> => {
      const over = deferred();
      const say = (what: unknown): void => {
        heard.push(what);
        over.resolve();
      };
      to.link.prefill(WORDS, { onDone: say, onFailed: (error) => say(error.code) });
      const leg = await prefill.legs.next("the prefill");
      if (heard.length === 0) leg.done({ ticket: "{}", cachedTokens: 3, kvBytes: 7n, firstLogprob: -0.5 });
      else leg.fail("engine_failed");
      await within(over.promise, "the answer");
    };
    await answer();
    await answer();
    assert.deepEqual(heard, [
      { ticket: { text: "{}", cachedTokens: 3 }, promptTokens: 5, kvBytes: 7n, firstLogprob: -0.5 },
      "engine_failed",
    ]);
  });

  it("reports nothing once it is cancelled, and the instance learns of the cancel", async () => {
    await using prefill = await startPrefill();
    await using to = link(prefill.info.grpcAddress);
    const fail = (): void => assert.fail("heard after the cancel");
    const remote = to.link.prefill(WORDS, { onDone: fail, onFailed: fail });
    const leg = await prefill.legs.next("the prefill");
    remote.cancel();
    await within(leg.cancelled.promise, "the cancel at the instance");
    await to.channel[Symbol.asyncDispose]();
  });
});
