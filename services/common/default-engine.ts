// Which engine runs if none is configured: one rule for `tandem up`, `tandem prefill` and `tandem decode`.
import { ConfigError } from "./config.ts";
import { shippedModel } from "./package-file.ts";

/**
 * The embedded engine with a GGUF file or the shipped model; a simulation if this build has no model.
 *
 * @param model The value of `--model`; empty or undefined if not given.
 * @throws ConfigError for a model that only another engine runs: a simulation under the model's name could be mistaken
 * for the model.
 */
export function defaultEngineKind(model: string | undefined): "embedded" | "sim" {
  if (isGguf(model)) return "embedded";
  if (model) {
    throw new ConfigError(
      `--model ${model} doesn't look like a GGUF file. With --engine vllm, vLLM runs the model; with --engine sim, a simulation takes its name.`,
    );
  }
  return shippedModel() === undefined ? "sim" : "embedded";
}

export function isGguf(model: string | undefined): boolean {
  return model?.toLowerCase().endsWith(".gguf") === true;
}
