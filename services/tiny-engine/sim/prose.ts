// The sim's texts: an opening that names words of the prompt, then sentences without meaning,
// all a pure function of the prompt's KV rows and the seed. Some answers are short, some long, none endless.
import { wordToken, type SimTokenizer } from "./tokenizer.ts";
import { ADJECTIVES, ADVERBS, ARTICLES, LINKS, NOUNS, OPENERS, OPENING, PREPOSITIONS, VERBS } from "./vocabulary.ts";
import { mix, type PromptState } from "./kv-rows.ts";

const ids = (words: readonly string[]): readonly number[] => [...new Set(words)].map(wordToken);
const opening = wordToken(OPENING);
const openers = ids(OPENERS),
  nouns = ids(NOUNS),
  verbs = ids(VERBS),
  adjectives = ids(ADJECTIVES),
  adverbs = ids(ADVERBS);
const links = ids(LINKS),
  prepositions = ids(PREPOSITIONS),
  articles = ids(ARTICLES);
const you = wordToken(" You"),
  said = wordToken(" said"),
  and = wordToken(" and");

/** Only the end of a long prompt is searched for words: the state already covers all of it. */
const SEARCHED_TOKENS = 400;
const TEMPLATE_WORDS = new Set(["user", "assistant", "system"]);
/** Answers end by themselves after roughly this many tokens. */
const MIN_ANSWER_TOKENS = 16;
const ANSWER_SPREAD_TOKENS = 170;

export class Prose {
  readonly #tokenizer: SimTokenizer;
  readonly #state: PromptState;
  readonly #lane: number;
  readonly #period: number;
  readonly #comma: number;
  readonly #targetTokens: number;
  #sentence: number[];
  #at = 0;
  #draws = 0;
  #said = 0;

  /** @param lane 0 for greedy, else derived from the sampling seed. */
  constructor(tokenizer: SimTokenizer, state: PromptState, promptTokens: readonly number[], lane: number) {
    this.#tokenizer = tokenizer;
    this.#state = state;
    this.#lane = lane;
    this.#period = tokenizer.encode(".")[0]!;
    this.#comma = tokenizer.encode(",")[0]!;
    this.#targetTokens = MIN_ANSWER_TOKENS + this.#draw(ANSWER_SPREAD_TOKENS);
    this.#sentence = [opening, ...this.#mention(promptTokens)];
  }

  /** A number from the KV rows: all answers begin with the same word, so its log probability must differ by prompt. */
  get basis(): number {
    return this.#state.a;
  }

  /** The next token. Where the answer would end that is end-of-text, unless `mayEnd` is false. */
  next(mayEnd: boolean): number {
    if (this.#at === this.#sentence.length) {
      if (mayEnd && this.#said >= this.#targetTokens) return this.#tokenizer.eos;
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

  #pick(choices: readonly number[]): number {
    return choices[this.#draw(choices.length)]!;
  }

  #makeSentence(): number[] {
    const sentence = [this.#pick(openers), this.#pick(adjectives), this.#pick(nouns), this.#pick(verbs)];
    if (this.#draw(2) === 0) sentence.push(this.#pick(articles), this.#pick(nouns));
    if (this.#draw(3) === 0)
      sentence.push(this.#pick(prepositions), this.#pick(articles), this.#pick(adjectives), this.#pick(nouns));
    if (this.#draw(3) === 0)
      sentence.push(
        this.#comma,
        this.#pick(links),
        this.#pick(articles),
        this.#pick(nouns),
        this.#pick(verbs),
        this.#pick(adverbs),
      );
    sentence.push(this.#period);
    return sentence;
  }

  /** " You said sea and story." with words of the prompt, or nothing where it has none. */
  #mention(promptTokens: readonly number[]): number[] {
    const text = this.#tokenizer.decode(
      promptTokens.slice(-SEARCHED_TOKENS).filter((token) => !this.#tokenizer.isSpecial(token)),
    );
    const found = [...new Set(text.match(/\p{L}{3,}/gu) ?? [])].filter((word) => !TEMPLATE_WORDS.has(word));
    if (found.length === 0) return [];
    const first = this.#draw(found.length);
    const second = (first + 1 + this.#draw(Math.max(1, found.length - 1))) % found.length;
    const mention = [you, said, ...this.#tokenizer.encode(` ${found[first]!}`)];
    if (second !== first) mention.push(and, ...this.#tokenizer.encode(` ${found[second]!}`));
    return [...mention, this.#period];
  }
}
