// Settings of `tandem chat`.
import { defineConfig, integer, number, secret, text } from "../../../services/common/config.ts";
import { routerSettings } from "../router-target.ts";

export const chatConfig = defineConfig(
  "chat",
  {
    ...routerSettings,
    model: text("model", "Model to talk to. Left out: the first that the router lists.", { optional: true }),
    system: text("system", "A system message, said before everything else.", { optional: true }),
    temperature: number("temperature", "How freely words are chosen. 0: the likeliest always.", {
      default: 0,
      min: 0,
      max: 10,
    }),
    seed: integer("seed", "With a temperature: the same seed gives the same answers again.", {
      optional: true,
      min: 0,
    }),
    maxTokens: integer("max_tokens", "Longest answer. Left out: what the model's context leaves.", {
      optional: true,
      min: 1,
      unit: "tokens",
    }),
    apiKey: secret("api_key", "Key that the router wants of its clients.", { env: ["OPENAI_API_KEY"] }),
  },
  {
    summary:
      "Talks to the model, and shows of each answer how long it took and how much KV moved for it. Ctrl-C stops an answer, and leaves " +
      "where none is running. Questions may also come through a pipe, one a line; the figures go to standard error then.",
    usage: "tandem chat [--router URL] [--model NAME] [--temperature 0.7]    echo 'What is Tandem?' | tandem chat",
  },
);
