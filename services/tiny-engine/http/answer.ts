// One generation request from submit to the last byte: starts its sequences, writes their tokens as they
// arrive or collects them, and ends exactly once: finished, failed, or aborted because the client left.
import type { ServerResponse } from "node:http";
import type { EngineFailure, Finish, SequenceHandle, TokenLogprobs, TokenSink } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import type { RequestFaults } from "../faults.ts";
import { errorBody, errorEvent, sendJson } from "./exchange.ts";
import type { AnswerFormat, Delta, Usage, WholeChoice } from "./format.ts";
import { OutputText } from "./output-text.ts";
import type { ChoicesPlan, StreamChoice } from "./sampling.ts";
import { DONE, SseWriter } from "./sse.ts";

export type Outcome = "finished" | "aborted" | "failed" | "refused";

export interface AnswerPlan extends ChoicesPlan {
  /** One prompt each; `id` is the engine-level id without a child index. */
  readonly prompts: readonly { readonly id: string; readonly tokens: readonly number[] }[];
  readonly stream: StreamChoice;
  readonly promptLogprobs: number | null;
  /** Made once the sequences are submitted, whose handles know the prompt's logprobs. */
  readonly format: (handles: readonly SequenceHandle[]) => AnswerFormat;
}

export interface AnswerOptions {
  readonly engine: EngineCore;
  /** As vLLM's --enable-prompt-tokens-details. */
  readonly reportCached: boolean;
  readonly onOutcome: (outcome: Outcome) => void;
  /** The fault "die" struck. */
  readonly die: () => void;
}

export class Answer {
  readonly #options: AnswerOptions;
  readonly #res: ServerResponse;
  readonly #plan: AnswerPlan;
  readonly #faults: RequestFaults | null;
  readonly #choices: Choice[] = [];
  readonly #handles: SequenceHandle[] = [];
  #format: AnswerFormat | null = null;
  #writer: SseWriter | null = null;
  /** One entry per token that waits for a slow client, in the order of arrival. The choices hold the text. */
  readonly #unwritten: Choice[] = [];
  #opened = false;
  #open = 0;
  #tokenCount = 0;
  #over = false;

  constructor(options: AnswerOptions, res: ServerResponse, plan: AnswerPlan, faults: RequestFaults | null) {
    this.#options = options;
    this.#res = res;
    this.#plan = plan;
    this.#faults = faults;
  }

  start(): void {
    const { engine } = this.#options;
    const { prompts, n, samplings, stops, includeStop, kvTransferParams, promptLogprobs, stream } = this.#plan;
    const pace =
      this.#faults === null || (this.#faults.extraMsPerToken === 0 && this.#faults.stallAfterTokens === Infinity)
        ? null
        : this.#faults;
    const shared = { choiceCount: n, kvTransferParams, promptLogprobs, pace };
    this.#open = prompts.length * n;
    this.#res.once("close", () => {
      if (!this.#res.writableFinished) this.#end("aborted");
    });
    prompts.forEach((prompt, promptIndex) => {
      for (let child = 0; child < n && !this.#over; child++) {
        const sampling = samplings[child]!;
        const text = new OutputText(engine.tokenizer, stops, includeStop, sampling.minTokens);
        const choice = new Choice(this, promptIndex * n + child, text);
        this.#choices.push(choice);
        // vLLM's ids of choices; the KV of a paired request travels under them.
        const id = n > 1 ? `${child}_${prompt.id}` : prompt.id;
        const request = { ...shared, id, prompt: prompt.tokens, choice: child, sampling };
        this.#handles.push(engine.submit(request, choice));
      }
    });
    // A sequence may have failed at once: then an HTTP status can still report the failure.
    if (this.#over) return;
    this.#format = this.#plan.format(this.#handles);
    if (stream.stream)
      this.#writer = new SseWriter(
        this.#res,
        () => this.#onDrain(),
        (count) => void (engine.metrics.streamedBytes += count),
      );
    if (this.#faults !== null) this.#strike();
  }

