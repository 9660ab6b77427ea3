// Whether two servers gave the same answers: every token there, in order, once.
import type { StreamResult } from "./stream-request.ts";

export interface Comparison {
  readonly compared: number;
  /** Answers that are cut short. */
  readonly short: number;
  /** Answers that differ in another way: lost, doubled, out of order or another's text. */
  readonly different: number;
  /** The first wrong answer, described for people. */
  readonly example: string | undefined;
}

type Answer = Pick<StreamResult, "completed" | "text" | "tokens" | "error">;

/** @param expected Answers of the reference, by the same index. */
export function compareAnswers(actual: readonly Answer[], expected: readonly Answer[]): Comparison {
  let compared = 0;
  let short = 0;
  let different = 0;
  let example: string | undefined;
  for (const [index, reference] of expected.entries()) {
    const answer = actual[index];
    if (!reference.completed || answer === undefined) continue;
    compared++;
    if (answer.completed && answer.text === reference.text && answer.tokens === reference.tokens) continue;
    if (reference.text.startsWith(answer.text)) short++;
    else different++;
    example ??= `request ${index}: ${answer.error ?? firstDifference(answer.text, reference.text)}`;
  }
  return { compared, short, different, example };
}

function firstDifference(actual: string, expected: string): string {
  let at = 0;
  while (at < actual.length && actual[at] === expected[at]) at++;
  const around = (text: string): string => JSON.stringify(text.slice(Math.max(0, at - 10), at + 20));
  return `differs at character ${at}: ${around(actual)} instead of ${around(expected)}`;
}
