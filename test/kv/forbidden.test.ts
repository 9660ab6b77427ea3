import assert from "node:assert/strict";
import { REFUSED_FIELDS, refusedField } from "../../services/kv/forbidden.ts";

const param = (json: string): string | undefined => refusedField(JSON.parse(json))?.param;

describe("a client's body", () => {
  it("may not set the fields that pair the legs, under any spelling", () => {
    assert.equal(param('{"kv_transfer_params":null}'), "kv_transfer_params");
    assert.equal(param('{"\\u006bv_transfer_params":{}}'), "kv_transfer_params");
    assert.equal(param('{"request_id":"___prefill_addr_10.0.0.9:1___"}'), "request_id");
    assert.equal(param('{"ec_transfer_params":{}}'), "ec_transfer_params");
  });

  it("may not carry them in vLLM's extra arguments, which end up in the same place", () => {
    assert.equal(param('{"vllm_xargs":{"kv_transfer_params":"x"}}'), "vllm_xargs.kv_transfer_params");
    assert.equal(param('{"vllm_xargs":{"my_option":1}}'), undefined);
  });

  it("is refused the features that no pair of legs can serve", () => {
    assert.equal(param('{"prompt_logprobs":1}'), "prompt_logprobs");
    assert.equal(param('{"echo":true,"logprobs":0}'), "echo");
    assert.equal(param('{"use_beam_search":true}'), "use_beam_search");
    assert.equal(param('{"best_of":2}'), "best_of");
    assert.equal(param('{"best_of":"2"}'), "best_of");
    assert.equal(param('{"best_of":1}'), undefined);
    assert.equal(param('{"prompt_embeds":"AAAA"}'), "prompt_embeds");
  });

  it("is refused by the list, each entry of which refuses something", () => {
    const values = [1, true, { kv_transfer_params: 1 }];
    const refuses = (field: string): boolean =>
      values.some((value) => refusedField({ logprobs: 1, [field]: value })?.param.split(".")[0] === field);
    assert.deepEqual(
      REFUSED_FIELDS.map(({ field }) => field).filter((field) => !refuses(field)),
      [],
    );
  });

  it("passes with all other fields", () => {
    assert.equal(
      param('{"prompt":"kv_transfer_params","echo":true,"logprobs":null,"metadata":{"request_id":"mine"}}'),
      undefined,
    );
  });
});