  /** Called by a choice that has something to write. */
  advance(choice: Choice): void {
    if (this.#over) return;
    this.#tokenCount++;
    if (this.#writer?.blocked === false) this.#write(this.#writer, choice);
    else if (this.#writer !== null) this.#unwritten.push(choice);
    if (choice.finish !== null) {
      this.#open--;
      if (this.#open === 0 && this.#writer?.blocked !== true) this.#finish();
    }
    if (this.#faults !== null) this.#strike();
  }

  fail(failure: EngineFailure): void {
    if (!this.#end("failed")) return;
    if (this.#writer === null) {
      sendJson(this.#res, failure.status, errorBody(failure));
    } else {
      this.#writer.write(errorEvent(failure), DONE);
      this.#writer.end();
    }
  }

  #write(writer: SseWriter, choice: Choice): void {
    const format = this.#format!;
    if (!this.#opened) {
      this.#opened = true;
      const opening = format.opening(this.#choices.length);
      if (opening.length > 0) writer.write(...opening);
    }
    writer.write(format.event(choice.take()));
  }

  /**
   * The client reads again. Each token stays its own event, however late: a repeated answer has the same bytes, so that
   * a client with half of one answer can continue with the other half of another.
   */
  #onDrain(): void {
    const writer = this.#writer!;
    while (!this.#over && !writer.blocked && this.#unwritten.length > 0) this.#write(writer, this.#unwritten.shift()!);
    if (this.#open === 0 && !writer.blocked) this.#finish();
  }

  #finish(): void {
    if (!this.#end("finished")) return;
    const format = this.#format!;
    if (this.#writer === null) {
      const choices = this.#choices.map((choice) => choice.whole());
      sendJson(this.#res, 200, format.body(choices, this.#usage()));
      return;
    }
    if (this.#plan.stream.includeUsage) this.#writer.write(format.usageEvent(this.#usage()));
    this.#writer.write(DONE);
    this.#writer.end();
  }

  #usage(): Usage {
    return {
      promptTokens: this.#plan.prompts.reduce((sum, { tokens }) => sum + tokens.length, 0),
      completionTokens: this.#choices.reduce((sum, choice) => sum + choice.completionTokens, 0),
      cachedTokens: this.#options.reportCached ? this.#handles[0]!.cachedTokens : null,
    };
  }

  /** False if the answer was already over. Aborts sequences that still run. */
  #end(outcome: Outcome): boolean {
    if (this.#over) return false;
    this.#over = true;
    // A finished answer's sequences end by themselves; the last is still in its last step.
    if (outcome !== "finished") for (const handle of this.#handles) handle.abort();
    this.#options.onOutcome(outcome);
    return true;
  }

  /** Applies the faults that hit after a number of tokens. */
  #strike(): void {
    const { errorAfterTokens, halfEventAfterTokens, dieAfterTokens } = this.#faults!;
    if (this.#over) return;
    if (this.#tokenCount >= errorAfterTokens) {
      this.fail({ status: 500, type: "InternalServerError", message: "Internal server error", param: null });
    } else if (this.#tokenCount >= halfEventAfterTokens) {
      this.#end("failed");
      if (this.#writer !== null) {
        this.#writer.breakOff('data: {"choices":[{"index":0,"text":" half"}]}\n\n');
      } else {
        this.#res.writeHead(200, { "content-type": "application/json", "content-length": "1000" });
        this.#res.write('{"id":"cmpl-', () => this.#res.destroy());
      }
    } else if (this.#tokenCount >= dieAfterTokens) {
      this.#end("failed");
      this.#options.die();
    }
  }
}

/** One choice: the generated tokens, and those not written yet. */
class Choice implements TokenSink {
  readonly #index: number;
  readonly #answer: Answer;
  readonly #output: OutputText;
  /** One entry for each unwritten token; for all tokens if the answer is not streamed. */
  readonly #texts: string[] = [];
  readonly #tokens: number[] = [];
  readonly #logprobs: TokenLogprobs[] = [];
  #writtenCount = 0;
  finish: Finish | null = null;
  completionTokens = 0;

  constructor(answer: Answer, index: number, output: OutputText) {
    this.#answer = answer;
    this.#index = index;
    this.#output = output;
  }

  token(token: number, finish: Finish | null, logprobs: TokenLogprobs | null): boolean {
    this.completionTokens++;
    this.#tokens.push(token);
    if (logprobs !== null) this.#logprobs.push(logprobs);
    // A stop token is counted and listed, but its text is not part of the answer.
    let text = finish?.reason !== "stop" || this.#output.includeStop ? this.#output.push(token) : "";
    const { stoppedBy } = this.#output;
    if (stoppedBy !== null) {
      this.finish = { reason: "stop", stopReason: stoppedBy, kvTransferParams: finish?.kvTransferParams ?? null };
    } else if (finish !== null) {
      text += this.#output.flush();
      this.finish = finish;
    }
    this.#texts.push(text);
    this.#answer.advance(this);
    return stoppedBy !== null;
  }

  fail(failure: EngineFailure): void {
    this.#answer.fail(failure);
  }

  /** The oldest token that is not written, which is on its way to the client now. */
  take(): Delta {
    const first = this.#writtenCount++ === 0;
    const logprobs = this.#logprobs.shift();
    return {
      index: this.#index,
      text: this.#texts.shift()!,
      tokens: [this.#tokens.shift()!],
      logprobs: logprobs === undefined ? [] : [logprobs],
      finish: this.#writtenCount === this.completionTokens ? this.finish : null,
      first,
      completionTokens: this.#writtenCount,
    };
  }

  /** The whole choice. */
  whole(): WholeChoice {
    return {
      index: this.#index,
      text: this.#texts.join(""),
      tokens: this.#tokens,
      logprobs: this.#logprobs,
      finish: this.finish!,
    };
  }
}
