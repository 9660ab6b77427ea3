// Shares out the KV cache. A sequence starts only once it owns all the blocks that it can ever need, so that no
// sequence is preempted. Pushed KV doesn't say how long its answer may become: it holds the blocks of the longest
// answer until its request arrives.
import { KV_BLOCK_TOKENS } from "./shape.ts";

export type Room = ReturnType<typeof createRoom>;

export function createRoom(slots: number, blocks: number) {
  let takenSlots = 0;
  let takenBlocks = 0;
  const blocksOf = (tokens: number): number => Math.ceil(tokens / KV_BLOCK_TOKENS);
  return {
    /** Takes a slot and blocks for a sequence that may grow to `tokens` tokens. False if there are none now. */
    take(tokens: number): boolean {
      if (takenSlots >= slots || takenBlocks + blocksOf(tokens) > blocks) return false;
      takenSlots++;
      takenBlocks += blocksOf(tokens);
      return true;
    },
    give(tokens: number): void {
      takenSlots--;
      takenBlocks -= blocksOf(tokens);
    },
    /** Tokens in taken blocks. */
    get takenTokens(): number {
      return takenBlocks * KV_BLOCK_TOKENS;
    },
    /** 0 to 1. */
    get usedRatio(): number {
      return takenBlocks / blocks;
    },
  };
}
