// One engine after another on one device. vLLM measures free memory while it starts, and two that measure at once both
// fail, or both believe to have what one of them gets (seen on a GPU). Across processes; only on Linux.
import { type Clock, pause, systemClock } from "../common/clock.ts";
import { claimName, type Release } from "./name-claim.ts";

const ASK_AGAIN_MS = 200;

export interface StartTurn {
  end(): void;
}

/**
 * Resolves when this process has its turn on all of `devices`.
 *
 * @param onWait Called once if another process has the turn.
 * @throws the signal's reason
 */
export async function startTurn(
  devices: readonly string[],
  signal: AbortSignal,
  onWait: () => void = () => {},
  clock: Clock = systemClock,
): Promise<StartTurn> {
  const held: Release[] = [];
  const end = (): void => {
    for (const release of held.splice(0)) release();
  };
  try {
    let waited = false;
    // In one order for all, so that no two wait for each other.
    for (const device of [...new Set(devices)].sort()) {
      for (;;) {
        signal.throwIfAborted();
        const release = await claimName(`engine-start-${device}`);
        if (release !== undefined) {
          held.push(release);
          break;
        }
        if (!waited) onWait();
        waited = true;
        await pause(clock, ASK_AGAIN_MS, signal);
      }
    }
    return { end };
  } catch (error) {
    end();
    throw error;
  }
}
