import assert from "node:assert/strict";
import { shippedModel } from "../../services/common/package-file.ts";
import { defaultEngineKind } from "../../services/common/default-engine.ts";

describe("the engine that runs if none is configured", () => {
  it("is the embedded one with the model that ships, or with a GGUF file", () => {
    for (const model of [undefined, ""])
      assert.equal(defaultEngineKind(model), shippedModel() === undefined ? "sim" : "embedded");
    assert.equal(defaultEngineKind("/models/Some.GGUF"), "embedded");
  });

  it("does not exist for a model that only vLLM runs", () => {
    assert.throws(
      () => defaultEngineKind("meta-llama/Llama-3.1-8B-Instruct"),
      /With --engine vllm, vLLM runs the model/,
    );
  });
});
