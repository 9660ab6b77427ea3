import { randomGguf } from "../../../clients/common/random-gguf.ts";
import { startLlamaEngine } from "../../../services/tiny-engine/llama/start-llama-engine.ts";
import { describeRepeatable } from "../repeatable.ts";
import { startPair, TINY } from "./engines.ts";

const file = randomGguf({ ...TINY, maxContext: 3_200 });

describeRepeatable("the embedded engine", {
  start: () => startLlamaEngine({ model: file, modelName: "tiny" }),
  startPair: () => startPair({ model: file }, { model: file }),
  prompt: "The captain reads a letter about the island and the sea.",
  manyTokens: 3_000,
});
