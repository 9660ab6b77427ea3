// Settings of `tandem chat`.
import { defineConfig, integer, number, secret, text } from "../../../services/common/config.ts";
import { routerSettings } from "../router-target.ts";

export const chatConfig = defineConfig(
  "chat",
  {
    ...routerSettings,
    model: text("model", "Model to talk to. Left out: the first model that the router lists.", { optional: true }),
    system: text("system", "System message, sent before the conversation.", { optional: true }),
    temperature: number("temperature", "Sampling temperature. 0 always picks the likeliest token.", {
      default: 0,
      min: 0,
      max: 10,
    }),
    seed: integer("seed", "Sampling seed. At a given temperature, the same seed gives the same answers.", {
      optional: true,
      min: 0,
    }),
    maxTokens: integer("max_tokens", "Longest answer. Left out: as long as the model's context allows.", {
      optional: true,
      min: 1,
      unit: "tokens",
    }),
    apiKey: secret("api_key", "API key that the router requires of its clients.", { env: ["OPENAI_API_KEY"] }),
  },
  {
    summary:
      "Talks to the model. After each answer, shows how long the answer took and how much KV was moved for it. Ctrl-C stops an " +
      "answer, or quits if none is running. Questions may also be piped in, one per line; the figures then go to standard error.",
    usage: "tandem chat [--router URL] [--model NAME] [--temperature 0.7]    echo 'What is Tandem?' | tandem chat",
  },
);
