// The OpenAI SDK for Python against `tandem up`, with sim engines behind it.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { skip } from "../support/skip.ts";
import { startTandem } from "../support/tandem.ts";
import { pythonWithOpenai } from "../support/tools.ts";

const SCRIPT = `
import json, sys
from openai import OpenAI, NotFoundError
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "What is disaggregated prefill?"}]
out = {"model": model}
chat = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=30)
out["chat"] = chat.choices[0].message.content
out["usage"] = chat.usage.total_tokens - chat.usage.prompt_tokens - chat.usage.completion_tokens
stream = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=30, stream=True)
out["chat_stream"] = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
plain = client.completions.create(model=model, prompt="Prefill and decode", temperature=0, max_tokens=20)
out["completion"] = plain.choices[0].text
stream = client.completions.create(model=model, prompt="Prefill and decode", temperature=0, max_tokens=20, stream=True)
out["completion_stream"] = "".join(c.choices[0].text for c in stream if c.choices)
try:
    client.completions.create(model="nope", prompt="x")
except NotFoundError as error:
    out["unknown"] = error.message
print(json.dumps(out))
`;

describe("openai-python", function () {
  this.timeout(5 * 60_000);

  it("chats and completes, streamed and not, and gets typed errors", async function () {
    const python = await pythonWithOpenai();
    if ("missing" in python) skip(this, python.missing);
    await using tandem = await startTandem([]);
    const { stdout } = await promisify(execFile)(python.path, ["-c", SCRIPT, tandem.url]);
    const out = JSON.parse(stdout) as Record<string, string>;
    assert.ok(out["chat"]!.length > 0);
    assert.equal(out["usage"], 0);
    assert.equal(out["chat_stream"], out["chat"]);
    assert.ok(out["completion"]!.length > 0);
    assert.equal(out["completion_stream"], out["completion"]);
    assert.match(out["unknown"]!, new RegExp(out["model"]!));
  });
});
