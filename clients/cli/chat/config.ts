// Settings of `tandem chat`.
import { defineConfig, integer, number, secret, text } from "../../../services/common/config.ts";
import { routerSettings } from "../router-target.ts";

export const chatConfig = defineConfig(
  "chat",
  {
    ...routerSettings,
    model: text({ optional: true, doc: "Model to talk to. Left out: the first that the router lists." }),
    system: text({ optional: true, doc: "A system message, said before everything else." }),
    temperature: number({ default: 0, min: 0, max: 10, doc: "How freely words are chosen. 0: the likeliest always." }),
    seed: integer({ optional: true, min: 0, doc: "With a temperature: the same seed gives the same answers again." }),
    max_tokens: integer({
      optional: true,
      min: 1,
      alias: "max-tokens",
      unit: "tokens",
      doc: "Longest answer. Left out: what the model's context leaves.",
    }),
    api_key: secret({ alias: "api-key", env: ["OPENAI_API_KEY"], doc: "Key that the router wants of its clients." }),
  },
  {
    summary:
      "Talks to the model, and shows of each answer how long it took and how much KV moved for it. Ctrl-C stops an answer, and leaves " +
      "where none is running. Questions may also come through a pipe, one a line; the figures go to standard error then.",
    usage: "tandem chat [--router URL] [--model NAME] [--temperature 0.7]    echo 'What is Tandem?' | tandem chat",
  },
);
