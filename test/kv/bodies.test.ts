// The bodies of the two legs: what is changed, and that nothing else is.
import assert from "node:assert/strict";
import { scanObject } from "../../services/common/json-body.ts";
import { CONNECTORS } from "../../services/kv/index.ts";
import type { Connector, LegSpec } from "../../services/kv/connector.ts";
import { asksForStream, asksForUsage } from "../../services/kv/leg-body.ts";

const LEG_ID = "0123456789abcdef0123456789abcdef";

function context(json: string, over: Partial<LegSpec> = {}): LegSpec {
  const body = Buffer.from(json);
  return {
    legId: LEG_ID,
    path: "/v1/completions",
    body,
    members: scanObject(body),
    prefillKvAddress: "10.0.0.1:20001",
    decodeKvAddress: "10.0.0.2:21001",
    sampleIndex: 0,
    ...over,
  };
}

const text = (request: { body: Buffer }): string => request.body.toString();
const { nixl, "p2p-nccl": p2pNccl, "p2p-zmq": p2pZmq } = CONNECTORS;

describe("the prefill copy of a body", () => {
  it("asks for one token, without a stream", () => {
    const sent = JSON.parse(
      text(
        p2pNccl.prefillRequest(
          context(
            '{"prompt":"hi","max_tokens":99,"stream":true,"stream_options":{"include_usage":true},"min_tokens":9,"n":2,"stop":["x"]}',
          ),
        ),
      ),
    );
    assert.deepEqual(sent, { prompt: "hi", max_tokens: 1 });
  });

  it("sets both limits in chat, where the newer one wins", () => {
    const chat = context('{"messages":[],"max_completion_tokens":50}', { path: "/v1/chat/completions" });
    assert.deepEqual(JSON.parse(text(p2pNccl.prefillRequest(chat))), {
      messages: [],
      max_completion_tokens: 1,
      max_tokens: 1,
    });
  });

  it("leaves every other byte as the client wrote it", () => {
    const odd = '{ "prompt" : "h\\u00e9\\ud800",  "seed": 12345678901234567890, "surprise":1.0e-7 , "max_tokens":5}';
    assert.equal(
      text(p2pNccl.prefillRequest(context(odd))),
      '{ "prompt" : "h\\u00e9\\ud800",  "seed": 12345678901234567890, "surprise":1.0e-7 , "max_tokens":1}',
    );
  });

  it("takes this leg's prompt from a list, in its own spelling", () => {
    const list = context('{"prompt":[[1, 2],[3,4.0]],"max_tokens":5}', { promptIndex: 1 });
    assert.equal(text(p2pNccl.prefillRequest(list)), '{"prompt":[3,4.0],"max_tokens":1}');
  });
});

describe("the decode copy of a body", () => {
  it("is the client's body if the request doesn't stream", () => {
    const body = '{"prompt":"hi","max_tokens":5}';
    assert.equal(text(p2pNccl.decodeRequest(context(body), "")), body);
  });

  it("always asks for the usage chunk of a stream, and keeps the client's other options", () => {
    assert.equal(
      text(p2pNccl.decodeRequest(context('{"stream":true}'), "")),
      '{"stream":true,"stream_options":{"include_usage":true}}',
    );
    assert.equal(
      text(p2pNccl.decodeRequest(context('{"stream":true,"stream_options":{"include_usage":false,"x":1}}'), "")),
      '{"stream":true,"stream_options":{"include_usage":true,"x":1}}',
    );
    assert.equal(
      text(p2pNccl.decodeRequest(context('{"stream":true,"stream_options":null}'), "")),
      '{"stream":true,"stream_options":{"include_usage":true}}',
    );
  });

  it("shifts the seed by the choice, beyond the integers of a double", () => {
    const leg = context('{"seed":9007199254740993,"n":3}', { sampleIndex: 2 });
    assert.equal(text(p2pNccl.decodeRequest(leg, "")), '{"seed":9007199254740995,"n":1}');
  });

  it("carries the ticket of NIXL byte for byte", () => {
    const ticket =
      '{"remote_engine_id":"e","remote_request_id":"r","remote_host":"h","remote_block_ids":[[5,6]],"remote_port":5600,"big":12345678901234567890}';
    assert.equal(
      text(nixl.decodeRequest(context('{"prompt":"hi"}'), ticket)),
      `{"prompt":"hi","kv_transfer_params":${ticket}}`,
    );
  });
});

