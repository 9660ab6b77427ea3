// Which engine runs where nobody said: one rule for `tandem up`, `tandem prefill` and `tandem decode`.
import { ConfigError } from "./config.ts";
import { shippedModel } from "./shipped-model.ts";

/**
 * The embedded engine with a GGUF file or the model that ships; a simulation where this build has no model.
 *
 * @param model What `--model` says; empty or undefined where it doesn't.
 * @throws ConfigError for a model that only another engine runs: a simulation under its name would be taken for it.
 */
export function defaultEngineKind(model: string | undefined): "embedded" | "sim" {
  if (isGguf(model)) return "embedded";
  if (model !== undefined && model !== "") {
    throw new ConfigError(
      `--model ${model} is not named like a GGUF file. With --engine vllm it is run by vLLM; with --engine sim it is the name of a simulation.`,
    );
  }
  return shippedModel() === undefined ? "sim" : "embedded";
}

export function isGguf(model: string | undefined): boolean {
  return model?.toLowerCase().endsWith(".gguf") === true;
}
