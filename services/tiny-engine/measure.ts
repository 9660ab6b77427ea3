// Counts and times of each sequence, under vLLM's names.
import type { SequenceRequest } from "./engine.ts";
import { observe } from "./prometheus-text.ts";
import type { EngineMetrics, FinishedReason } from "./metrics.ts";

/** Times in milliseconds of the engine's clock; 0 before they are known. */
export interface Measured {
  readonly request: SequenceRequest;
  readonly arrivedMs: number;
  readonly scheduledMs: number;
  firstTokenMs: number;
  lastTokenMs: number;
  /** Tokens of the answer so far. */
  readonly outputCount: number;
  readonly cachedTokens: number;
  readonly preemptions: number;
}

export function measureArrival(metrics: EngineMetrics, { sampling, choice, choiceCount }: SequenceRequest): void {
  observe(metrics.paramsMaxTokens, sampling.maxTokens);
  if (choice > 0) return;
  observe(metrics.paramsN, choiceCount);
  observe(metrics.maxGenerationTokens, sampling.maxTokens);
}

/** @param sequence Its `outputCount` already counts the token. */
export function measureToken(metrics: EngineMetrics, sequence: Measured, nowMs: number): void {
  metrics.generationTokens++;
  if (sequence.outputCount > 1) {
    observe(metrics.itlSeconds, (nowMs - sequence.lastTokenMs) / 1000);
  } else {
    metrics.promptTokens += sequence.request.prompt.length;
    sequence.firstTokenMs = nowMs;
    observe(metrics.ttftSeconds, (nowMs - sequence.arrivedMs) / 1000);
  }
  sequence.lastTokenMs = nowMs;
}

export function measureEnd(metrics: EngineMetrics, sequence: Measured, reason: FinishedReason, nowMs: number): void {
  metrics.finished[reason]++;
  if (sequence.outputCount === 0) return;
  const { arrivedMs, scheduledMs, firstTokenMs, lastTokenMs, outputCount } = sequence;
  observe(metrics.requestPromptTokens, sequence.request.prompt.length);
  observe(metrics.requestGenerationTokens, outputCount);
  observe(metrics.prefillComputedTokens, sequence.request.prompt.length - sequence.cachedTokens);
  observe(metrics.requestPreemptions, sequence.preemptions);
  observe(metrics.e2eSeconds, (nowMs - arrivedMs) / 1000);
  observe(metrics.queueSeconds, (scheduledMs - arrivedMs) / 1000);
  observe(metrics.prefillSeconds, (firstTokenMs - scheduledMs) / 1000);
  observe(metrics.decodeSeconds, (lastTokenMs - firstTokenMs) / 1000);
  observe(metrics.inferenceSeconds, (lastTokenMs - scheduledMs) / 1000);
  observe(metrics.tpotSeconds, outputCount > 1 ? (lastTokenMs - firstTokenMs) / (outputCount - 1) / 1000 : 0);
}
