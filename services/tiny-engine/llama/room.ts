// Who may have how much of the KV cache. A sequence starts only when all the blocks that it can ever need are its own,
// so none is ever thrown out half-way. KV that is pushed here comes without a word on how long its answer may become:
// it holds a place for the longest one until its request is there.
import { KV_BLOCK_TOKENS } from "./shape.ts";

export interface Room {
  /** Takes a place for a sequence that may grow to so many tokens. False where there is none now. */
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
