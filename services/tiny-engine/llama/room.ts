// Shares out the KV cache. A sequence starts only once it owns all the blocks that it can ever need, so that no
// sequence is preempted. Pushed KV doesn't say how long its answer may become: it holds the blocks of the longest
// answer until its request arrives.
import { KV_BLOCK_TOKENS } from "./shape.ts";

export interface Room {
  /** Takes a slot and blocks for a sequence that may grow to `tokens` tokens. False if there are none now. */
  take(tokens: number): boolean;
  give(tokens: number): void;
  readonly takenSlots: number;
  /** Tokens in taken blocks. */
  readonly takenTokens: number;
  /** 0 to 1. */
  readonly usedRatio: number;
}

export function createRoom(slots: number, blocks: number): Room {
  let takenSlots = 0;
  let takenBlocks = 0;
  const blocksOf = (tokens: number): number => Math.ceil(tokens / KV_BLOCK_TOKENS);
  return {
    take(tokens) {
      if (takenSlots >= slots || takenBlocks + blocksOf(tokens) > blocks) return false;
      takenSlots++;
      takenBlocks += blocksOf(tokens);
      return true;
    },
    give(tokens) {
      takenSlots--;
      takenBlocks -= blocksOf(tokens);
    },
    get takenSlots() {
      return takenSlots;
    },
    get takenTokens() {
      return takenBlocks * KV_BLOCK_TOKENS;
    },
    get usedRatio() {
      return takenBlocks / blocks;
    },
  };
}