describe("the ids of the two legs", () => {
  const paired = `___prefill_addr_10.0.0.1:20001___decode_addr_10.0.0.2:21001_${LEG_ID}`;
  for (const connector of [p2pNccl, p2pZmq]) {
    it(`carry both KV addresses with ${connector.traits.name}`, () => {
      const leg = context('{"prompt":"hi"}');
      assert.equal(connector.prefillRequest(leg).headers["x-request-id"], paired);
      assert.equal(connector.decodeRequest(leg, "").headers["x-request-id"], paired);
    });
  }

  it("satisfy vLLM's own patterns, which are greedy", () => {
    assert.deepEqual(/___decode_addr_(.*):(\d+)/.exec(paired)?.slice(1), ["10.0.0.2", "21001"]);
    assert.deepEqual(/___prefill_addr_(.*):(\d+)___/.exec(paired)?.slice(1), ["10.0.0.1", "20001"]);
  });

  it("are built from hex and plain addresses only", () => {
    assert.throws(() => p2pNccl.prefillRequest(context("{}", { legId: "x:1" })));
    assert.throws(() => p2pNccl.prefillRequest(context("{}", { decodeKvAddress: "::1:20001___" })));
  });
});

describe("a ticket of NIXL", () => {
  const whole = {
    do_remote_prefill: true,
    remote_engine_id: "e",
    remote_request_id: "r",
    remote_block_ids: [[5]],
    remote_host: "h",
    remote_port: 1,
  };
  it("is the engine's parameters", () => {
    assert.deepEqual(JSON.parse(nixl.ticket({ kv_transfer_params: whole })), whole);
  });
  it("is refused if it would kill the decode engine", () => {
    assert.throws(() => nixl.ticket({ kv_transfer_params: null }), { code: "kv_transfer_failed" });
    assert.throws(() => nixl.ticket({}), { code: "kv_transfer_failed" });
    assert.throws(() => nixl.ticket({ kv_transfer_params: { ...whole, remote_block_ids: null } }), {
      code: "kv_transfer_failed",
    });
  });
  it("is checked again before the decode engine gets it", () => {
    const leg = context('{"prompt":"hi"}');
    nixl.decodeRequest(leg, JSON.stringify(whole));
    for (const ticket of [
      "",
      "nonsense",
      "null",
      "[]",
      '{"do_remote_prefill":true}',
      JSON.stringify({ ...whole, remote_host: undefined }),
    ]) {
      assert.throws(() => nixl.decodeRequest(leg, ticket), ticket);
    }
  });
});

describe("the KV of an abandoned leg", () => {
  const settle = (connector: Connector) =>
    connector.settleRequest(context('{"prompt":"hi","max_tokens":50,"stream":true}'), "");
  it("is claimed by a decode leg of one token under P2P NCCL", () => {
    const drain = settle(p2pNccl)!;
    assert.equal(drain.path, "/v1/completions");
    assert.deepEqual(JSON.parse(text(drain)), { prompt: "hi", max_tokens: 1 });
  });
  it("is released by its id in Tandem's own engines", () => {
    assert.equal(settle(p2pZmq)!.path, "/kv/release");
  });
  it("expires by its lease with NIXL", () => {
    assert.equal(settle(nixl), undefined);
  });
});

describe("the options of a body", () => {
  const ask = (json: string) => {
    const { body, members } = context(json);
    return [asksForStream(body, members), asksForUsage(body, members)];
  };
  it("are read without a parse", () => {
    assert.deepEqual(ask('{"stream":true,"stream_options":{"include_usage": true}}'), [true, true]);
    assert.deepEqual(ask('{"stream":false}'), [false, false]);
    assert.deepEqual(ask('{"stream_options":null}'), [false, false]);
  });
});
