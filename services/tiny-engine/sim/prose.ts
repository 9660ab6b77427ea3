// The sim's texts: an opening that names words of the prompt, then sentences without meaning,
// all a pure function of the prompt's KV rows and the seed. Some answers are short, some long, none endless.
import { tokenizer } from "./tokenizer.ts";
import { OPENING, WORDS } from "./vocabulary.ts";
import { mix, type PromptState } from "./kv-rows.ts";

type Kind = keyof typeof WORDS;

const token = (word: string): number => tokenizer.encode(word)[0]!;
const TOKENS = new Map(Object.entries(WORDS).map(([kind, words]) => [kind, [...new Set(words)].map(token)]));

/** Only the end of a long prompt is searched for words: the state already covers all of it. */
const SEARCHED_TOKENS = 400;
const TEMPLATE_WORDS = new Set(["user", "assistant", "system"]);
/** Answers end by themselves after roughly this many tokens. */
const MIN_ANSWER_TOKENS = 16;
const ANSWER_SPREAD_TOKENS = 170;

export class Prose {
  readonly #state: PromptState;
  readonly #lane: number;
  readonly #targetTokens: number;
  #sentence: number[];
  #at = 0;
  #draws = 0;
  #said = 0;

  /** @param lane 0 for greedy, else derived from the sampling seed. */
  constructor(state: PromptState, promptTokens: readonly number[], lane: number) {
    this.#state = state;
    this.#lane = lane;
    this.#targetTokens = MIN_ANSWER_TOKENS + this.#draw(ANSWER_SPREAD_TOKENS);
    this.#sentence = [token(OPENING), ...this.#mention(promptTokens)];
  }

  /** A number from the KV rows: all answers begin with the same word, so its log probability must differ by prompt. */
  get basis(): number {
    return this.#state.a;
  }

  /** The next token. Where the answer would end that is end-of-text, unless `mayEnd` is false. */
  next(mayEnd: boolean): number {
    if (this.#at === this.#sentence.length) {
      if (mayEnd && this.#said >= this.#targetTokens) return tokenizer.eos;
      this.#sentence = this.#makeSentence();
      this.#at = 0;
    }
    this.#said++;
    return this.#sentence[this.#at++]!;
  }

  #draw(limit: number): number {
    const counter = Math.imul(++this.#draws, 0x9e3779b9);
    return (mix(this.#state.a ^ mix(this.#state.b + this.#lane) ^ counter) >>> 0) % limit;
  }

  /** One token of each kind. */
  #pick(...kinds: readonly Kind[]): number[] {
    return kinds.map((kind) => {
      const tokens = TOKENS.get(kind)!;
      return tokens[this.#draw(tokens.length)]!;
    });
  }

  #makeSentence(): number[] {
    const sentence = this.#pick("openers", "adjectives", "nouns", "verbs");
    if (this.#draw(2) === 0) sentence.push(...this.#pick("articles", "nouns"));
    if (this.#draw(3) === 0) sentence.push(...this.#pick("prepositions", "articles", "adjectives", "nouns"));
    if (this.#draw(3) === 0) sentence.push(token(","), ...this.#pick("links", "articles", "nouns", "verbs", "adverbs"));
    return [...sentence, token(".")];
  }

  /** " You said sea and story." with words of the prompt, or nothing where it has none. */
  #mention(promptTokens: readonly number[]): number[] {
    const text = tokenizer.decode(promptTokens.slice(-SEARCHED_TOKENS).filter((token) => !tokenizer.isSpecial(token)));
    const found = [...new Set(text.match(/\p{L}{3,}/gu) ?? [])].filter((word) => !TEMPLATE_WORDS.has(word));
    if (found.length === 0) return [];
    const first = this.#draw(found.length);
    const second = (first + 1 + this.#draw(Math.max(1, found.length - 1))) % found.length;
    const more = second === first ? "" : ` and ${found[second]!}`;
    return tokenizer.encode(` You said ${found[first]!}${more}.`);
  }
}
