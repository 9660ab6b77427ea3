// The requests of a run and their right answers. The sim's answer is a pure function of the prompt; the right answers
// come from an engine that does both legs itself, without Tandem.
import { Agent } from "node:http";
import { POISON } from "../../services/tiny-engine/faults.ts";
import { timedRequest, type Ask, type TimedAnswer } from "../common/timed-request.ts";
import { closedLoop, seededRandom } from "../loadgen/arrivals.ts";

export type KnownAnswer = Readonly<Pick<TimedAnswer, "text" | "tokens" | "finishReason">>;

/** Number of requests in the list that engines answer with a 500. It is the last one. */
export const POISONED = 1;

const WORDS =
  "tide lamp anchor harbour letter winter copper garden signal bridge paper river engine window stone".split(" ");

/** Makes requests of every shape: both routes, streaming and not, short and long, ended by the text or by the limit. */
export function makeAsks(
  seed: number,
  model: string,
  o: { readonly count: number; readonly tokenLimit: number; readonly wordLimit: number },
): Ask[] {
  const random = seededRandom(seed ^ 0x5eed);
  return Array.from({ length: o.count + POISONED }, (_, index) => {
    const words = [`${seed}.${index}:`, ...(index < o.count ? [] : [POISON])];
    const length = 4 + Math.floor(random() ** 3 * o.wordLimit);
    while (words.length < length) words.push(WORDS[Math.floor(random() * WORDS.length)]!);
    const prompt = words.join(" ");
    const chat = random() < 0.5;
    const stream = random() < 0.9;
    const common = {
      model,
      max_tokens: 4 + Math.floor(random() * o.tokenLimit),
      ...(random() < 0.5 ? { ignore_eos: true } : {}),
      ...(random() < 0.3 ? { temperature: 0.8, seed: index } : { temperature: 0 }),
      stream,
      ...(stream ? { stream_options: { include_usage: true } } : {}),
    };
    return {
      path: chat ? "/v1/chat/completions" : "/v1/completions",
      stream,
      body: JSON.stringify(chat ? { ...common, messages: [{ role: "user", content: prompt }] } : { ...common, prompt }),
    };
  });
}

/** @throws Error when the reference engine does not answer, because nothing could be checked then. */
export async function rightAnswers(url: string, asks: readonly Ask[]): Promise<KnownAnswer[]> {
  const agent = new Agent({ keepAlive: true });
  try {
    return await closedLoop(asks.length, 16, async (index) => {
      const { ending, message, text, tokens, finishReason } = await timedRequest(asks[index]!, {
        url,
        agent,
        hangMs: 60_000,
      });
      if (ending !== "completed") throw new Error(`the reference engine gives no answer: ${ending} ${message}`);
      return { text, tokens, finishReason };
    });
  } finally {
    agent.destroy();
  }
}
