// What a decode instance may send, message by message.
import assert from "node:assert/strict";
import { AnswerCheck } from "../../../services/router/leg/answer-check.ts";
import type { RelayRequest } from "../../../services/router/request/request.ts";

const ID = "cmpl-0123456789abcdef";
const event = (text: string, id = ID, more = ""): string =>
  `data: {"id":"${id}","object":"text_completion","choices":[{"index":0,"text":${JSON.stringify(text)}}]${more}}\n\n`;
const whole = (more = "", id = ID): string => `{"id":"${id}","choices":[{"index":0,"text":"a"}]${more}}`;

function faults(request: Partial<RelayRequest>, messages: readonly string[]): (string | undefined)[] {
  const body = Buffer.from('{"prompt":"hi"}');
  const check = new AnswerCheck({ id: ID, stream: true, maxTokens: 2, body, ...request } as RelayRequest, 0);
  return messages.map((message) => check.faultOf(Buffer.from(message))?.message);
}

const DONE = "data: [DONE]\n\n";
const HALF = "The decode instance sent half an event.";
const EARLY_DONE = "The decode instance sent the end of a stream that goes on.";
const FOREIGN = "The decode instance sent an id that is not the client's.";
const INTERNAL = "The decode instance sent internal parameters.";

describe("the answer of a decode instance", () => {
  for (const [what, message] of [
    ["one event", event("a")],
    ["several events", event("a") + event("b") + event("c")],
    [
      "text that looks like an end, an id or parameters",
      event('[DONE] data: [DONE]\n\n "id":"x" "kv_transfer_params":{"a":1}'),
    ],
    ["an event of several lines", "event: x\ndata: {}\n\n"],
    ["an event without an id", 'data: {"choices":[]}\n\n'],
    ["parameters that are null, as vLLM writes them", event("a", ID, ',"kv_transfer_params":null')],
  ] as const) {
    it(`is passed on with ${what}`, () => {
      assert.deepEqual(faults({}, [event("first"), message, event("last")]), [undefined, undefined, undefined]);
      assert.deepEqual(faults({}, [message]), [undefined]);
    });
  }

  for (const [what, message, fault] of [
    ["half an event", 'data: {"id":"cmpl-0', HALF],
    ["an event and a half", `${event("a")}data: {"id`, HALF],
    ["an event without its blank line", event("a").slice(0, -1), HALF],
    ["[DONE]", DONE, EARLY_DONE],
    ["[DONE] between events", event("a") + DONE + event("b"), EARLY_DONE],
    ["the id of an engine", event("a", "cmpl-___prefill_addr_10.0.0.1:1___decode_addr_10.0.0.2:2_ab"), FOREIGN],
    ["the id of an engine in a later event", event("a") + event("b", "cmpl-fedcba9876543210"), FOREIGN],
    [
      "parameters of the KV transfer",
      event("a", "cmpl-x", ',"kv_transfer_params":{"remote_host":"10.0.0.1"}'),
      INTERNAL,
    ],
  ] as const) {
    it(`is not, with ${what}`, () => {
      assert.deepEqual(faults({}, [event("first"), message]), [undefined, fault]);
      assert.deepEqual(faults({}, [message]), [fault]);
    });
  }

  it("may be as long as its request can ask for", () => {
    const megabytes = event("x".repeat(1_000_000));
    const excess = "The decode instance sent more than its request can ask for.";
    assert.deepEqual(faults({}, [megabytes, megabytes]), [undefined, excess]);
    assert.deepEqual(faults({ maxTokens: 4_096 }, Array(20).fill(megabytes)), Array(20).fill(undefined));
    const long = { body: Buffer.alloc(10_000) };
    assert.deepEqual(faults(long, Array(20).fill(megabytes)), Array(20).fill(undefined), "it may repeat its prompt");
    const unlimited = { stream: true, body: Buffer.from("{}"), id: ID } as RelayRequest;
    assert.equal(new AnswerCheck(unlimited, 0).faultOf(Buffer.from(megabytes.repeat(9))), undefined);
    assert.equal(new AnswerCheck(unlimited, 16).faultOf(Buffer.from(megabytes.repeat(9)))?.message, excess);
  });

  it("in one piece has the client's id and nothing internal", () => {
    const unstreamed = { stream: false };
    assert.deepEqual(faults(unstreamed, [whole()]), [undefined]);
    assert.deepEqual(faults(unstreamed, [whole("", "cmpl-other")]), [FOREIGN]);
    assert.deepEqual(faults(unstreamed, [whole(',"kv_transfer_params":{"a":1}')]), [INTERNAL]);
  });
});
