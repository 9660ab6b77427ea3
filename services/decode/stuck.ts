// Whether the engine has forgotten one sequence. The engine's counters can't show that, because they move as long as it
// goes on with others (engine/progress.ts); only the leg's own tokens do. Where nothing moves, the engine is at fault,
// and its supervisor ends all legs at once.

export interface LegSample {
  readonly nowMs: number;
  /** When the leg last got a token, began, or was let go by a slow caller. */
  readonly sinceMs: number;
  /** Its first token is to come and may take long: the engine computes the prompt as well, or meets its prefill engine. */
  readonly maybeLong: boolean;
  /** When the engine's counters were last seen to have moved. */
  readonly engineMovedMs: number;
  /** Requests that wait in the engine: for room, or for KV. This leg may be one of them. */
  readonly waiting: number;
  readonly stallMs: number;
}

export function isStuck({ nowMs, sinceMs, maybeLong, engineMovedMs, waiting, stallMs }: LegSample): boolean {
  if (nowMs - sinceMs < stallMs || maybeLong || waiting > 0) return false;
  return nowMs - engineMovedMs < stallMs / 2;
}
